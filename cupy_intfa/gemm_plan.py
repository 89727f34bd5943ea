"""The plan of an INT8 matrix product: which rung of the ladder runs, what is copied first, and why."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType

from cupy_intfa.device import DeviceInfo
from cupy_intfa.gemm_ladder import FEW_ROWS, RUNGS, UNIT, GemmProblem, Matrix, Rung
from cupy_intfa.launch import OUT_DTYPES

DTYPES = MappingProxyType({**{name: OUT_DTYPES[name] for name in ("float16", "bfloat16", "float32")}, "int32": 4})
"""What the product may be, and its number in kernels_cu/intfa/gemm_config.cuh."""
BACKENDS = ("auto", "numpy", "cuda", *RUNGS)
PARAMS = struct.Struct("=6Q4q6i")  # GemmParams in kernels_cu/intfa/gemm_params.cuh


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A launch of gemm_pack, which makes rows of depth at multiples of 16 bytes.

    Parameters
    ----------
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    grid : int
        Blocks of 256 threads.
    nbytes : int
        Of the copy.
    reason : str
        Why the operand is not read where it is.
    """

    defines: tuple[str, ...]
    grid: int
    nbytes: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class GemmPlan:
    """What `int8_matmul` would run. ``print(plan)`` explains it.

    Parameters
    ----------
    problem : GemmProblem
        Shapes, layouts and output.
    rung : str
        ``"numpy"``, or a rung of the ladder.
    reasons : tuple of str
        Why this one.
    kernel : Rung or None
        The kernel, of a GPU.
    device : DeviceInfo or None
        Where it runs.
    copies : tuple of Copy or None
        What is done to A and to B first.
    grid : int
        Blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_intfa import explain_int8_matmul
    >>> explain_int8_matmul(np.zeros((2, 8), np.int8), np.zeros((8, 4), np.int8), backend="numpy").operations
    128
    """

    problem: GemmProblem
    rung: str
    reasons: tuple[str, ...]
    kernel: Rung | None = None
    device: DeviceInfo | None = None
    copies: tuple[Copy | None, Copy | None] = (None, None)
    grid: int = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        m, n, k = self.problem.shape
        return 2 * m * n * k

    @property
    def defines(self) -> tuple[str, ...]:
        """Macros of the kernel, without the prefix ``INTFA_``."""
        out = (f"OUT={DTYPES[self.problem.out_dtype]}", f"PARAMS_BYTES={PARAMS.size}")
        if self.kernel is None or not self.kernel.shared_bytes:
            return out
        t = self.kernel.tile
        tile = (f"TILE_M={t.m}", f"TILE_N={t.n}", f"TILE_K={t.k}", f"RING={t.ring}")
        warps = (f"WARPS_M={t.warps_m}", f"WARPS_N={t.warps_n}")
        return (*out, *tile, *warps, f"SHARED_BYTES={self.kernel.shared_bytes}")

    def __str__(self) -> str:
        """Explain the plan in a few lines."""
        m, n, k = self.problem.shape
        lines = [f"{self.rung}: ({m}, {k}) @ ({k}, {n}) -> {self.problem.out_dtype}, {self.operations / 1e9:.4g} Gop"]
        if self.kernel and self.device:
            t = self.kernel.tile
            lines.append(
                f"  on {self.device.name} ({self.device.arch}): {self.kernel.source}, {self.grid} blocks of "
                f"{self.kernel.threads} threads and {self.kernel.shared_bytes} bytes of shared memory, "
                f"tile {t.m} x {t.n} x {t.k}, {t.ring} stages"
            )
            for name, copy in zip("ab", self.copies, strict=True):
                lines.append(f"  {name}: {f'copied ({copy.nbytes} bytes), {copy.reason}' if copy else 'read in place'}")
        return "\n".join([*lines, *(f"  because {reason}" for reason in self.reasons)])


def make_gemm_plan(problem: GemmProblem, backend: str = "auto", device: DeviceInfo | str = "none") -> GemmPlan:
    """Choose what runs.

    Parameters
    ----------
    problem : GemmProblem
        A validated product, no side of it 0.
    backend : {"auto", "numpy", "cuda", "naive", "dp4a", "wmma", "sm80", "sm90"}
        ``auto`` is the GPU where there is one, ``cuda`` insists on it, the others insist on one rung.
    device : DeviceInfo or str
        The GPU, or why there is none.

    Returns
    -------
    GemmPlan
        The choice and its reasons.

    Raises
    ------
    ValueError
        For an unknown backend.
    NotImplementedError
        Where the backend insists, and there is no GPU, or the rung does not run on it.

    Examples
    --------
    >>> a, b = (Matrix(rows=rows, depth=64, row_stride=64, depth_stride=1) for rows in (8, 100))
    >>> print(make_gemm_plan(GemmProblem(a=a, b=b, out_dtype="int32")))
    numpy: (8, 64) @ (64, 100) -> int32, 0.0001024 Gop
      because backend='auto', and there is no GPU (none)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {BACKENDS}")
    if backend == "numpy":
        return GemmPlan(problem=problem, rung="numpy", reasons=("backend='numpy' was asked for",))
    if isinstance(device, str):
        if backend != "auto":
            raise NotImplementedError(f"backend={backend!r}: there is no GPU ({device}); use backend='numpy'")
        return GemmPlan(problem=problem, rung="numpy", reasons=(f"backend='auto', and there is no GPU ({device})",))
    reasons: list[str] = []
    few = problem.a.rows <= FEW_ROWS
    order = (backend,) if backend in RUNGS else ("sm80", "dp4a", "naive") if few else ("sm90", "sm80", "dp4a", "naive")
    for name in order:
        found = RUNGS[name](problem, device)
        if isinstance(found, Rung):
            return _with_copies(problem, name, found, device, (found.reason, *reasons))
        reasons.append(found)
    raise NotImplementedError(f"backend={backend!r}: {'; '.join(reasons)}; use backend='cuda'")


def _with_copies(problem: GemmProblem, name: str, rung: Rung, device: DeviceInfo, reasons: tuple[str, ...]) -> GemmPlan:
    tiles = -(-problem.a.rows // rung.tile.m) * -(-problem.b.rows // rung.tile.n)
    copies = (None, None) if name == "naive" else (_copy(problem.a, rung.boxes), _copy(problem.b, rung.boxes))
    return GemmPlan(
        problem=problem,
        rung=name,
        reasons=reasons,
        kernel=rung,
        device=device,
        copies=copies,
        grid=min(tiles, device.multiprocessors) if rung.boxes else tiles,
    )


def _copy(x: Matrix, boxes: bool) -> Copy | None:
    """Plan the copy of an operand; None where rows of depth can be read in place."""
    if x.depth_stride != 1:
        reason = "its rows of depth do not lie side by side"
    elif x.depth % UNIT or x.row_stride % UNIT or x.offset:
        reason = "its rows do not begin and end at multiples of 16 bytes"
    elif boxes and x.row_stride != x.depth:
        reason = "there are gaps between its rows, which a tensor map does not step over"
    else:
        return None
    transpose = x.row_stride == 1 and x.depth_stride != 1
    words = transpose and x.rows % 4 == 0 and x.depth_stride % 4 == 0 and x.offset % 4 == 0
    units = x.pitch // UNIT
    grid = -(-x.rows // 128) * -(-units // 4) if transpose else -(-x.rows * units // 256)
    return Copy(
        defines=(f"TRANSPOSE={int(transpose)}", f"VECTOR={int(words)}"),
        grid=grid,
        nbytes=x.rows * x.pitch,
        reason=reason,
    )
