"""The error of a recipe on inputs drawn from seeds, against attention in float64: what most studies measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention, explain
from cupy_intfa.data.families import make_qkv
from cupy_intfa.demo import layer_samples
from cupy_intfa.metrics import Comparison, compare
from cupy_intfa.recipe import PRESETS, Recipe, get_recipe
from cupy_intfa.reference import oracle

REAL = "real"
"""The set of data that is the layers of a transformer on real text, and not drawn from a seed."""

SHORT_NAMES = {"mean_relative_error": "mre"}


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs and what attention on them is in float64.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D), float32
        Queries, keys and values. Rows do not feel each other, so a few queries stand for all.
    exact : ndarray (B, H, S, D), float64
        The output.
    """

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    exact: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Settings of a study that looks at several sets of data.

    Parameters
    ----------
    data : tuple of str
        Names of the sets.
    heads, queries, keys, head_dim : int
        Of each trial, where the set leaves a choice.
    seeds : tuple of int
        One trial for each.
    """

    data: tuple[str, ...]
    heads: int = 2
    queries: int = 128
    keys: int = 2048
    head_dim: int = 64
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    @property
    def shape(self) -> dict[str, int]:
        """What `make_qkv` calls these sizes."""
        return {"heads": self.heads, "q_len": self.queries, "kv_len": self.keys, "head_dim": self.head_dim}

    def draw(self, data: str) -> list[Trial]:
        """Make the trials of a set by `make_trials`."""
        return make_trials(data, self.seeds, **self.shape)


def make_trial(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> Trial:
    """Compute what a recipe is compared with.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D)
        Of any real dtype; kept in float32, because an output rounded to 16 bits would hide small errors.

    Returns
    -------
    Trial
        With the output in float64.
    """
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    return Trial(q, k, v, oracle.attention(q, k, v)[0])


def make_trials(data: str, seeds: Iterable[int], **shape: Any) -> list[Trial]:
    """Draw the inputs of a set of data.

    Parameters
    ----------
    data : str
        A family of `cupy_intfa.data.families`, or ``"real"``.
    seeds : iterable of int
        One trial for each; the real activations give one for each layer instead.
    **shape
        ``heads``, ``kv_heads``, ``q_len``, ``kv_len`` and ``head_dim`` of `make_qkv`; the real ones have their own.

    Returns
    -------
    list of Trial
        In the order of the seeds.

    Examples
    --------
    >>> [trial.exact.shape for trial in make_trials("normal", (0, 1), heads=2, q_len=4, kv_len=16, head_dim=8)]
    [(1, 2, 4, 8), (1, 2, 4, 8)]
    """
    if data == REAL:
        return [make_trial(x.q, x.k, x.v) for x in layer_samples()]
    return [make_trial(*make_qkv(data, seed=seed, **shape)) for seed in seeds]


def study_recipes() -> dict[str, Recipe]:
    """Give every preset, and ``fast`` with P in two bytes.

    Returns
    -------
    dict of str to Recipe
        By the name that rows use.
    """
    return {**PRESETS, "int8x2": get_recipe("fast", pv="int8x2")}


def run_trials(recipe: Recipe, trials: Sequence[Trial], backend: str) -> tuple[list[NDArray[np.float32]], str]:
    """Run a recipe on every trial.

    Parameters
    ----------
    recipe : Recipe
        The numerics.
    trials : sequence of Trial
        The inputs.
    backend : str
        As in `attention`.

    Returns
    -------
    outs : list of ndarray (B, H, S, D), float32
        The outputs.
    ran : str
        A kernel of the GPU, or ``emulator``.
    """
    outs = [attention(t.q, t.k, t.v, recipe=recipe, backend=backend) for t in trials]
    return outs, explain(trials[0].q, trials[0].k, trials[0].v, recipe=recipe, backend=backend).kernel


def summarise(comparisons: Sequence[Comparison], *metrics: str) -> dict[str, float]:
    """Average over trials.

    Parameters
    ----------
    comparisons : sequence of Comparison
        One for each trial.
    *metrics : str
        Fields of `Comparison`.

    Returns
    -------
    dict of str to float
        For each metric its mean, and under its name with ``_spread`` the largest minus the smallest. The mean
        relative error is called ``mre``.

    Raises
    ------
    ArithmeticError
        If an output was not finite where it should be.

    Examples
    --------
    >>> summarise([compare([1.0, 3.0], [1.0, 2.0]), compare([1.0, 2.0], [1.0, 2.0])], "relative_l1")
    {'relative_l1': 0.16666666666666666, 'relative_l1_spread': 0.3333333333333333}
    """
    for comparison in comparisons:
        if comparison.non_finite is not None:
            raise ArithmeticError(str(comparison.non_finite).splitlines()[0])
    found: dict[str, float] = {}
    for metric in metrics:
        values = [getattr(comparison, metric) for comparison in comparisons]
        name = SHORT_NAMES.get(metric, metric)
        found |= {name: fmean(values), f"{name}_spread": max(values) - min(values)}
    return found


def measure_error(recipe: Recipe, trials: Sequence[Trial], backend: str) -> dict[str, Any]:
    """Run a recipe on trials and average its relative RMSE.

    Parameters
    ----------
    recipe : Recipe
        The numerics.
    trials : sequence of Trial
        The inputs.
    backend : str
        As in `attention`.

    Returns
    -------
    dict
        As `summarise`, and under ``ran`` the kernel that ran, or ``emulator``.
    """
    outs, ran = run_trials(recipe, trials, backend)
    found = [compare(out, t.exact) for out, t in zip(outs, trials, strict=True)]
    return {**summarise(found, "relative_rmse"), "ran": ran}
