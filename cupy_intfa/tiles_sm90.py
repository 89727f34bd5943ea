"""The tiles of attention_sm90: one table by class of recipe and padded head dimension, as measured on an H200."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cupy_intfa.recipe import Recipe
from cupy_intfa.tiles import LONG_ROW, integer_o

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
        Warpgroups that compute, of 64 rows each: they hide each other's waits. Two have 240 registers, three 160,
        four 112.
    q_shared : bool
        Whether Q stays in shared memory, to spare registers.
    cubic : int
        The first of every so many groups of 16 keys takes its exponentials from a polynomial; 0 for none.
    serial : bool
        Whether a warpgroup waits for its own products, so that P takes the registers of S: for more warpgroups or keys.
    """

    keys: int
    warpgroups: int = 2
    q_shared: bool = False
    cubic: int = 0
    serial: bool = False

    @property
    def rows(self) -> int:
        """B_r."""
        return _WARPGROUP_ROWS * self.warpgroups

    @property
    def threads(self) -> int:
        """Of a block: one more warpgroup brings tiles."""
        return _WARPGROUP * (self.warpgroups + 1)


def find_sm90_tile(recipe: Recipe, head_dim: int, kv_len: int) -> Sm90Tile | None:
    """Look a tile up.

    Parameters
    ----------
    recipe : Recipe
        The numerics, with int8 Q and K.
    head_dim : int
        Padded head dimension.
    kv_len : int
        Keys: a large tile is not for short rows.

    Returns
    -------
    Sm90Tile or None
        The tile; none of them spills registers. None where attention_sm80 is faster.

    Examples
    --------
    >>> from cupy_intfa.recipe import PRESETS
    >>> find_sm90_tile(PRESETS["fast"], 128, 16384)
    Sm90Tile(keys=128, warpgroups=3, q_shared=True, cubic=3, serial=True)
    """
    token = recipe.k_granularity == "token"
    if not recipe.integer_pv:
        return (_HALF_TOKEN if token else _HALF)[head_dim]
    if "block" in recipe.v_granularity:
        return _V_BLOCK.get(head_dim)
    if integer_o(recipe):
        tile = (_TOKEN if token else _GROUP)[head_dim]
    else:
        tile = (_TILE_REFERENCE_TOKEN if token else _TILE_REFERENCE)[head_dim]
    if kv_len <= _FEW:
        tile = replace(tile, keys=min(tile.keys, 64))
    elif integer_o(recipe) and kv_len > LONG_ROW:
        tile = replace(tile, keys=_KEYS_OF_LONG_ROW[tile.keys])
    elif kv_len < _LARGE_FROM:
        tile = replace(tile, keys=min(tile.keys, 128))
    # The polynomial is for P of 8 bits whose sum is taken before it is rounded; token scales take its registers.
    return tile if recipe.p_levels == 255 and recipe.row_sum == "exact" and not token else replace(tile, cubic=0)


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
    scales = tile.keys if recipe.k_granularity == "token" else -(-tile.keys // 64) * 4
    if "block" in recipe.v_granularity:
        scales += head_dim * (tile.keys // 64)
    means = 4 * head_dim if head_dim < 256 else 0
    item = tile.rows * (head_dim + 8) + 4 * head_dim + means + 32
    two = 2 * (-(-item // _GRAIN) * _GRAIN + 16)
    per_stage = stage + 4 * scales + tile.keys + 16
    items, buffers = (two, 2) if two + _FEWEST_STAGES * per_stage <= limit else (item + 16, 1)
    stages = min(_MOST_STAGES, (limit - items) // per_stage)
    return stages * per_stage + items, stages, buffers


_FEWEST_STAGES, _MOST_STAGES = 3, 4  # with two a tile is on its way for less than a turn: 557 of 909 TOPS at D 128
_LARGE_FROM = 8192  # keys
_FEW = 512  # keys: in tiles of 64 the first P are finer, being relative to a maximum of fewer keys
_KEYS_OF_LONG_ROW = {192: 128, 128: 96, 96: 64}  # what empties O on the way takes registers
_GROUP = {  # O in integers, K with group scales
    32: Sm90Tile(192, 3, q_shared=True, cubic=3, serial=True),
    64: Sm90Tile(192, 3, q_shared=True, cubic=3, serial=True),
    96: Sm90Tile(128, 3, q_shared=True, cubic=3, serial=True),
    128: Sm90Tile(128, 3, q_shared=True, cubic=3, serial=True),
    192: Sm90Tile(128, q_shared=True, cubic=3),
    256: Sm90Tile(128, q_shared=True, cubic=3),
}
_TOKEN = {
    32: Sm90Tile(192, 3, q_shared=True, serial=True),
    64: Sm90Tile(96, 4, q_shared=True, serial=True),
    96: Sm90Tile(128, 3, q_shared=True, serial=True),
    128: Sm90Tile(128, 3, q_shared=True, serial=True),
    192: Sm90Tile(128, q_shared=True),
    256: Sm90Tile(96, q_shared=True),
}
_TILE_REFERENCE = {  # O in floats, of one product a tile
    **_GROUP,
    192: Sm90Tile(128, q_shared=True, cubic=3, serial=True),
    256: Sm90Tile(128, q_shared=True, cubic=3, serial=True),
}
_TILE_REFERENCE_TOKEN = {
    **_TILE_REFERENCE,
    64: Sm90Tile(128, 3, q_shared=True, serial=True),
    128: Sm90Tile(96, 3, q_shared=True, serial=True),
}
_V_BLOCK = {  # the same, of tiles of one block. D 32: 235 TOPS, attention_sm80 244
    64: Sm90Tile(64, 4, q_shared=True, serial=True),
    96: Sm90Tile(64, 4, q_shared=True, serial=True),
    128: Sm90Tile(64, 3, q_shared=True, serial=True),
    192: Sm90Tile(64, q_shared=True),
    256: Sm90Tile(64, q_shared=True),
}
_HALF = {
    32: Sm90Tile(128, 3, q_shared=True),
    64: Sm90Tile(128, 3, q_shared=True),
    96: Sm90Tile(64, 3),
    128: Sm90Tile(64, 3, q_shared=True),
    192: Sm90Tile(96, q_shared=True),
    256: Sm90Tile(64, q_shared=True),
}
_HALF_TOKEN = {**_HALF, 64: Sm90Tile(64, 3)}
