"""The tiles of attention_sm90: one table by class of recipe and padded head dimension, as measured on an H200."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cupy_intfa.recipe import Recipe
from cupy_intfa.tiles import integer_o

_WARPGROUP_ROWS, _WARPGROUP = 64, 128  # of the wgmma instructions; threads
_GRAIN = 1024  # bytes: a swizzle pattern repeats


@dataclass(frozen=True)
class Sm90Tile:
    """Tile sizes of attention_sm90.

    Parameters
    ----------
    keys : int
        B_c, keys per tile.
    warpgroups : int
        Warpgroups that compute, of 64 rows each: three where 160 registers are enough, they hide each other's waits.
    q_shared : bool
        Whether Q stays in shared memory, to spare registers.
    cubic : int
        The first of every so many groups of 16 keys takes its exponentials from a polynomial; 0 for none.
    """

    keys: int
    warpgroups: int = 2
    q_shared: bool = False
    cubic: int = 0

    @property
    def rows(self) -> int:
        """B_r."""
        return _WARPGROUP_ROWS * self.warpgroups

    @property
    def threads(self) -> int:
        """Of a block: one more warpgroup brings tiles."""
        return _WARPGROUP * (self.warpgroups + 1)


def find_sm90_tile(recipe: Recipe, head_dim: int, long_rows: bool) -> Sm90Tile | None:
    """Look a tile up.

    Parameters
    ----------
    recipe : Recipe
        The numerics, with int8 Q and K.
    head_dim : int
        Padded head dimension.
    long_rows : bool
        Whether rows may have more than 65 536 keys.

    Returns
    -------
    Sm90Tile or None
        None where every tile would spill registers.

    Examples
    --------
    >>> from cupy_intfa.recipe import PRESETS
    >>> find_sm90_tile(PRESETS["fast"], 128, False)
    Sm90Tile(keys=128, warpgroups=2, q_shared=False, cubic=4)
    """
    token = recipe.k_granularity == "token"
    if recipe.pv == "float16":
        kind = "half_token" if token else "half"
    elif integer_o(recipe):
        # The polynomial is for P of 8 bits whose sum is taken before it is rounded.
        tuned = recipe.p_levels == 255 and recipe.row_sum == "exact"
        kind = "integer_token" if token else "tuned" if tuned else "integer"
        if long_rows and head_dim in _TILES.get(f"{kind}_long", {}):
            kind += "_long"
    else:
        kind = "float_o_running" if recipe.p_reference == "running" else "float_o_token" if token else "float_o"
    return _TILES[kind].get(head_dim)


def sm90_shared_bytes(recipe: Recipe, head_dim: int, tile: Sm90Tile, limit: int) -> tuple[int, int, int]:
    """Count the bytes of shared memory that attention_sm90 takes, with as many stages as fit.

    Parameters
    ----------
    recipe : Recipe
        The numerics.
    head_dim : int
        Padded head dimension.
    tile : Sm90Tile
        Its tile.
    limit : int
        Bytes that a block may have.

    Returns
    -------
    tuple of int
        Bytes, key tiles, and blocks of Q in shared memory: kernels_cu/intfa/pipeline.cuh.
    """
    stage = tile.keys * head_dim * (3 if recipe.pv == "float16" else 2)
    scales = tile.keys if recipe.k_granularity == "token" else tile.keys // 16
    if "block" in recipe.v_granularity:
        scales += head_dim * (tile.keys // 64)
    item = -(-(tile.rows * head_dim + 8 * tile.rows + 8 * head_dim) // _GRAIN) * _GRAIN
    per_stage = stage + 4 * scales + tile.keys + 16
    buffers = 2 if 2 * (item + 16) + 2 * per_stage <= limit else 1
    stages = min(_MOST_STAGES, (limit - buffers * (item + 16)) // per_stage)
    return stages * per_stage + buffers * (item + 16), stages, buffers


_MOST_STAGES = 4
_INTEGER = {96: Sm90Tile(128), 128: Sm90Tile(128), 192: Sm90Tile(64)}
_FLOAT_O = {
    64: Sm90Tile(64, 3),
    96: Sm90Tile(64, 3, q_shared=True),
    128: Sm90Tile(64, 3, q_shared=True),
    192: Sm90Tile(64),
    256: Sm90Tile(64, q_shared=True),
}
_HALF = {
    64: Sm90Tile(64, 3),
    96: Sm90Tile(64, 3),
    128: Sm90Tile(64, 3, q_shared=True),
    192: Sm90Tile(64),
    256: Sm90Tile(64, q_shared=True),
}
_TILES: Mapping[str, Mapping[int, Sm90Tile | None]] = {
    "tuned": {
        64: Sm90Tile(128, 3, q_shared=True, cubic=4),
        96: Sm90Tile(128, cubic=4),
        128: Sm90Tile(128, cubic=4),
        192: Sm90Tile(64, cubic=4),
        256: Sm90Tile(64, cubic=4),
    },
    "tuned_long": {256: Sm90Tile(64, q_shared=True, cubic=4)},  # the other one spills here, and this one there
    "integer": {64: Sm90Tile(128, 3, q_shared=True), **_INTEGER, 256: Sm90Tile(64)},
    "integer_long": {256: None},
    "integer_token": {
        64: Sm90Tile(128, 3, q_shared=True),
        96: Sm90Tile(64, 3),
        128: Sm90Tile(64, 3, q_shared=True),
        192: Sm90Tile(64),
        256: Sm90Tile(64, q_shared=True),
    },
    "float_o": _FLOAT_O,
    "float_o_token": {**_FLOAT_O, 192: Sm90Tile(64, q_shared=True)},
    "float_o_running": {**_FLOAT_O, 192: Sm90Tile(64, q_shared=True), 256: None},
    "half": _HALF,
    "half_token": _HALF,
}
