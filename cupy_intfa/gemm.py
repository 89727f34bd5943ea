"""INT8 matrix products, exact in int32, with scales and bias fused: a ladder of kernels, and NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from cupy_intfa.arrays import Operands, dtype_name, give_back, on_stream, take_in
from cupy_intfa.device import DeviceInfo, default_device, device_info
from cupy_intfa.gemm_ladder import GemmProblem, Matrix
from cupy_intfa.gemm_launch import Addresses, launch_gemm
from cupy_intfa.gemm_plan import DTYPES, GemmPlan, make_gemm_plan
from cupy_intfa.quantize.arithmetic import Array, Namespace, flush

_LARGEST_K = 2**31 // 2**14 - 1  # longer rows of -128 times -128 leave int32
_EXACT_FLOAT32_K = 2**24 // 2**14  # up to which float32 sums of the products are exact
_FLOATS = ("float16", "bfloat16", "float32")
_NUMBERS = (int, float, np.number)


def int8_matmul(
    a: Any,
    b: Any,
    scale_a: Any = None,
    scale_b: Any = None,
    bias: Any = None,
    out_dtype: str | None = None,
    backend: str = "auto",
) -> Any:
    """Multiply two int8 matrices exactly; scale the integers by row and by column, and add a bias, on their way out.

    Parameters
    ----------
    a : array (M, K), int8
        NumPy, CuPy, torch or JAX; any strides. Never written. K is 131 071 at most, so that int32 cannot overflow.
    b : array (K, N), int8
        Of the same library and device, row- or column-major: ``weight.T`` of a weight (N, K) is read in place.
    scale_a : array (M,) or (M, 1), or a number, optional
        Factors of the rows: float16, bfloat16 or float32.
    scale_b : array (N,) or (1, N), or a number, optional
        Factors of the columns.
    bias : array (N,), optional
        Added to every row.
    out_dtype : {"int32", "float16", "bfloat16", "float32"}, optional
        int32 without scales and bias, float32 with them, if not given.
    backend : {"auto", "numpy", "cuda", "naive", "dp4a", "wmma", "sm80", "sm90"}
        ``auto`` is the GPU where there is one, and the rung that `explain_int8_matmul` names; ``cuda`` insists on a
        GPU, the others on one rung of the ladder.

    Returns
    -------
    array (M, N)
        ``fl(fl(fl(Σ a·b) · scale_a) · scale_b) + bias`` in float32, subnormals flushed to 0, then rounded to
        ``out_dtype``: the same bits from every backend.

    Raises
    ------
    TypeError
        For dtypes and array libraries that do not fit.
    ValueError
        For shapes and options that do not fit.
    NotImplementedError
        For a backend that insists on a GPU or a rung, where it cannot run.

    Notes
    -----
    The kernels read rows of A and columns of B at multiples of 16 bytes. What lies otherwise is copied first, into
    padded rows, by a kernel of its own: a row-major B, whose transposition is part of the call's time.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.int8([[42, -7]]), np.int8([[38, 1], [2, -128]])
    >>> int8_matmul(a, b).tolist()
    [[1582, 938]]
    >>> int8_matmul(a, b, scale_a=0.5, scale_b=np.float32([2, 0.25]), bias=np.float32([0, 1])).tolist()
    [[1582.0, 118.25]]
    """
    call = _read(a, b, scale_a, scale_b, bias, out_dtype, backend)
    product = _on_numpy(call) if call.plan.kernel is None else _on_cuda(call, call.plan.device)
    return give_back(product, call.operands)


def explain_int8_matmul(
    a: Any,
    b: Any,
    scale_a: Any = None,
    scale_b: Any = None,
    bias: Any = None,
    out_dtype: str | None = None,
    backend: str = "auto",
) -> GemmPlan:
    """Tell what `int8_matmul` would run, and why; nothing is launched.

    Parameters
    ----------
    a : array (M, K), int8
        As of `int8_matmul`, like all the others.
    b : array (K, N), int8
        The other factor.
    scale_a : array (M,) or (M, 1), or a number, optional
        Factors of the rows.
    scale_b : array (N,) or (1, N), or a number, optional
        Factors of the columns.
    bias : array (N,), optional
        Added to every row.
    out_dtype : {"int32", "float16", "bfloat16", "float32"}, optional
        Of the product.
    backend : {"auto", "numpy", "cuda", "naive", "dp4a", "wmma", "sm80", "sm90"}
        Where to run.

    Returns
    -------
    GemmPlan
        ``print`` it.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `int8_matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((2, 2), np.int8)
    >>> print(explain_int8_matmul(x, x, backend="numpy"))
    numpy: (2, 2) @ (2, 2) -> int32, 1.6e-08 Gop
      because backend='numpy' was asked for
    """
    return _read(a, b, scale_a, scale_b, bias, out_dtype, backend).plan


@dataclass(frozen=True, eq=False)
class _Call:
    """A validated call: operands as NumPy or CuPy arrays, flat float32 ends or None, and the plan."""

    operands: Operands
    a: Array
    b: Array
    ends: tuple[Array | None, Array | None, Array | None]
    plan: GemmPlan


def _read(a: Any, b: Any, scale_a: Any, scale_b: Any, bias: Any, out_dtype: str | None, backend: str) -> _Call:
    given = {"scale_a": scale_a, "scale_b": scale_b, "bias": bias}
    arrays = {name: x for name, x in given.items() if x is not None and not isinstance(x, _NUMBERS)}
    operands = take_in(a=a, b=b, **arrays)
    views = dict(zip(("a", "b", *arrays), operands.arrays, strict=True))
    m, n = _check_operands(views["a"], views["b"])
    if isinstance(bias, _NUMBERS):
        raise TypeError(f"bias={bias}: expected an array ({n},)")
    ends = tuple(
        _read_end(name, views.get(name, given[name]), length, axis)
        for name, length, axis in (("scale_a", m, 0), ("scale_b", n, 1), ("bias", n, None))
    )
    dtype = out_dtype or ("int32" if all(end is None for end in ends) else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"out_dtype={out_dtype!r}: expected one of {', '.join(DTYPES)}")
    if dtype == "int32" and any(end is not None for end in ends):
        raise ValueError("out_dtype='int32' is the sums themselves: expected no scale and no bias, or a float dtype")
    x, y = views["a"], views["b"]
    device: DeviceInfo | str = default_device() if operands.device is None else device_info(operands.device)
    if backend == "numpy" and operands.device is not None:
        raise ValueError("backend='numpy': the arrays are on a GPU; expected arrays on the CPU")
    if operands.device is None and isinstance(device, DeviceInfo):
        x, y = _as_they_travel(x), _as_they_travel(y)
    problem = GemmProblem(a=_matrix(x, operands), b=_matrix(y.T, operands), out_dtype=dtype)
    return _Call(operands, x, y, (ends[0], ends[1], ends[2]), make_gemm_plan(problem, backend, device))


def _check_operands(a: Array, b: Array) -> tuple[int, int]:
    for name, x in (("a", a), ("b", b)):
        if dtype_name(x) != "int8":
            raise TypeError(f"{name} has dtype {dtype_name(x)}: expected int8")
        if x.ndim != 2:
            raise ValueError(f"{name} has shape {x.shape}: expected a matrix")
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"a {a.shape} has {a.shape[1]} columns and b {b.shape} has {b.shape[0]} rows: expected as many"
        )
    if a.shape[1] > _LARGEST_K:
        raise ValueError(f"K is {a.shape[1]}: sums of more than {_LARGEST_K} products can overflow int32, split them")
    if max(a.shape[0], b.shape[1]) >= 2**31 - 256:
        raise ValueError(f"a {a.shape}, b {b.shape}: expected fewer than 2^31 - 256 rows and columns")
    return int(a.shape[0]), int(b.shape[1])


def _read_end(name: str, x: Any, length: int, axis: int | None) -> Array | None:
    """Make a scale or a bias one flat row of float32; ``axis`` is the one that it goes along where it has two."""
    if x is None:
        return None
    if isinstance(x, _NUMBERS):
        return np.full(1, x, np.float32)
    if dtype_name(x) not in _FLOATS:
        raise TypeError(f"{name} has dtype {dtype_name(x)}: expected {', '.join(_FLOATS)}")
    shapes = [(length,)] if axis is None else [(), (1,), (1, 1), (length,), (length, 1) if axis == 0 else (1, length)]
    if x.shape not in shapes:
        raise ValueError(f"{name} has shape {x.shape}: expected {' or '.join(map(str, dict.fromkeys(shapes)))}")
    flat: Array = x.reshape(-1).astype(np.float32)
    return flat


def _matrix(x: Array, operands: Operands) -> Matrix:
    rows, depth = x.shape
    row_stride, depth_stride = x.strides
    return Matrix(
        rows=rows,
        depth=depth,
        row_stride=depth if rows == 1 else row_stride,  # nobody steps over a single row, whose stride is arbitrary
        depth_stride=1 if depth == 1 else depth_stride,
        offset=0 if operands.device is None else x.data.ptr % 16,
    )


def _as_they_travel(x: Array) -> Array:
    """Give a host array without gaps, in the order that it has."""
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


def _finish(sums: Array, call: _Call, xp: Namespace) -> Array:
    """Scale, add and round as gemm_epilogue.cuh does."""
    if call.plan.problem.out_dtype == "int32":
        return sums
    scale_a, scale_b, bias = call.ends
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x = sums.astype(np.float32)
        if scale_a is not None:
            x = flush(x * flush(xp.asarray(scale_a), xp)[:, None], xp)
        if scale_b is not None:
            x = flush(x * flush(xp.asarray(scale_b), xp), xp)
        if bias is not None:
            x = flush(x + flush(xp.asarray(bias), xp), xp)
        return x.astype(_dtype(call))


def _dtype(call: _Call) -> np.dtype[Any]:
    name = call.plan.problem.out_dtype
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _on_numpy(call: _Call) -> Array:
    exact = np.float32 if call.a.shape[1] <= _EXACT_FLOAT32_K else np.float64
    sums = (call.a.astype(exact) @ call.b.astype(exact)).astype(np.int32)
    return _finish(sums, call, np)


def _on_cuda(call: _Call, device: DeviceInfo | None) -> Array:
    import cupy

    if device is None:
        raise ValueError("the plan has no device: expected one of a GPU")
    plan = call.plan
    m, n, k = plan.problem.shape
    with on_stream(call.operands, device.ordinal):
        a, b = (cupy.asarray(x) if x.flags.c_contiguous else cupy.asarray(x.T).T for x in (call.a, call.b))
        out = cupy.empty((m, n), _dtype(call))
        if 0 in (m, n):
            return out if call.operands.device is not None else out.get()
        if k == 0:
            out[...] = _finish(cupy.zeros((m, n), np.int32), call, cupy)
        else:
            ends = [None if x is None else cupy.asarray(x) for x in call.ends]
            rooms = [None if copy is None else cupy.empty(copy.nbytes, np.uint8) for copy in plan.copies]
            pointers = [0 if x is None else x.data.ptr for x in (*rooms, *ends)]
            names = ("packed_a", "packed_b", "scale_a", "scale_b", "bias")
            steps = [int(x is not None and x.size > 1) for x in ends[:2]]
            at = Addresses(
                a=a.data.ptr,
                b=b.data.ptr,
                out=out.data.ptr,
                step_a=steps[0],
                step_b=steps[1],
                **dict(zip(names, pointers, strict=True)),
            )
            launch_gemm(plan, at)
        return out if call.operands.device is not None else out.get()
