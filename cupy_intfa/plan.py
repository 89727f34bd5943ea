"""The plan: which kernel runs a problem, with which tiles, and why. A pure function of plain values."""

from __future__ import annotations

from dataclasses import dataclass

from cupy_intfa.problem import AttentionProblem
from cupy_intfa.recipe import Recipe

BACKENDS = ("auto", "numpy", "cuda")
_EMULATOR_KEY_TILE = 128  # the key tile of the tensor-core kernels, so that both backends round alike


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
    """

    problem: AttentionProblem
    recipe: Recipe
    backend: str
    kernel: str
    key_tile: int
    reasons: tuple[str, ...] = ()

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
        return "\n".join([*lines, *(f"  because {reason}" for reason in self.reasons)])


def make_plan(problem: AttentionProblem, recipe: Recipe, backend: str = "auto") -> Plan:
    """Choose what runs.

    Parameters
    ----------
    problem : AttentionProblem
        A validated problem.
    recipe : Recipe
        The numerics.
    backend : {"auto", "numpy", "cuda"}
        What the caller asked for.

    Returns
    -------
    Plan
        The choice and its reasons.

    Raises
    ------
    ValueError
        For an unknown backend.
    NotImplementedError
        For ``backend="cuda"``: this version has no CUDA kernels yet.

    Examples
    --------
    >>> from cupy_intfa.problem import make_problem
    >>> from cupy_intfa.recipe import PRESETS
    >>> print(make_plan(make_problem(*[(1, 2, 8, 4)] * 3, ("float32",) * 3), PRESETS["fast"]))
    numpy: emulator, key tile 128, recipe fast
      q (1, 2, 8, 4), k and v (1, 2, 8, 4), float32, layout bhsd, mask: none, scale 0.5
      2.048e-06 Gop in both products
      because backend='auto' and this version has no CUDA kernels yet
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {BACKENDS}")
    if backend == "cuda":
        raise NotImplementedError("backend='cuda': this version has no CUDA kernels yet; use 'auto' or 'numpy'")
    why = "backend='numpy' was asked for"
    if backend == "auto":
        why = "backend='auto' and this version has no CUDA kernels yet"
    return Plan(
        problem=problem,
        recipe=recipe,
        backend="numpy",
        kernel="emulator",
        key_tile=_EMULATOR_KEY_TILE,
        reasons=(why,),
    )
