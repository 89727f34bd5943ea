"""Launch the quantise kernels. No decisions are taken here: `cupy_intfa.quantize.cuda` has them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cupy_intfa.kernels import load_kernel
from cupy_intfa.launch import by_value
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.cuda import PARAMS, QuantizePlan, plan_quantize

if TYPE_CHECKING:
    from cupy_intfa.plan import CudaPlan, Plan
    from cupy_intfa.problem import AttentionProblem

_WIDE = 2**31  # bytes; a stride below it fits the 32-bit multiplications of the kernels' 16-byte path


def quantize_into(plan: Plan, cuda: CudaPlan, arrays: tuple[Array, ...], workspace: Array) -> None:
    """Write the packing of q, k and v, by kernels on CuPy's current device and stream.

    Parameters
    ----------
    plan, cuda
        What runs: its sizes and its recipe matter here.
    arrays : tuple of cupy.ndarray
        q, k and v in the caller's layout, any strides; never written.
    workspace : cupy.ndarray (at least ``cuda.workspace_bytes``,), uint8
        The packing in front is written to its last byte but for the gaps between its arrays; what lies behind it is
        scratch, free again when the launches are over.
    """
    problem = plan.problem
    quantize = plan_quantize(problem, plan.recipe, is_vector(arrays))
    params = by_value(pack_params(problem, quantize, arrays, workspace.data.ptr))
    for launch in quantize.launches:
        kernel = load_kernel(launch.source, launch.defines, cuda.device.ordinal)
        kernel((launch.grid,), (launch.threads,), (params,))


def is_vector(arrays: tuple[Array, ...]) -> bool:
    """Tell whether 16-byte loads can read eight channels of every token.

    Parameters
    ----------
    arrays : tuple of cupy.ndarray
        q, k and v; the last axis is D.

    Returns
    -------
    bool
        D a multiple of 8, channels side by side, addresses and strides multiples of 16 bytes, strides below 2 GB.
    """
    return all(
        x.shape[-1] % 8 == 0
        and x.data.ptr % 16 == 0
        and x.strides[-1] == x.itemsize
        and all(n == 1 or (s % 16 == 0 and abs(s) < _WIDE) for n, s in zip(x.shape[:-1], x.strides, strict=False))
        for x in arrays
    )


def pack_params(p: AttentionProblem, quantize: QuantizePlan, arrays: tuple[Array, ...], workspace: int) -> bytes:
    """Give the bytes of QuantizeParams for arrays and a workspace at an address."""
    inputs: list[int] = []
    for x in arrays:
        batch, *inner = x.strides if p.batched else (0, *x.strides)
        heads, tokens, channels = inner if p.layout == "bhsd" else (inner[1], inner[0], inner[2])
        inputs += (x.data.ptr, batch, heads, tokens, channels)
    return PARAMS.pack(
        *inputs,
        *(0 if offset < 0 else workspace + offset for offset in quantize.offsets),
        p.batch,
        p.heads,
        p.kv_heads,
        p.q_len,
        p.kv_len,
        p.head_dim,
        quantize.packing.q_len,
        quantize.packing.kv_len,
    )
