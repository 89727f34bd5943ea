"""How a plan runs: on NumPy by the emulator, on a GPU by quantise kernels and an attention kernel."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from cupy_intfa import launch
from cupy_intfa.arrays import Operands, on_stream
from cupy_intfa.packing import pack, unpack
from cupy_intfa.plan import CudaPlan, Plan
from cupy_intfa.quantize import QuantizedQKV, quantize_arrays
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.launch import quantize_into
from cupy_intfa.reference import emulator


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Give the NumPy dtype of a name, bfloat16 among them."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def to_bhsd(x: Array, layout: str, batched: bool) -> Array:
    """See an array of the caller's layout as (B, H, S, D)."""
    x = x if batched else x[None]
    return x if layout == "bhsd" else x.swapaxes(1, 2)


def attend_on_numpy(plan: Plan, qkv: QuantizedQKV, target: Array | None) -> tuple[Array, Array]:
    """Run the emulator and write its answer in the caller's dtype and layout."""
    problem = plan.problem
    o, lse = emulator.attention(qkv, scale=problem.scale, key_tile=plan.key_tile, causal_offset=problem.causal_offset)
    if target is None:
        target = np.empty(problem.out_shape, numpy_dtype(problem.dtype))
    with np.errstate(over="ignore"):
        to_bhsd(target, problem.layout, problem.batched)[...] = o
    return target, lse.reshape(problem.lse_shape)


def quantise_on_numpy(plan: Plan, arrays: tuple[Array, ...]) -> QuantizedQKV:
    """Quantise host arrays in the caller's layout."""
    problem = plan.problem
    q, k, v = (to_bhsd(x, problem.layout, problem.batched) for x in arrays)
    return quantize_arrays(q, k, v, recipe=plan.recipe, layout=problem.layout, batched=problem.batched)


def attend_on_cuda(
    plan: Plan,
    cuda: CudaPlan,
    source: tuple[Array, ...] | QuantizedQKV,
    operands: Operands,
    target: Array | None,
    return_lse: bool,
    workspace: Array | None,
) -> tuple[Array, Array | None]:
    """Launch what the plan says on the caller's stream; nothing waits for it.

    Parameters
    ----------
    plan, cuda
        What runs.
    source : tuple of array or QuantizedQKV
        q, k, v in the caller's layout, on the host or on the device; or their quantised form.
    operands : Operands
        The caller's arrays: whose stream, and whether the answer travels back to the host.
    target : array or None
        Output to fill.
    return_lse : bool
        Whether to compute the log-sum-exp.
    workspace : cupy.ndarray or None
        Bytes to work in, instead of an allocation.

    Returns
    -------
    out, lse
        On the device for operands on it, else on the host.

    Raises
    ------
    ValueError
        While a CUDA graph is captured and no workspace is given.
    """
    import cupy as cp

    problem, on_device = plan.problem, operands.device is not None
    with on_stream(operands, cuda.device.ordinal):
        if workspace is None:
            _refuse_capture("pass workspace=explain(…).workspace() and hold it")
        if isinstance(source, QuantizedQKV):
            workspace = _packed(plan, cuda, source, workspace)
        else:
            workspace = cp.empty(cuda.workspace_bytes, np.uint8) if workspace is None else workspace
            quantize_into(plan, cuda, source if on_device else tuple(cp.asarray(x) for x in source), workspace)
        filled = target if on_device and target is not None else cp.empty(problem.out_shape, numpy_dtype(problem.dtype))
        lse = cp.empty(problem.lse_shape, np.float32) if return_lse else None
        size = filled.itemsize
        strides = tuple([n // size for n in to_bhsd(filled, problem.layout, problem.batched).strides])
        launch.attention(plan, cuda, workspace.data.ptr, filled.data.ptr, strides, 0 if lse is None else lse.data.ptr)
        if on_device:
            return filled, lse
        host = filled.get()
        if target is not None:
            target[...] = host
            host = target
        return host, None if lse is None else lse.get()


def quantise_on_cuda(plan: Plan, cuda: CudaPlan, arrays: tuple[Array, ...], operands: Operands) -> QuantizedQKV:
    """Quantise by the kernels; the result keeps their packing, so that attention on it launches one kernel.

    Parameters
    ----------
    plan, cuda
        What runs; only sizes and recipe matter here.
    arrays : tuple of array
        q, k, v in the caller's layout.
    operands : Operands
        The caller's arrays.

    Returns
    -------
    QuantizedQKV
        CuPy arrays for operands on the device, else NumPy arrays.

    Raises
    ------
    ValueError
        While a CUDA graph is captured.
    """
    import cupy as cp

    with on_stream(operands, cuda.device.ordinal):
        _refuse_capture("quantise before, or capture attention(…, workspace=…)")
        workspace = cp.empty(cuda.workspace_bytes, np.uint8)
        quantize_into(plan, cuda, tuple(cp.asarray(x) for x in arrays), workspace)
        if operands.device is not None:
            return unpack(cuda.packing, workspace, plan.problem, plan.recipe, cp, keep=True)
        return unpack(cuda.packing, workspace.get(), plan.problem, plan.recipe, np)


def _refuse_capture(advice: str) -> None:
    """Raise while the current stream is captured: a replay would use memory that is given to others by then."""
    import cupy as cp

    if cp.cuda.get_current_stream().is_capturing():
        raise ValueError(f"a CUDA graph is being captured: {advice}")


def _packed(plan: Plan, cuda: CudaPlan, qkv: QuantizedQKV, workspace: Array | None) -> Array:
    """Give the packing of quantised arrays: the one they were made with, or a new one."""
    import cupy as cp

    if qkv.packed is not None and workspace is None and not cuda.flush:
        return qkv.packed
    workspace = cp.empty(cuda.workspace_bytes, np.uint8) if workspace is None else workspace
    if qkv.packed is not None:
        workspace[: cuda.packing.nbytes] = qkv.packed[: cuda.packing.nbytes]
    elif isinstance(qkv.q, np.ndarray) or qkv.q.dtype == np.uint8:  # CuPy cannot compute with 8-bit floats
        host = np.empty(cuda.packing.nbytes, np.uint8)
        pack(qkv.to_host(), cuda.packing, host, np)
        workspace[: cuda.packing.nbytes] = cp.asarray(host)
    else:
        pack(qkv, cuda.packing, workspace, cp)
    return workspace
