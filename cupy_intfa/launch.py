"""Argument packing and launches. No decisions are taken here: the plan has them all."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cupy_intfa.kernels import load_kernel
from cupy_intfa.packing import Packing
from cupy_intfa.quantize.codes import FORMATS
from cupy_intfa.tensor_map import tensor_map

if TYPE_CHECKING:
    from cupy_intfa.plan import CudaPlan, Plan
    from cupy_intfa.problem import AttentionProblem
    from cupy_intfa.recipe import Recipe

_CACHED_BYTES = 32 << 20  # of K and V: an H200's L2 cache holds 50 MB
NO_MASK = 0x3FFFFFFF  # kNoMask in kernels_cu/intfa/types.cuh
OUT_DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}  # enum Dtype in kernels_cu/intfa/types.cuh

# The arrays of AttentionParams in kernels_cu/intfa/params.cuh, in its order; then out, lse, o_flush, strides, numbers.
_ARRAYS = (
    "q",
    "k",
    "v",
    "q_scale",
    "q_mark",
    "k_scale",
    "k_scale_max",
    "kv_mark",
    "v_scale",
    "v_mean",
    "q_kmean",
    "key_index",
)
_ATTENTION = struct.Struct(f"={len(_ARRAYS)}Q3Q4q12i4f")
ATTENTION_PARAMS_BYTES = _ATTENTION.size


def by_value(packed: bytes) -> np.void:
    """Make the NumPy scalar that CuPy passes to a kernel by value."""
    return np.void(packed)


def attention(
    plan: Plan,
    cuda: CudaPlan,
    workspace: int,
    out: int,
    out_strides: tuple[int, ...],
    lse: int,
    load: Callable[..., Any] = load_kernel,
    make_map: Callable[..., Any] = tensor_map,
) -> None:
    """Launch the attention kernel on CuPy's current device and stream.

    Parameters
    ----------
    plan : Plan
        What runs.
    cuda : CudaPlan
        Its part for the GPU.
    workspace : int
        Address of the packing.
    out : int
        Address of the output, of the problem's dtype.
    out_strides : tuple of int
        Elements between batches, heads, rows and channels of the output, whatever its layout.
    lse : int
        Address of the log-sum-exp (B, Hq, Sq), float32, or 0.
    load : callable
        Where kernels come from: `load_kernel`, or its like of the simulator.
    make_map : callable
        Where tensor maps come from: `tensor_map`, or its like of the simulator.
    """
    packed = _ATTENTION.pack(
        *[workspace + offset if offset >= 0 else 0 for offset in cuda.offsets],
        out,
        lse,
        workspace + cuda.packing.nbytes if cuda.flush else 0,
        *out_strides,
        *plan.numbers,
    )
    kernel: Any = load(cuda.source, cuda.defines, cuda.device.ordinal, cuda.shared_bytes)
    maps = [make_map(workspace + offset, *view) for offset, *view in cuda.views]
    kernel((cuda.grid,), (cuda.threads,), (by_value(packed), *maps), shared_mem=cuda.shared_bytes)


def attention_numbers(problem: AttentionProblem, recipe: Recipe, packing: Packing) -> tuple[float, ...]:
    """Give the integers and floats at the end of AttentionParams."""
    largest = FORMATS["int4" if recipe.qk_bits == 4 else recipe.qk].largest
    with np.errstate(over="ignore"):  # the kernel marks the rows of a scale that is infinite in float32
        scale = np.float32(problem.scale)
        scale_log2 = scale * np.float32(1.4426950408889634)
    return (
        problem.heads,
        problem.kv_heads,
        problem.q_len,
        problem.kv_len,
        problem.head_dim,
        packing.q_len,
        packing.kv_len,
        NO_MASK if problem.causal_offset is None else problem.causal_offset,
        recipe.key_order == "last_to_first",
        OUT_DTYPES[problem.dtype],
        problem.batch * problem.heads,
        _section(problem, recipe, packing),
        float(scale),
        float(scale_log2),
        float(np.float32(largest) * np.float32(largest) * np.float32(problem.head_dim)),
        float(np.log2(np.float32(recipe.p_top))),
    )


def _section(problem: AttentionProblem, recipe: Recipe, packing: Packing) -> int:
    """Count the query heads whose keys and values stay in the L2 cache while all their rows are worked on."""
    per_head = packing.regions["k"].nbytes + packing.regions["v"].nbytes
    kv_heads = max(1, _CACHED_BYTES * problem.batch * problem.kv_heads // per_head)
    return min(problem.batch * problem.heads, kv_heads * (problem.heads // problem.kv_heads))


def attention_offsets(packing: Packing) -> tuple[int, ...]:
    """Give the offset of each array of AttentionParams in the workspace, -1 for one that the recipe does not have."""
    return tuple(packing.regions[name].offset if name in packing.regions else -1 for name in _ARRAYS)
