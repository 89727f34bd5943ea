"""The pipeline: arrays in, validate, quantise, plan, run, array out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cupy_intfa.arrays import Operands, dtype_name, give_back, kind_of, take_in
from cupy_intfa.backends import attend_on_cuda, attend_on_numpy, quantise_on_cuda, quantise_on_numpy
from cupy_intfa.checks import check_out, host_target, refuse_non_finite, to_host
from cupy_intfa.device import DeviceInfo, default_device, device_info
from cupy_intfa.plan import CudaPlan, Plan, check_backend, make_plan
from cupy_intfa.problem import DTYPES, make_problem
from cupy_intfa.quantize import QuantizedQKV
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.recipe import DEFAULT_RECIPE, Recipe, get_recipe
from cupy_intfa.simulate import attend_in_simulation, quantise_in_simulation
from cupy_intfa.simulator import simulated_device


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    recipe: str | Recipe = DEFAULT_RECIPE,
    return_lse: bool = False,
    out: Any = None,
    workspace: Any = None,
    check_finite: bool = False,
    backend: str = "auto",
) -> Any:
    """Quantise q, k and v and compute attention with integer products.

    Parameters
    ----------
    q : array (B, Hq, Sq, D)
        Queries: float16, bfloat16, float32 or float64; NumPy, CuPy, torch or JAX; any strides. Never written.
    k, v : array (B, Hkv, Skv, D)
        Keys and values of the same library, device and dtype; Hq is a multiple of Hkv. D ≤ 256.
        ``layout="bshd"`` exchanges the axes H and S; arrays without the batch axis are accepted.
    is_causal : bool
        Hide the keys behind each query's position.
    causal_alignment : {"top_left", "bottom_right"}, optional
        What "behind" means when Sq ≠ Skv: j ≤ i (PyTorch, JAX) or j ≤ i + Skv − Sq (flash-attn).
    scale : float, optional
        Factor of the scores, finite and above 0; 1/√D if not given.
    layout : {"bhsd", "bshd"}
        Order of the axes of q, k, v and the output.
    recipe : str or Recipe
        The numerics: a name in `PRESETS` or a `Recipe`.
    return_lse : bool
        Also return the log-sum-exp.
    out : array, optional
        Filled and returned; shape, dtype and library of the output. Not for JAX, whose arrays are immutable.
    workspace : cupy.ndarray, optional
        From ``explain(…).workspace()``, held by the caller: needed while a CUDA graph is captured, because CuPy has
        no memory pool of a graph's own and would hand freed intermediates to others before the graph is replayed.
    check_finite : bool
        Raise for a NaN or infinity in q, k or v instead of making the rows that it reaches NaN.
    backend : {"auto", "numpy", "cuda", "simulate", "sm90", "sm80", "dp4a", "naive"}
        Where to run: ``auto`` is the GPU where there is one with a kernel for the recipe, else NumPy, and `explain`
        tells which; ``cuda`` insists on a GPU, ``simulate`` runs the kernels of one without it (`simulate`), the last
        four insist on one kernel of a GPU.

    Returns
    -------
    out : array
        Shape, dtype and library of q. A row that sees no key is 0.
    lse : array (B, Hq, Sq), float32
        Natural log-sum-exp of the scores, only if ``return_lse``; −inf for a row that sees no key.

    Raises
    ------
    ValueError
        For shapes, sizes, scale, layout, alignment, recipe, backend or ``out`` that do not fit; with
        ``check_finite`` for input that is not finite.
    TypeError
        For dtypes, array libraries or values of the wrong type.
    NotImplementedError
        For a backend that insists on a GPU or a kernel, where none can run the call.

    Notes
    -----
    Source: arXiv 2409.16997, Algorithm 1 (``recipe="paper"``). A NaN or infinity in row i of q makes row i of the
    output NaN; one in k or v makes all rows of the heads that read it NaN, also where a mask hides it.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 128, 64), dtype=np.float32)
    >>> out, lse = attention(q, k, v, is_causal=True, recipe="precise", return_lse=True)
    >>> out.shape, out.dtype.name, lse.shape
    ((1, 2, 128, 64), 'float32', (1, 2, 128))
    """
    operands, plan = _read(q, k, v, is_causal, causal_alignment, scale, layout, recipe, backend)
    target = check_out(out, plan.problem, operands)
    _check_workspace(workspace, plan.cuda if plan.backend == "cuda" else None)
    if check_finite:
        refuse_non_finite(operands, plan.problem)
    if plan.backend == "simulate":
        o, lse = attend_in_simulation(plan, to_host(operands.arrays), host_target(target), return_lse)
    elif plan.cuda:
        o, lse = attend_on_cuda(plan, plan.cuda, operands.arrays, operands, target, return_lse, workspace)
    else:
        o, lse = attend_on_numpy(plan, quantise_on_numpy(plan, to_host(operands.arrays)), host_target(target))
    return _answer(o, lse, operands, out, target, return_lse)


def quantize_qkv(
    q: Any,
    k: Any,
    v: Any,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    layout: str = "bhsd",
    check_finite: bool = False,
    backend: str = "auto",
) -> QuantizedQKV:
    """Quantise q, k and v once, to run attention on them later.

    Parameters
    ----------
    q, k, v : array
        As in `attention`.
    recipe : str or Recipe
        As in `attention`.
    layout : {"bhsd", "bshd"}
        As in `attention`.
    check_finite : bool
        As in `attention`.
    backend : {"auto", "numpy", "cuda", "simulate", "sm90", "sm80", "dp4a", "naive"}
        As in `attention`.

    Returns
    -------
    QuantizedQKV
        Codes, scales, means and marks; ``save`` and ``load`` keep it in an ``.npz`` file.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 128, 64))
    >>> qkv = quantize_qkv(q, k, v, recipe="paper")
    >>> qkv.k.dtype.name, qkv.k_scale.shape
    ('int8', (1, 2, 128))
    >>> bool((attention_quantized(qkv) == attention(q, k, v, recipe="paper")).all())
    True
    """
    operands, plan = _read(q, k, v, False, None, None, layout, recipe, backend)
    if check_finite:
        refuse_non_finite(operands, plan.problem)
    if plan.backend == "simulate":
        return quantise_in_simulation(plan, to_host(operands.arrays))
    if plan.cuda:
        return quantise_on_cuda(plan, plan.cuda, operands.arrays, operands)
    return quantise_on_numpy(plan, to_host(operands.arrays))


def attention_quantized(
    qkv: QuantizedQKV,
    *,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    out_dtype: Any = None,
    workspace: Any = None,
    backend: str = "auto",
) -> Any:
    """Compute attention on quantised inputs: bit for bit what `attention` gives on the originals.

    Parameters
    ----------
    qkv : QuantizedQKV
        From `quantize_qkv`; it knows recipe, layout and dtype.
    is_causal : bool
        As in `attention`.
    causal_alignment : {"top_left", "bottom_right"}, optional
        As in `attention`.
    scale : float, optional
        As in `attention`.
    return_lse : bool
        As in `attention`.
    out : array, optional
        As in `attention`; of the library that ``qkv`` holds.
    out_dtype : dtype, optional
        float16, bfloat16, float32 or float64; the dtype of the original inputs if not given.
    workspace : cupy.ndarray, optional
        As in `attention`.
    backend : {"auto", "numpy", "cuda", "simulate", "sm90", "sm80", "dp4a", "naive"}
        As in `attention`.

    Returns
    -------
    out, lse
        As `attention`, as arrays of the library that ``qkv`` holds (NumPy or CuPy).

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 16, 64))
    >>> attention_quantized(quantize_qkv(q, k, v), out_dtype=np.float16).dtype.name
    'float16'
    """
    if not isinstance(qkv, QuantizedQKV):
        raise TypeError(f"qkv is a {type(qkv).__name__}: expected a QuantizedQKV, made by quantize_qkv")
    operands = take_in(q=qkv.q)
    dtype = qkv.dtype if out_dtype is None else _dtype_name(out_dtype)
    plan = _plan(
        (qkv.q.shape, qkv.k.shape, qkv.k.shape),
        (dtype, dtype, dtype),
        (is_causal, causal_alignment, scale, qkv.layout),
        qkv.recipe,
        backend,
        _find_device(operands, backend),
        qkv.batched,
    )
    target = check_out(out, plan.problem, operands)
    _check_workspace(workspace, plan.cuda if plan.backend == "cuda" else None)
    if plan.backend == "simulate":
        o, lse = attend_in_simulation(plan, qkv, host_target(target), return_lse)
    elif plan.cuda:
        o, lse = attend_on_cuda(plan, plan.cuda, qkv, operands, target, return_lse, workspace)
    else:
        o, lse = attend_on_numpy(plan, qkv.to_host(), host_target(target))
    return _answer(o, lse, operands, out, target, return_lse)


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    recipe: str | Recipe = DEFAULT_RECIPE,
    backend: str = "auto",
) -> Plan:
    """Tell what `attention` would run for the same arguments, and why. Nothing is launched.

    Parameters
    ----------
    q, k, v : array
        As in `attention`; the same errors.
    is_causal : bool
        As in `attention`.
    causal_alignment : {"top_left", "bottom_right"}, optional
        As in `attention`.
    scale : float, optional
        As in `attention`.
    layout : {"bhsd", "bshd"}
        As in `attention`.
    recipe : str or Recipe
        As in `attention`.
    backend : {"auto", "numpy", "cuda", "simulate", "sm90", "sm80", "dp4a", "naive"}
        As in `attention`.

    Returns
    -------
    Plan
        ``print`` it.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.zeros((1, 2, 128, 64), np.float16)
    >>> explain(q, q, q, is_causal=True, backend="numpy").kernel
    'emulator'
    """
    return _read(q, k, v, is_causal, causal_alignment, scale, layout, recipe, backend)[1]


def _read(
    q: Any,
    k: Any,
    v: Any,
    is_causal: bool,
    alignment: str | None,
    scale: float | None,
    layout: str,
    recipe: str | Recipe,
    backend: str,
) -> tuple[Operands, Plan]:
    """Take arrays in, validate the call, plan it."""
    operands = take_in(q=q, k=k, v=v)
    x, y, z = operands.arrays
    plan = _plan(
        (x.shape, y.shape, z.shape),
        (dtype_name(x), dtype_name(y), dtype_name(z)),
        (is_causal, alignment, scale, layout),
        recipe,
        backend,
        _find_device(operands, backend),
    )
    return operands, plan


def _plan(shapes: tuple[Any, ...], dtypes: tuple[str, str, str], options: tuple[Any, ...], *rest: Any) -> Plan:
    """Plan a call, from memory if it came before: a network calls with the same shapes again and again."""
    try:
        return _known_plan(shapes, dtypes, *options, *rest)
    except TypeError:  # for an option that has no hash, or is refused: then it is refused again
        pass
    return _new_plan(shapes, dtypes, *options, *rest)


def _new_plan(
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[str, str, str],
    is_causal: bool,
    alignment: str | None,
    scale: float | None,
    layout: str,
    recipe: str | Recipe,
    backend: str,
    device: DeviceInfo | str,
    canonical: bool | None = None,
) -> Plan:
    """Validate and plan; ``canonical`` says that shapes are (B, H, S, D), and whether the caller's have a batch."""
    if canonical is not None:
        shapes = tuple(_user_shape(shape, layout, canonical) for shape in shapes)
    q_shape, k_shape, v_shape = shapes
    problem = make_problem(
        q_shape,
        k_shape,
        v_shape,
        dtypes,
        is_causal=is_causal,
        causal_alignment=alignment,
        scale=scale,
        layout=layout,
    )
    return make_plan(problem, get_recipe(recipe), backend, device)


# Validating and planning cost 20 µs, as much as four launches. Typed: True is not 1, and not inside a tuple either.
_known_plan = lru_cache(maxsize=1024, typed=True)(_new_plan)


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, str):
        name = dtype
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = str(dtype)
    if name not in DTYPES:
        raise TypeError(f"out_dtype={name}: expected one of {', '.join(DTYPES)}")
    return name


def _user_shape(shape: tuple[int, ...], layout: str, batched: bool) -> tuple[int, ...]:
    batch, heads, length, head_dim = shape
    full = (batch, heads, length, head_dim) if layout == "bhsd" else (batch, length, heads, head_dim)
    return full if batched else full[1:]


def _find_device(operands: Operands, backend: str) -> DeviceInfo | str:
    """Give the GPU that a call may use: the arrays' own, or the one that host arrays travel to."""
    check_backend(backend)
    if backend == "numpy":
        return "backend='numpy' uses none"
    if backend == "simulate":
        return simulated_device()
    return default_device() if operands.device is None else device_info(operands.device)


def _check_workspace(workspace: Any, cuda: CudaPlan | None) -> None:
    if workspace is None:
        return
    if cuda is None:
        raise ValueError("workspace= is for the CUDA backend, and this call runs on NumPy: leave it away")
    if kind_of(workspace) != "cupy" or workspace.dtype != np.uint8 or not workspace.flags.c_contiguous:
        raise TypeError("workspace: expected a contiguous CuPy array of uint8, from explain(…).workspace()")
    if workspace.size < cuda.workspace_bytes or workspace.device.id != cuda.device.ordinal:
        raise ValueError(
            f"workspace has {workspace.size} bytes on device {workspace.device.id}: expected at least "
            f"{cuda.workspace_bytes} on device {cuda.device.ordinal}, from explain(…).workspace()"
        )


def _answer(o: Array, lse: Array | None, operands: Operands, out: Any, target: Array | None, return_lse: bool) -> Any:
    """Bring the results to the caller's device and library."""
    if operands.device is not None and isinstance(o, np.ndarray):  # backend="numpy" was forced on arrays of a GPU
        import cupy as cp

        with cp.cuda.Device(operands.device):
            o, lse = cp.asarray(o), cp.asarray(lse)
            if target is not None:
                target[...] = o
    result = give_back(o, operands) if out is None else out
    return (result, give_back(lse, operands)) if return_lse else result
