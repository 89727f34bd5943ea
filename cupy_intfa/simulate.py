"""Attention by the real kernels without a GPU: their PTX, run in NumPy, with checks that no GPU makes.

Plan, launch arguments and kernels are those of a GPU; only what a launch calls is another (`Simulator.load`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from cupy_intfa import launch
from cupy_intfa.arrays import take_in
from cupy_intfa.checks import check_out, refuse_non_finite
from cupy_intfa.packing import pack, unpack
from cupy_intfa.plan import CudaPlan, Plan, make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.ptxsim import Options, Trace
from cupy_intfa.quantize import QuantizedQKV
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.cuda import plan_quantize
from cupy_intfa.quantize.launch import is_vector, quantize_into
from cupy_intfa.recipe import DEFAULT_RECIPE, Recipe, get_recipe
from cupy_intfa.simulator import DEFAULT_ARCH, DeviceArray, Pointer, Simulator, simulated_device


def _cuda(plan: Plan) -> CudaPlan:
    if plan.cuda is None:
        raise ValueError(f"the plan runs on {plan.backend}: there is no kernel to simulate")
    return plan.cuda


def quantise_simulated(simulator: Simulator, plan: Plan, arrays: tuple[Array, ...]) -> int:
    """Run the quantise kernels on host arrays in the caller's layout; returns the address of the workspace."""
    cuda, problem = _cuda(plan), plan.problem
    inputs = tuple(simulator.copy_in(name, x) for name, x in zip("qkv", arrays, strict=True))
    workspace = simulator.allocate("the workspace", cuda.workspace_bytes)
    packing = cuda.packing
    parts = {name: (region.offset, region.nbytes) for name, region in packing.regions.items()}
    quantize = plan_quantize(problem, plan.recipe, is_vector(inputs))
    parts |= {name: (packing.nbytes + r.offset, r.nbytes) for name, r in quantize.scratch.items()}
    simulator.memory.divide(workspace, parts)
    at = DeviceArray(Pointer(workspace), (cuda.workspace_bytes,), (1,), 1)
    quantize_into(plan, cuda, inputs, at, simulator.load)
    return workspace


def place_packing(simulator: Simulator, plan: Plan, qkv: QuantizedQKV) -> int:
    """Pack quantised arrays into the simulated memory; returns the address of the workspace."""
    cuda = _cuda(plan)
    host = np.full(cuda.workspace_bytes, 0xFF, np.uint8)
    pack(qkv.to_host(), cuda.packing, host, np)
    return simulator.memory.allocate("the workspace", host)


def attend_simulated(
    simulator: Simulator, plan: Plan, workspace: int, return_lse: bool, dtype: np.dtype[Any]
) -> tuple[Array, Array | None]:
    """Run the attention kernel on a packing; output in the caller's shape, and the log-sum-exp where asked for."""
    cuda, problem = _cuda(plan), plan.problem
    packing = cuda.packing
    parts = {name: (region.offset, region.nbytes) for name, region in packing.regions.items()}
    if cuda.flush:
        parts["o_flush"] = (packing.nbytes, cuda.scratch_bytes)
    simulator.memory.divide(workspace, parts)
    like = np.empty(problem.out_shape, dtype)
    full = like if problem.batched else like[None]
    full = full if problem.layout == "bhsd" else full.swapaxes(1, 2)
    out = simulator.allocate("out", like.nbytes)
    lse = simulator.allocate("lse", 4 * int(np.prod(problem.lse_shape))) if return_lse else 0
    strides = tuple(stride // like.itemsize for stride in full.strides)
    launch.attention(plan, cuda, workspace, out, strides, lse, simulator.load, simulator.make_map)
    found = simulator.read(out, problem.out_shape, like.dtype)
    return found, simulator.read(lse, problem.lse_shape, np.dtype(np.float32)) if return_lse else None


def read_packing(simulator: Simulator, plan: Plan, workspace: int) -> QuantizedQKV:
    """Read what the quantise kernels have written."""
    cuda = _cuda(plan)
    host = simulator.memory.read(workspace, cuda.packing.nbytes)
    return unpack(cuda.packing, host, plan.problem, plan.recipe, np)


def trace_of(simulator: Simulator, plan: Plan) -> Trace:
    """Give the trace of the last launch, with those before it and the scores of the problem."""
    p = plan.problem
    return replace(
        simulator.traces[-1], scores=p.batch * p.heads * p.visible_pairs, before=tuple(simulator.traces[:-1])
    )


def attend_in_simulation(
    plan: Plan, source: tuple[Array, ...] | QuantizedQKV, target: Array | None, return_lse: bool
) -> tuple[Array, Array | None]:
    """Run a plan on host arrays in the caller's layout, or on their quantised form, and fill the caller's output."""
    simulator = Simulator(_cuda(plan).device)
    if isinstance(source, QuantizedQKV):
        workspace = place_packing(simulator, plan, source)
        dtype = np.dtype(ml_dtypes.bfloat16 if plan.problem.dtype == "bfloat16" else plan.problem.dtype)
    else:
        workspace, dtype = quantise_simulated(simulator, plan, source), source[0].dtype
    out, lse = attend_simulated(simulator, plan, workspace, return_lse, dtype)
    if target is None:
        return out, lse
    target[...] = out
    return target, lse


def quantise_in_simulation(plan: Plan, arrays: tuple[Array, ...]) -> QuantizedQKV:
    """Run the quantise kernels of a plan on host arrays in the caller's layout."""
    simulator = Simulator(_cuda(plan).device)
    return read_packing(simulator, plan, quantise_simulated(simulator, plan, arrays))


def simulate(
    q: Any,
    k: Any,
    v: Any,
    *,
    arch: str = DEFAULT_ARCH,
    seed: int | None = None,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    recipe: str | Recipe = DEFAULT_RECIPE,
    return_lse: bool = False,
    out: Any = None,
    workspace: Any = None,
    check_finite: bool = False,
    backend: str = "cuda",
) -> Any:
    """Run what `attention` would run on a GPU, on none: quantise kernels and attention kernel, thread by thread.

    Parameters
    ----------
    q : array (B, Hq, Sq, D)
        Queries, as of `attention`; NumPy arrays, or others on the CPU. Small: a block of 64 queries and 256 keys
        takes a tenth of a second or more.
    k, v : array (B, Hkv, Skv, D)
        Keys and values, as of `attention`.
    arch : str
        The GPU to be: ``sm_75``, ``sm_80``, ``sm_86``, ``sm_89``, ``sm_90a``, ``sm_100`` or ``sm_120``.
    seed : int, optional
        Draws the order in which warps run; without it all run in step.
    is_causal, causal_alignment, scale, layout, recipe, return_lse, out
        As of `attention`.
    workspace : None
        A GPU's memory, of which a simulation has none: anything else is refused.
    check_finite : bool
        As of `attention`.
    backend : {"cuda", "sm90", "sm80", "dp4a", "naive"}
        The kernel: ``cuda`` is the one that the plan takes, the others are named as of `attention`.

    Returns
    -------
    out : array
        Shape and dtype of q, NumPy; or what was given as ``out``.
    lse : array (B, Hq, Sq), float32
        Only if ``return_lse``.
    trace : Trace
        Of the attention kernel; ``trace.before`` has the quantise kernels.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `attention`; for an unknown ``arch`` or a ``workspace``.
    FileNotFoundError
        Where NVRTC is not installed; the text says what to install.
    SimulationError
        Where a kernel does what it must not: the text names block, thread, instruction and source line.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 16, 32), dtype=np.float32)
    >>> out, trace = simulate(q, k, v, arch="sm_80", recipe="paper")
    >>> out.shape, trace.kernel, trace.scores
    ((1, 1, 16, 32), 'attention_sm80', 256)
    """
    if workspace is not None:
        raise ValueError("workspace= is memory of a GPU, and a simulation has its own: leave it away")
    operands = take_in(q=q, k=k, v=v)
    if operands.device is not None:
        raise TypeError("q, k and v are on a GPU: the simulator takes arrays on the CPU")
    arrays: tuple[Any, ...] = operands.arrays
    x, y, z = arrays
    problem = make_problem(
        x.shape,
        y.shape,
        z.shape,
        (x.dtype.name, y.dtype.name, z.dtype.name),
        is_causal=is_causal,
        causal_alignment=causal_alignment,
        scale=scale,
        layout=layout,
    )
    plan = make_plan(problem, get_recipe(recipe), backend, simulated_device(arch))
    target = check_out(out, problem, operands)
    if check_finite:
        refuse_non_finite(operands, problem)
    simulator = Simulator(simulated_device(arch), Options(seed=seed, detailed=True))
    place = quantise_simulated(simulator, plan, arrays)
    found, lse = attend_simulated(simulator, plan, place, return_lse, arrays[0].dtype)
    if target is not None:
        target[...] = found
    answer, trace = found if out is None else out, trace_of(simulator, plan)
    return (answer, lse, trace) if return_lse else (answer, trace)
