"""Launch the quantise kernels. No decisions are taken here: `cupy_intfa.quantize.cuda` has them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cupy_intfa.kernels import load_kernel
from cupy_intfa.launch import by_value
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.cuda import PARAMS, QuantizePlan

if TYPE_CHECKING:
    from cupy_intfa.plan import CudaPlan, Plan
    from cupy_intfa.problem import AttentionProblem

_WIDE = 2**31  # bytes; a stride below it fits the 32-bit multiplications of the kernels' 16-byte path


def quantize_into(
    plan: Plan,
    cuda: CudaPlan,
    arrays: tuple[Array, ...],
    workspace: Array,
    load: Callable[..., Any] = load_kernel,
) -> None:
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
    load : callable
        Where kernels come from: `load_kernel`, or its like of the simulator.
    """
    problem = plan.problem
    quantize = plan.quantize[is_vector(arrays)]
    params = (by_value(pack_params(problem, quantize, arrays, workspace.data.ptr)),)
    device = cuda.device.ordinal
    for launch in quantize.launches:
        load(launch.source, launch.defines, device)((launch.grid,), (launch.threads,), params)


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
    for x in arrays:
        shape, strides = x.shape, x.strides
        if shape[-1] % 8 or x.data.ptr % 16 or strides[-1] != x.itemsize:
            return False
        for n, stride in zip(shape[:-1], strides, strict=False):
            if n != 1 and (stride % 16 or abs(stride) >= _WIDE):
                return False
    return True


def pack_params(p: AttentionProblem, quantize: QuantizePlan, arrays: tuple[Array, ...], workspace: int) -> bytes:
    """Give the bytes of QuantizeParams for arrays and a workspace at an address."""
    inputs: list[int] = []
    for x in arrays:
        strides = x.strides if p.batched else (0, *x.strides)
        batch, heads, tokens, channels = strides if p.layout == "bhsd" else (strides[0], strides[2], *strides[1::2])
        inputs += (x.data.ptr, batch, heads, tokens, channels)
    return PARAMS.pack(
        *inputs,
        *[workspace + offset if offset >= 0 else 0 for offset in quantize.offsets],
        p.batch,
        p.heads,
        p.kv_heads,
        p.q_len,
        p.kv_len,
        p.head_dim,
        quantize.packing.q_len,
        quantize.packing.kv_len,
    )
