"""The table of CUDA attention kernels: what each can run on which GPU, and with which tiles.

A row is a function (problem, recipe, device) → `KernelChoice`, or the reason why that kernel cannot run the call. The
plan takes the first row that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cupy_intfa.device import DeviceInfo
from cupy_intfa.packing import HEAD_DIM_TILES, KEY_BLOCK
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.recipe import FLOAT8, Recipe
from cupy_intfa.tiles import LONG_ROW, Tile, find_tile, integer_o
from cupy_intfa.tiles_sm90 import find_sm90_tile, sm90_shared_bytes

_FORMATS = {"int8": 0, "float16": 1, "float8_e4m3": 2, "float8_e5m2": 3}  # enum Format in kernels_cu/intfa/config.cuh


@dataclass(frozen=True)
class Box:
    """What one copy by a tensor map brings: a part of an array of the packing, seen as a matrix of its last axis.

    Parameters
    ----------
    array : str
        Name of the array.
    rows, columns : int
        Of the box, in elements.
    lane_order : bool
        Whether of every 32 rows, row 8t + 2k + e comes as number 8k + 2t + e: channels of V as a lane t has them.
    """

    array: str
    rows: int
    columns: int
    lane_order: bool = False


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """A kernel with its tiles.

    Parameters
    ----------
    source : str
        File name without ``.cu``, and entry point.
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    rows, keys : int
        B_r, query rows per block, and keys per step of the running maximum.
    threads, shared_bytes : int
        Of a block.
    flush : bool
        Whether rows of more than 65 536 keys need float32 sums in device memory.
    reason : str
        Why these tiles.
    boxes : tuple of Box
        What the kernel copies by tensor maps.
    persistent : bool
        Whether a block takes one piece of work after the other, so that one per multiprocessor is enough.
    """

    source: str
    defines: tuple[str, ...]
    rows: int
    keys: int
    threads: int
    shared_bytes: int
    flush: bool
    reason: str
    boxes: tuple[Box, ...] = ()
    persistent: bool = False


def common_defines(recipe: Recipe, head_dim: int) -> tuple[str, ...]:
    """Say the recipe in macros: what every attention kernel is compiled with."""
    return (
        f"D={head_dim}",
        f"QK={_FORMATS[recipe.qk]}",
        f"PV={_FORMATS[recipe.pv]}",
        f"K_TOKEN={int(recipe.k_granularity == 'token')}",
        f"V_BLOCK={int(recipe.v_granularity in ('block', 'block_channel'))}",
        f"TILE_REF={int(recipe.p_reference == 'tile')}",
        f"EXACT_SUM={int(recipe.row_sum == 'exact')}",
    )


def no_packing(recipe: Recipe) -> str | None:
    """Tell why no CUDA kernel runs a recipe, if none does."""
    if recipe.pv == "int8x2":
        return "pv='int8x2' is in the NumPy backend only: on GPUs float16 P is faster and more accurate"
    if recipe.qk not in ("int8", recipe.pv):
        return f"qk={recipe.qk!r} with pv={recipe.pv!r} is in the NumPy backend only: a float Q goes with the same P"
    if recipe.v_granularity == "token":
        return "v_granularity='token' is in the NumPy backend only: expected tensor, channel, block or block_channel"
    if recipe.key_block != KEY_BLOCK:
        return f"key_block={recipe.key_block}: the CUDA kernels work in blocks of {KEY_BLOCK} keys"
    if recipe.key_window not in (0, KEY_BLOCK):
        return (
            f"key_window={recipe.key_window}: the CUDA kernels sort inside one block of keys: expected 0 or {KEY_BLOCK}"
        )
    return None


def padded_head_dim(head_dim: int) -> int:
    """Give the smallest tile that holds the head dimension."""
    return next(tile for tile in HEAD_DIM_TILES if tile >= head_dim)


def sm80_shared_bytes(recipe: Recipe, head_dim: int, tile: Tile) -> int:
    """Count the bytes of shared memory that attention_sm80 takes: kernels_cu/intfa/stages.cuh."""
    qk_row = head_dim * (2 if recipe.qk == "float16" else 1)
    v_row = head_dim * (2 if recipe.pv == "float16" else 1)
    k_scales = tile.keys if recipe.k_granularity == "token" else tile.keys // 16
    v_scales = head_dim if "block" in recipe.v_granularity else 4
    stage = tile.keys * (qk_row + v_row) + 4 * (k_scales + v_scales) + 16  # two barriers
    return tile.stages * (-(-stage // 128) * 128) + (tile.rows * qk_row if tile.q_shared else 0)


def _sm90(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo) -> KernelChoice | str:
    if device.capability != (9, 0):
        return f"attention_sm90 uses what only compute capability 9.0 has, {device.name} has {device.arch}"
    if device.nvrtc < (12, 9):
        found = ".".join(map(str, device.nvrtc))
        return f"attention_sm90 is compiled for sm_90a, which takes NVRTC 12.9 or newer: found {found}"
    if recipe.qk != "int8" or recipe.pv not in ("int8", "float16"):
        return f"attention_sm90 multiplies int8, and float16 P and V: {recipe.name} has {recipe.qk} and {recipe.pv}"
    if not recipe.integer_pv and recipe.p_reference == "tile":
        return "attention_sm90 keeps a float P relative to the running maximum only: expected p_reference='running'"
    head_dim = padded_head_dim(problem.head_dim)
    long_rows = integer_o(recipe) and problem.kv_len > LONG_ROW
    tile = find_sm90_tile(recipe, head_dim, problem.kv_len)
    if tile is None:
        return f"attention_sm90 is slower than attention_sm80 for {recipe.name} at D {head_dim}"
    shared, stages, buffers = sm90_shared_bytes(recipe, head_dim, tile, device.shared_per_block)
    chunk = next(width for width in (128, 64, 32) if head_dim % width == 0)  # columns of Q and K, a byte each
    values = Box("v", head_dim, KEY_BLOCK if tile.keys % KEY_BLOCK == 0 else 32, lane_order=True)
    if not recipe.integer_pv:
        values = Box("v", tile.keys, 64 if head_dim % 64 == 0 else 32)
    return KernelChoice(
        source="attention_sm90",
        defines=(
            *common_defines(recipe, head_dim),
            f"LONG={int(long_rows)}",
            f"WARPS={tile.rows // 16}",
            f"BC={tile.keys}",
            f"STEP={tile.keys}",
            f"Q_SHARED={int(tile.q_shared)}",
            f"STAGES={stages}",
            f"ITEM_BUFFERS={buffers}",
            f"CUBIC={tile.cubic}",
            f"SERIAL={int(tile.serial)}",
        ),
        rows=tile.rows,
        keys=tile.keys,
        threads=tile.threads,
        shared_bytes=shared,
        flush=long_rows,
        reason=f"{device.arch} has wgmma, the fastest tensor-core instructions for int8 there are",
        boxes=(Box("q", tile.rows, chunk), Box("k", tile.keys, chunk), values),
        persistent=True,
    )


def _sm80(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo) -> KernelChoice | str:
    if device.capability < (7, 5):
        return f"attention_sm80 needs tensor cores for int8: compute capability 7.5, {device.name} has {device.arch}"
    if (recipe.qk in FLOAT8 or recipe.pv in FLOAT8) and device.capability < (8, 9):
        return f"8-bit floats have tensor cores from compute capability 8.9 on, {device.name} has {device.arch}"
    if not recipe.integer_pv and recipe.p_reference == "tile":
        return "attention_sm80 keeps a float P relative to the running maximum only: expected p_reference='running'"
    head_dim = padded_head_dim(problem.head_dim)
    long_rows = integer_o(recipe) and problem.kv_len > LONG_ROW
    tile = find_tile(device.capability, recipe, head_dim, long_rows)
    if tile is None:
        return f"attention_sm80 would spill registers for {recipe.name} at D {head_dim} on {device.arch}"
    shared = sm80_shared_bytes(recipe, head_dim, tile)
    if shared > device.shared_per_block:
        return (
            f"attention_sm80 needs {shared} bytes of shared memory at D {head_dim}, {device.name} has "
            f"{device.shared_per_block} per block"
        )
    return KernelChoice(
        source="attention_sm80",
        defines=(
            *common_defines(recipe, head_dim),
            f"LONG={int(long_rows)}",
            f"WARPS={tile.warps}",
            f"M_TILES={tile.m_tiles}",
            f"BC={tile.keys}",
            f"STEP={tile.step}",
            f"Q_SHARED={int(tile.q_shared)}",
            f"STAGES={tile.stages}",
            f"SLACK={tile.slack}",
            f"MIN_BLOCKS={tile.min_blocks}",
        ),
        rows=tile.rows,
        keys=tile.step,
        threads=32 * tile.warps,
        shared_bytes=shared,
        flush=long_rows,
        reason=f"{device.arch} has mma.sync",
    )


# attention_dp4a: warps and blocks that registers are left for, the largest that compile without spills everywhere.
_DP4A_TILES = {32: (4, 4), 64: (4, 4), 96: (4, 3), 128: (4, 3), 192: (4, 2), 256: (2, 4)}


def _dp4a(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo) -> KernelChoice | str:
    if device.capability < (6, 1):
        return f"attention_dp4a needs compute capability 6.1, {device.name} has {device.arch}"
    if recipe.qk != "int8" or recipe.pv != "int8":
        return f"attention_dp4a multiplies int8 only, {recipe.name} has qk={recipe.qk!r} and pv={recipe.pv!r}"
    head_dim = padded_head_dim(problem.head_dim)
    warps, min_blocks = _DP4A_TILES[head_dim]
    rows = 16 * warps
    long_rows = integer_o(recipe) and problem.kv_len > LONG_ROW
    return KernelChoice(
        source="attention_dp4a",
        defines=(
            *common_defines(recipe, head_dim),
            f"LONG={int(long_rows)}",
            f"WARPS={warps}",
            f"MIN_BLOCKS={min_blocks}",
        ),
        rows=rows,
        keys=KEY_BLOCK,
        threads=32 * warps,
        shared_bytes=rows * (head_dim + 80) + 128 * head_dim,
        flush=long_rows,
        reason=f"{device.arch} has DP4A, and no int8 tensor cores were asked for or are there",
    )


def _naive(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo) -> KernelChoice | str:
    head_dim = padded_head_dim(problem.head_dim)
    return KernelChoice(
        source="attention_naive",
        defines=common_defines(recipe, head_dim),
        rows=1,
        keys=KEY_BLOCK,
        threads=KEY_BLOCK,
        shared_bytes=4 * (head_dim + 3 * KEY_BLOCK),
        flush=False,
        reason=f"backend='naive' was asked for, which {device.arch} runs like any other",
    )


Row = Callable[[AttentionProblem, Recipe, DeviceInfo], KernelChoice | str]

KERNELS: tuple[Row, ...] = (_sm90, _sm80, _dp4a)
"""What ``backend="cuda"`` tries, in this order."""

NAMED_KERNELS: Mapping[str, Row] = MappingProxyType({"sm90": _sm90, "sm80": _sm80, "dp4a": _dp4a, "naive": _naive})
"""What ``backend=`` names one by one: the ladder, also where a faster rung would run."""
