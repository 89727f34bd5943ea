"""The plan: which kernel runs a problem, with which tiles, and why. Pure functions of plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from cupy_intfa.device import DeviceInfo
from cupy_intfa.kernel_table import KERNELS, NAMED_KERNELS, Box, KernelChoice, Row, no_packing
from cupy_intfa.kernels import find_loaded
from cupy_intfa.launch import ATTENTION_PARAMS_BYTES, attention_numbers, attention_offsets
from cupy_intfa.packing import Packing, make_packing
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.quantize.cuda import QuantizePlan, plan_quantize
from cupy_intfa.recipe import Recipe

BACKENDS = ("auto", "numpy", "cuda", "simulate", *NAMED_KERNELS)
_EMULATOR_KEY_TILE = 64  # a key block: what a GPU's kernels use as their smallest tile
View = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CudaPlan:
    """The part of a plan that a GPU needs.

    Parameters
    ----------
    device : DeviceInfo
        Where it runs.
    source : str
        File name of the kernel without ``.cu``, and its entry point.
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    grid, threads : int
        Blocks, and threads per block.
    shared_bytes : int
        Dynamic shared memory per block.
    packing : Packing
        Layout of the quantised arrays in the workspace.
    scratch_bytes : int
        Workspace behind the packing, for the quantise kernels and then for the flushed sums.
    flush : bool
        Whether rows of more than 65 536 keys empty their integer sums into the scratch.
    boxes : tuple of Box
        What the kernel copies by tensor maps.
    """

    device: DeviceInfo
    source: str
    defines: tuple[str, ...]
    grid: int
    threads: int
    shared_bytes: int
    packing: Packing
    scratch_bytes: int
    flush: bool
    boxes: tuple[Box, ...] = ()

    @cached_property
    def workspace_bytes(self) -> int:
        """Bytes of the whole workspace."""
        return self.packing.nbytes + self.scratch_bytes

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the attention kernel's arrays in the workspace."""
        return attention_offsets(self.packing)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Describe what tensor maps are of: offset, bytes per element, shape, strides, box (`tensor_map`)."""
        found: list[View] = []
        for box in self.boxes:
            region = self.packing.regions[box.array]
            *outer, columns = region.shape
            place, rows = (region.offset, region.dtype.itemsize), math.prod(outer)
            if box.lane_order:  # keys, then e, t, k and the 32 rows
                steps = (1, *(columns * rows for rows in (1, 8, 2, 32)))
                found.append((*place, (columns, 2, 4, 4, rows // 32), steps, (box.columns, 2, 4, 4, box.rows // 32)))
            else:
                found.append((*place, (columns, rows), (1, columns), (box.columns, box.rows)))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a call would run. ``print(plan)`` explains it.

    Parameters
    ----------
    problem : AttentionProblem
        Shapes, mask and scale.
    recipe : Recipe
        The numerics.
    backend : {"numpy", "cuda", "simulate"}
        Where it runs.
    kernel : str
        Name of the kernel, or ``"emulator"``.
    key_tile : int
        B_c, keys per tile: whose maximum P is relative to, or the running maximum rises to.
    reasons : tuple of str
        Why this one, and why not another.
    cuda : CudaPlan or None
        What the GPU needs.

    Examples
    --------
    >>> from cupy_intfa.problem import make_problem
    >>> from cupy_intfa.recipe import PRESETS
    >>> problem = make_problem(*[(1, 2, 8, 4)] * 3, ("float32",) * 3, is_causal=True)
    >>> make_plan(problem, PRESETS["fast"], "numpy").operations
    1152
    """

    problem: AttentionProblem
    recipe: Recipe
    backend: str
    kernel: str
    key_tile: int
    reasons: tuple[str, ...] = ()
    cuda: CudaPlan | None = None

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """Sizes and factors that the attention kernel gets."""
        if self.cuda is None:
            raise ValueError("the NumPy backend launches nothing: this plan has no numbers for a kernel")
        return attention_numbers(self.problem, self.recipe, self.cuda.packing)

    @cached_property
    def quantize(self) -> tuple[QuantizePlan, QuantizePlan]:
        """What quantises q, k and v on a GPU: where 16-byte loads cannot read them, and where they can."""
        return plan_quantize(self.problem, self.recipe, False), plan_quantize(self.problem, self.recipe, True)

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products: 4 · B · Hq · (visible pairs) · D."""
        p = self.problem
        return 4 * p.batch * p.heads * p.visible_pairs * p.head_dim

    def workspace(self) -> Any:
        """Allocate what ``attention(…, workspace=…)`` takes, to be held by the caller as long as a CUDA graph lives.

        Returns
        -------
        cupy.ndarray (bytes,), uint8
            On the plan's device.

        Raises
        ------
        ValueError
            For a plan of the NumPy backend, which needs none.
        """
        if self.cuda is None:
            raise ValueError("the NumPy backend takes no workspace: this plan has none to give")
        import cupy

        with cupy.cuda.Device(self.cuda.device.ordinal):
            return cupy.empty(self.cuda.workspace_bytes, np.uint8)

    def __str__(self) -> str:
        """Explain the plan in a few lines."""
        p = self.problem
        mask = "none" if p.causal_offset is None else f"query i sees keys up to i{p.causal_offset:+d}"
        lines = [
            f"{self.backend}: {self.kernel}, key tile {self.key_tile}, recipe {self.recipe.name}",
            f"  q ({p.batch}, {p.heads}, {p.q_len}, {p.head_dim}), k and v ({p.batch}, {p.kv_heads}, {p.kv_len}, "
            f"{p.head_dim}), {p.dtype}, layout {p.layout}, mask: {mask}, scale {p.scale:.6g}",
            f"  {self.operations / 1e9:.4g} Gop in both products",
        ]
        if self.cuda:
            c = self.cuda
            lines += [
                f"  on {c.device.name} ({c.device.arch}): {c.grid} blocks of {c.threads} threads, each "
                f"{c.shared_bytes} bytes of shared memory; workspace of {c.workspace_bytes} bytes",
                f"  compiled with {' '.join(c.defines)}",
                f"  {_taken(c)}",
            ]
        return "\n".join([*lines, *(f"  because {reason}" for reason in self.reasons)])


def _taken(cuda: CudaPlan) -> str:
    """Tell what the compiled kernel takes."""
    loaded = find_loaded(cuda.source, cuda.defines, cuda.device.ordinal)
    if loaded is None:
        return "registers: not known yet, the first call on the GPU compiles the kernel"
    return f"registers: {loaded.registers} per thread, {loaded.local_bytes} bytes of spills"


@lru_cache(maxsize=1024)
def make_plan(
    problem: AttentionProblem, recipe: Recipe, backend: str = "auto", device: DeviceInfo | str = "none was looked for"
) -> Plan:
    """Choose what runs.

    Parameters
    ----------
    problem : AttentionProblem
        A validated problem.
    recipe : Recipe
        The numerics.
    backend : {"auto", "numpy", "cuda", "simulate", "sm90", "sm80", "dp4a", "naive"}
        What the caller asked for: ``auto`` is the GPU where there is one with a kernel for the recipe, ``cuda``
        insists on it, ``simulate`` plans for one that is not there, the others insist on one kernel.
    device : DeviceInfo or str
        The GPU, or why there is none.

    Returns
    -------
    Plan
        The choice and its reasons.

    Raises
    ------
    ValueError
        For an unknown backend.
    NotImplementedError
        Where the backend insists, and there is no GPU, or no such kernel for the recipe.

    Examples
    --------
    >>> from cupy_intfa.problem import make_problem
    >>> from cupy_intfa.recipe import PRESETS
    >>> print(make_plan(make_problem(*[(1, 2, 8, 4)] * 3, ("float32",) * 3), PRESETS["fast"], "numpy"))
    numpy: emulator, key tile 64, recipe fast
      q (1, 2, 8, 4), k and v (1, 2, 8, 4), float32, layout bhsd, mask: none, scale 0.5
      2.048e-06 Gop in both products
      because backend='numpy' was asked for
    """
    check_backend(backend)
    if backend == "numpy":
        return _numpy_plan(problem, recipe, "backend='numpy' was asked for")
    rows = (NAMED_KERNELS[backend],) if backend in NAMED_KERNELS else KERNELS
    found = _choose(problem, recipe, device, rows)
    if isinstance(found, KernelChoice) and isinstance(device, DeviceInfo):
        plan = _cuda_plan(problem, recipe, device, found)
        return replace(plan, backend="simulate") if backend == "simulate" else plan
    if backend != "auto":
        naive = " or, slowly, 'naive'" if isinstance(device, DeviceInfo) and no_packing(recipe) is None else ""
        raise NotImplementedError(f"backend={backend!r}: {found}; use backend='numpy'{naive}")
    return _numpy_plan(problem, recipe, f"backend='auto', and {found}")


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {BACKENDS}")


def _choose(
    problem: AttentionProblem, recipe: Recipe, device: DeviceInfo | str, rows: tuple[Row, ...]
) -> KernelChoice | str:
    """Give the first of some kernels that fits, or why none does."""
    if isinstance(device, str):
        return f"there is no GPU ({device})"
    reasons = [reason] if (reason := no_packing(recipe)) else []
    for row in rows if not reasons else ():
        choice = row(problem, recipe, device)
        if isinstance(choice, KernelChoice):
            return choice
        reasons.append(choice)
    return "; ".join(reasons)


def _numpy_plan(problem: AttentionProblem, recipe: Recipe, reason: str) -> Plan:
    return Plan(
        problem=problem,
        recipe=recipe,
        backend="numpy",
        kernel="emulator",
        key_tile=recipe.key_block if recipe.p_reference == "tile" else _EMULATOR_KEY_TILE,
        reasons=(reason,),
    )


def _cuda_plan(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo, choice: KernelChoice) -> Plan:
    packing = make_packing(problem, recipe)
    work = problem.batch * problem.heads * -(-problem.q_len // choice.rows)
    flush_bytes = 4 * problem.batch * problem.heads * packing.q_len * packing.head_dim if choice.flush else 0
    quantize_bytes = plan_quantize(problem, recipe, False).scratch_bytes
    cuda = CudaPlan(
        device=device,
        source=choice.source,
        defines=(*choice.defines, f"SHARED_BYTES={choice.shared_bytes}", f"PARAMS_BYTES={ATTENTION_PARAMS_BYTES}"),
        grid=min(work, device.multiprocessors) if choice.persistent else work,
        threads=choice.threads,
        shared_bytes=choice.shared_bytes,
        packing=packing,
        scratch_bytes=max(flush_bytes, quantize_bytes),
        flush=choice.flush,
        boxes=choice.boxes,
    )
    return Plan(
        problem=problem,
        recipe=recipe,
        backend="cuda",
        kernel=choice.source,
        key_tile=choice.keys,
        reasons=(choice.reason,),
        cuda=cuda,
    )
