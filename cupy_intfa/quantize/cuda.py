"""Quantise on the GPU: which kernels write the packing, and with which options.

The launches, in order, each only where the recipe asks for it:

=====================  ===========================================================================================
`quantize_statistics`  sums of K and V over chunks of tokens, if they are smoothed; minimum and maximum of V, if it
                       has one scale per channel or tensor
`quantize_combine`     means and those scales of V; start values of what the others collect (always)
`quantize_rows`        compiled as a first pass: absolute maxima of the heads of a Q or K with one scale per tensor
`quantize_rows`        Q and K (always)
`quantize_values`      V (always): after K, whose sorted order it follows
=====================  ===========================================================================================
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from cupy_intfa.launch import OUT_DTYPES
from cupy_intfa.packing import ALIGNMENT, KEY_BLOCK, Packing, Region, has_offset_values, make_packing
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.quantize.arithmetic import SUM_CHUNK
from cupy_intfa.quantize.codes import FORMATS
from cupy_intfa.quantize.rotate import hadamard_block
from cupy_intfa.recipe import Recipe

# enum Format and enum Span in kernels_cu/intfa/quantize_config.cuh
_FORMATS = {"int8": 0, "float16": 1, "float8_e4m3": 2, "float8_e5m2": 3}
_SPANS = {"token": 0, "group": 1, "block": 2, "tensor": 3, "channel": 4, "block_channel": 5}

# QuantizeParams in kernels_cu/intfa/quantize_params.cuh, in its order: address and strides of q, k and v, the arrays
# of the packing, those of the scratch, eight sizes.
PACKED = (
    "q",
    "k",
    "v",
    "q_scale",
    "q_mark",
    "k_scale",
    "k_scale_max",
    "kv_mark",
    "v_scale",
    "k_mean",
    "q_kmean",
    "v_mean",
    "key_index",
)
SCRATCH = ("k_sum", "v_sum", "v_low", "v_high", "q_absmax", "k_absmax")
PARAMS = struct.Struct(f"={3 * 'Q4q'}{len(PACKED) + len(SCRATCH)}Q8i")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a quantise kernel.

    Parameters
    ----------
    source : str
        File name of the kernel without ``.cu``, and its entry point.
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    grid, threads : int
        Blocks, and threads per block.
    """

    source: str
    defines: tuple[str, ...]
    grid: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class QuantizePlan:
    """What quantises one problem.

    Parameters
    ----------
    launches : tuple of Launch
        In order.
    packing : Packing
        What they write.
    scratch : mapping of str to Region
        What they hand to each other, behind the packing.
    scratch_bytes : int
        Its size.
    offsets : tuple of int
        Bytes from the workspace's start to each array of `PACKED` and `SCRATCH`; -1 for one that the recipe has not.
    """

    launches: tuple[Launch, ...]
    packing: Packing
    scratch: Mapping[str, Region]
    scratch_bytes: int
    offsets: tuple[int, ...]


@lru_cache(maxsize=1024)
def plan_quantize(problem: AttentionProblem, recipe: Recipe, vector: bool) -> QuantizePlan:
    """Choose the launches that quantise q, k and v.

    Parameters
    ----------
    problem : AttentionProblem
        Sizes and dtype.
    recipe : Recipe
        One that has a packing.
    vector : bool
        Whether 16-byte loads can read the inputs; only the compiled kernels depend on it.

    Returns
    -------
    QuantizePlan
        Launches and memory.

    Examples
    --------
    >>> from cupy_intfa.problem import make_problem
    >>> from cupy_intfa.recipe import PRESETS
    >>> plan = plan_quantize(make_problem(*[(1, 2, 300, 64)] * 3, ("float16",) * 3), PRESETS["fast"], True)
    >>> for launch in plan.launches:
    ...     print(launch.source, launch.grid, launch.threads)
    quantize_statistics 12 128
    quantize_combine 4 512
    quantize_rows 24 128
    quantize_values 12 128
    """
    packing = make_packing(problem, recipe)
    scratch, scratch_bytes = _lay_out_scratch(problem, recipe, packing)
    starts = {name: region.offset for name, region in packing.regions.items()}
    starts |= {name: packing.nbytes + region.offset for name, region in scratch.items()}
    return QuantizePlan(
        launches=tuple(_launches(problem, recipe, packing, vector)),
        packing=packing,
        scratch=scratch,
        scratch_bytes=scratch_bytes,
        offsets=tuple(starts.get(name, -1) for name in (*PACKED, *SCRATCH)),
    )


def _needs_range(recipe: Recipe) -> bool:
    """Whether the scales of V need its extremes over whole heads."""
    return recipe.v_granularity in ("tensor", "channel")


def _lay_out_scratch(p: AttentionProblem, recipe: Recipe, packing: Packing) -> tuple[Mapping[str, Region], int]:
    chunks = (p.batch, p.kv_heads, -(-p.kv_len // SUM_CHUNK), packing.head_dim)
    wanted = {
        "k_sum": (recipe.smooth_k, chunks),
        "v_sum": (recipe.smooth_v, chunks),
        "v_low": (_needs_range(recipe), chunks),
        "v_high": (_needs_range(recipe), chunks),
        "q_absmax": (recipe.q_granularity == "tensor", (p.batch, p.heads)),
        "k_absmax": (recipe.k_granularity == "tensor", (p.batch, p.kv_heads)),
    }
    regions: dict[str, Region] = {}
    offset = 0
    for name, (is_wanted, shape) in wanted.items():
        if is_wanted:
            regions[name] = Region(offset, shape, np.dtype(np.float32))
            offset += -(-regions[name].nbytes // ALIGNMENT) * ALIGNMENT
    return MappingProxyType(regions), offset


def _launches(p: AttentionProblem, recipe: Recipe, packing: Packing, vector: bool) -> Iterator[Launch]:
    d, kv_heads = packing.head_dim, p.batch * p.kv_heads
    key_blocks = kv_heads * (packing.kv_len // KEY_BLOCK)
    row_blocks = p.batch * p.heads * (packing.q_len // KEY_BLOCK) + key_blocks
    row_threads = 16 * min(32, 1 << (d // 8 - 1).bit_length())  # 16 rows at a time, 8 channels a thread
    options = _options(p, recipe, vector)

    # 1024 threads of 64 registers per multiprocessor: on an H200 the preset "fast" at B4 H32 S16k D128 takes 0.96 ms,
    # against 1.05 with 1280 threads and 1.51 with 1536. Wide inputs, single loads, butterflies, 8-bit floats and
    # a scale per tensor need more registers than 64, and would spill.
    is_per_tensor = "tensor" in (recipe.q_granularity, recipe.k_granularity)
    lean = vector and p.dtype in ("float16", "bfloat16") and not recipe.rotate
    lean_rows = lean and recipe.qk == "int8" and not is_per_tensor
    lean_values = lean and recipe.integer_pv

    def launch(source: str, grid: int, threads: int, groups: str, is_lean: bool = False, **more: int) -> Launch:
        named = {"PARAMS_BYTES": PARAMS.size, "D": d, "MIN_BLOCKS": 1024 // threads if is_lean else 1, **more}
        for group in groups.split():
            named |= options[group]
        return Launch(source=source, defines=tuple(f"{k}={v}" for k, v in named.items()), grid=grid, threads=threads)

    statistics = recipe.smooth_k + (recipe.smooth_v or _needs_range(recipe))
    if statistics:
        chunks = statistics * kv_heads * -(-p.kv_len // SUM_CHUNK)
        yield launch("quantize_statistics", chunks, 2 * d, "load smooth_k values", lean)
    width = d if recipe.v_granularity == "tensor" else 32  # channels per block
    yield launch("quantize_combine", kv_heads * (d // width), 512 // width * width, "smooth_k spans values v_format")
    if is_per_tensor:
        yield launch("quantize_rows", row_blocks, row_threads, "load smooth_k spans qk_format", ABSMAX=1)
    yield launch("quantize_rows", row_blocks, row_threads, "load smooth_k spans qk_format sort", lean_rows)
    yield launch("quantize_values", key_blocks, 2 * d, "load values v_format v_offset sort", lean_values)


def _options(p: AttentionProblem, recipe: Recipe, vector: bool) -> Mapping[str, Mapping[str, int]]:
    """Group the options of kernels_cu/intfa/quantize_config.cuh: a kernel is given those that it reads."""
    v_format = "int8" if recipe.integer_pv else recipe.pv
    qk_largest = FORMATS["int4" if recipe.qk_bits == 4 else recipe.qk].largest
    return {
        "load": {"INPUT": OUT_DTYPES[p.dtype], "VECTOR": int(vector)},
        "smooth_k": {"SMOOTH_K": int(recipe.smooth_k)},
        "sort": {"SORT": int(recipe.key_window > 0)},
        "spans": {"Q_SPAN": _SPANS[recipe.q_granularity], "K_SPAN": _SPANS[recipe.k_granularity]},
        "qk_format": {
            "QK": _FORMATS[recipe.qk],
            "QK_LARGEST": math.trunc(qk_largest),
            "ROTATE": hadamard_block(p.head_dim) if recipe.rotate else 1,
        },
        "values": {"SMOOTH_V": int(recipe.smooth_v), "V_SPAN": _SPANS[recipe.v_granularity]},
        "v_offset": {"V_OFFSET": int(has_offset_values(recipe))},
        "v_format": {"V": _FORMATS[v_format], "V_LARGEST": math.trunc(FORMATS[v_format].largest)},
    }
