"""The plan: which kernel runs a problem, with which tiles, and why. Pure functions of plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from cupy_intfa.device import DeviceInfo
from cupy_intfa.packing import KEY_BLOCK, Packing, make_packing
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.recipe import FLOAT8, Recipe

BACKENDS = ("auto", "numpy", "cuda")
NO_MASK = 0x3FFFFFFF  # kNoMask in kernels_cu/intfa/types.cuh
LONG_ROW = 65536  # keys; 255 · 127 · 65536 < 2^31: longer rows empty their int32 accumulators on the way
_EMULATOR_KEY_TILE = 64  # the key tile of the tensor-core kernels, so that both backends round alike


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
        Layout of the workspace.
    """

    device: DeviceInfo
    source: str
    defines: tuple[str, ...]
    grid: int
    threads: int
    shared_bytes: int
    packing: Packing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a call would run. ``print(plan)`` explains it.

    Parameters
    ----------
    problem : AttentionProblem
        Shapes, mask and scale.
    recipe : Recipe
        The numerics.
    backend : {"numpy", "cuda"}
        Where it runs.
    kernel : str
        Name of the kernel, or ``"emulator"``.
    key_tile : int
        B_c, keys per tile.
    reasons : tuple of str
        Why this one, and why not another.
    cuda : CudaPlan or None
        What the GPU needs.
    """

    problem: AttentionProblem
    recipe: Recipe
    backend: str
    kernel: str
    key_tile: int
    reasons: tuple[str, ...] = ()
    cuda: CudaPlan | None = None

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products: 4 · B · Hq · (visible pairs) · D."""
        p = self.problem
        return 4 * p.batch * p.heads * p.visible_pairs * p.head_dim

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
                f"  on {c.device.name} ({c.device.arch}): {c.grid} blocks of {c.threads} threads, {c.shared_bytes} bytes "
                f"of shared memory, workspace of {c.packing.nbytes} bytes",
                f"  compiled with {' '.join(c.defines)}",
            ]
        return "\n".join([*lines, *(f"  because {reason}" for reason in self.reasons)])


@dataclass(frozen=True)
class Tile:
    """Tile sizes of the tensor-core kernel: warps per block, 16-row tiles per warp, keys, stages, blocks to fit."""

    warps: int
    m_tiles: int
    keys: int
    stages: int
    min_blocks: int

    @property
    def rows(self) -> int:
        """B_r, rows of Q per block."""
        return 16 * self.m_tiles * self.warps


@lru_cache(maxsize=512)
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
    backend : {"auto", "numpy", "cuda"}
        What the caller asked for.
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
        For ``backend="cuda"`` where there is no GPU, or none of its kernels runs the recipe.

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
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {BACKENDS}")
    raise NotImplementedError
