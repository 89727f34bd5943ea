"""The tiles of attention_sm80: one table by architecture, class of recipe and padded head dimension.

The tiles of ``sm_90`` are the fastest of those measured on an H200 that compile the presets without spills; where they
are not of their own, they are those of ``sm_100``. No GPU of the other architectures was at hand: theirs are the same
shapes as far as registers and shared memory allow, by the count of the compiler. An entry that is missing has no tile
without spills. Of the recipes that are no presets about a tenth still spill 8 bytes and more, most with a tile
reference and V not scaled per block: ``pytest -m slow`` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cupy_intfa.recipe import FLOAT8, Recipe

LONG_ROW = 65536  # keys; 255 · 127 · 65536 < 2^31: longer rows empty their int32 accumulators on the way


@dataclass(frozen=True)
class Tile:
    """Tile sizes of attention_sm80.

    Parameters
    ----------
    m_tiles, warps : int
        16-row tiles of Q per warp, and warps per block.
    keys, step : int
        Keys per tile in shared memory, and keys per step of the running maximum: the twin's key tile.
    stages : int
        Tiles in shared memory.
    min_blocks : int
        Blocks per multiprocessor that registers are left for.
    q_shared : bool
        Whether Q stays in shared memory, to spare registers.
    slack : int
        Tiles that a warp may be behind the first of its block; 0: they meet at every tile.
    """

    m_tiles: int
    warps: int
    keys: int
    step: int
    stages: int
    min_blocks: int
    q_shared: bool = False
    slack: int = 0

    @property
    def rows(self) -> int:
        """B_r, rows of Q per block."""
        return 16 * self.m_tiles * self.warps


def integer_o(recipe: Recipe) -> bool:
    """Tell whether O stays in int32 across tiles: no tile brings a factor of its own."""
    return recipe.integer_pv and recipe.p_reference == "running" and "block" not in recipe.v_granularity


def find_tile(capability: tuple[int, int], recipe: Recipe, head_dim: int, long_rows: bool) -> Tile | None:
    """Look a tile up.

    Parameters
    ----------
    capability : tuple of int
        Compute capability, at least (7, 5).
    recipe : Recipe
        The numerics.
    head_dim : int
        Padded head dimension.
    long_rows : bool
        Whether rows may have more than 65 536 keys.

    Returns
    -------
    Tile or None
        None where every tile would spill.

    Examples
    --------
    >>> from cupy_intfa.recipe import PRESETS
    >>> find_tile((9, 0), PRESETS["fast"], 128, False).rows
    64
    """
    special = ""
    if recipe.pv in FLOAT8 or recipe.qk in FLOAT8:
        kind = "fp8"
    elif recipe.pv == "float16":
        kind = "fp16" if recipe.qk == "float16" else "half"
        special = "half_group" if kind == "half" and recipe.k_granularity != "token" else ""
    elif integer_o(recipe):
        kind, special = "integer", "long" if long_rows else ""
    else:
        kind = "float_o_token" if recipe.k_granularity == "token" else "float_o"
    tiles = _TILES[_row_of(capability)]
    if head_dim in tiles.get(special, {}):
        kind = special
    return tiles.get(kind, {}).get(head_dim)


def _row_of(capability: tuple[int, int]) -> str:
    """Architectures by what a block may have: 64, 163, 99 and 227 KB of shared memory."""
    if capability < (8, 0):
        return "sm_75"
    if capability in ((8, 0), (8, 7)):
        return "sm_80"
    if capability[0] in (10, 11):
        return "sm_100"
    return "sm_90" if capability[0] == 9 else "sm_86"


# "long" and "half_group" hold only what differs from "integer" and "half".
_Tiles = Mapping[str, Mapping[int, Tile | None]]

_SM_100: _Tiles = {
    "integer": {
        32: Tile(1, 4, 64, 64, 3, 4),
        64: Tile(1, 4, 64, 64, 3, 4, q_shared=True),
        96: Tile(1, 4, 64, 64, 3, 3),
        128: Tile(1, 4, 64, 64, 2, 3),
        192: Tile(1, 4, 64, 64, 3, 2),
        256: Tile(1, 4, 64, 64, 2, 2, q_shared=True),
    },
    "long": {128: Tile(1, 4, 64, 64, 2, 3, q_shared=True)},
    "float_o": {
        32: Tile(1, 4, 64, 64, 3, 4),
        64: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
        96: Tile(1, 4, 64, 64, 3, 3, q_shared=True),
        128: Tile(1, 4, 64, 64, 3, 3, q_shared=True),
        192: Tile(1, 4, 64, 64, 2, 2, q_shared=True),
        256: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
    },
    "float_o_token": {
        32: Tile(1, 4, 64, 64, 3, 4),
        64: Tile(2, 4, 64, 64, 2, 2),
        96: Tile(1, 4, 64, 64, 3, 3, q_shared=True),
        128: Tile(1, 4, 64, 64, 3, 2),
        256: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
    },
    "half": {
        32: Tile(2, 4, 128, 64, 2, 2),
        64: Tile(2, 4, 128, 64, 2, 2),
        96: Tile(2, 4, 64, 32, 2, 2, q_shared=True),
        128: Tile(2, 4, 64, 32, 2, 2, q_shared=True),
        192: Tile(1, 4, 64, 64, 2, 2),
        256: Tile(1, 4, 64, 64, 2, 2, q_shared=True),
    },
    "fp16": {
        32: Tile(2, 4, 64, 64, 2, 2),
        64: Tile(2, 4, 64, 64, 2, 2),
        96: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
        128: Tile(2, 4, 64, 32, 2, 2, q_shared=True),
        192: Tile(1, 8, 64, 64, 2, 1),
        256: Tile(1, 8, 64, 64, 2, 1, q_shared=True),
    },
    "fp8": {
        32: Tile(1, 4, 64, 64, 3, 2),
        64: Tile(1, 4, 64, 64, 3, 2),
        96: Tile(1, 4, 64, 64, 3, 2),
        128: Tile(1, 4, 64, 64, 3, 2, q_shared=True),
        192: Tile(1, 4, 64, 32, 2, 1, q_shared=True),
    },
}

# What an H200 was measured to run faster: kernels_cu/README.md.
_SM_90: _Tiles = {
    "integer": {64: Tile(1, 4, 128, 64, 3, 4, slack=1), 128: Tile(1, 4, 64, 64, 4, 3, slack=1)},
    "long": {64: Tile(1, 4, 64, 64, 3, 4, q_shared=True)},
    "half_group": {128: Tile(2, 4, 64, 32, 4, 2, q_shared=True, slack=1)},
}

_TILES: Mapping[str, _Tiles] = {
    "sm_75": {
        "integer": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(1, 4, 64, 64, 2, 3),
            96: Tile(1, 4, 64, 64, 2, 2),
            128: Tile(1, 4, 64, 64, 2, 1),
            192: Tile(1, 4, 64, 32, 2, 1, q_shared=True),
        },
        "long": {128: Tile(1, 4, 64, 64, 3, 1), 192: None},
        "float_o": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
            96: Tile(1, 4, 64, 64, 2, 2),
            128: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
        },
        "float_o_token": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(1, 4, 64, 64, 2, 2),
            128: Tile(1, 4, 64, 64, 3, 1),
        },
        "half": {
            32: Tile(2, 4, 128, 64, 2, 2),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(2, 4, 64, 32, 2, 1, q_shared=True),
            128: Tile(1, 4, 64, 64, 2, 1),
        },
        "fp16": {
            32: Tile(2, 4, 64, 64, 2, 2),
            64: Tile(1, 4, 64, 64, 3, 1),
            96: Tile(1, 4, 64, 64, 2, 1),
        },
    },
    "sm_80": {
        "integer": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(1, 4, 64, 64, 2, 4, q_shared=True),
            96: Tile(1, 4, 64, 64, 3, 3),
            128: Tile(1, 4, 64, 64, 2, 3, q_shared=True),
            192: Tile(1, 4, 64, 64, 3, 2),
            256: Tile(1, 4, 64, 64, 2, 2, q_shared=True),
        },
        "long": {64: Tile(1, 4, 64, 64, 3, 4), 128: Tile(1, 4, 64, 64, 3, 3, q_shared=True)},
        "float_o": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
            96: Tile(1, 4, 64, 64, 3, 3, q_shared=True),
            128: Tile(1, 4, 64, 64, 3, 2),
            192: Tile(1, 4, 64, 64, 2, 2, q_shared=True),
        },
        "float_o_token": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(1, 4, 64, 64, 3, 3, q_shared=True),
            128: Tile(1, 4, 64, 64, 3, 2),
            192: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
        },
        "half": {
            32: Tile(2, 4, 128, 64, 2, 2),
            64: Tile(2, 4, 128, 64, 2, 2),
            96: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
            128: Tile(2, 4, 64, 32, 2, 2, q_shared=True),
            192: Tile(1, 4, 64, 64, 2, 2),
            256: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
        },
        "fp16": {
            32: Tile(2, 4, 64, 64, 2, 2),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 8, 64, 64, 2, 1),
            256: Tile(1, 4, 64, 64, 2, 1, q_shared=True),
        },
    },
    "sm_86": {
        "integer": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(1, 4, 64, 64, 3, 4),
            96: Tile(1, 4, 64, 64, 2, 3),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 4, 64, 64, 2, 2),
            256: Tile(1, 4, 64, 64, 2, 1, q_shared=True),
        },
        "float_o": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2, q_shared=True),
            96: Tile(1, 4, 64, 64, 2, 2),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 4, 64, 64, 2, 1, q_shared=True),
        },
        "float_o_token": {
            32: Tile(1, 4, 64, 64, 3, 4),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(1, 4, 64, 64, 2, 3, q_shared=True),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 4, 64, 64, 3, 1, q_shared=True),
        },
        "half": {
            32: Tile(2, 4, 128, 64, 2, 2),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(2, 4, 64, 32, 2, 2, q_shared=True),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 4, 64, 64, 2, 1),
        },
        "fp16": {
            32: Tile(2, 4, 64, 64, 2, 2),
            64: Tile(2, 4, 64, 64, 2, 2),
            96: Tile(1, 4, 64, 64, 2, 2),
            128: Tile(1, 4, 64, 64, 3, 1),
            192: Tile(1, 8, 64, 64, 2, 1),
        },
        "fp8": {
            32: Tile(1, 4, 64, 64, 3, 2),
            64: Tile(1, 4, 64, 64, 3, 2),
            96: Tile(1, 4, 64, 64, 3, 2),
            128: Tile(1, 4, 64, 64, 2, 2),
            192: Tile(1, 4, 64, 64, 2, 2),
            256: Tile(1, 4, 64, 64, 2, 1, q_shared=True),
        },
    },
    "sm_100": _SM_100,
    "sm_90": {kind: {**_SM_100.get(kind, {}), **_SM_90.get(kind, {})} for kind in {**_SM_100, **_SM_90}},
}
