"""The error of a recipe on trials, against attention in float64: what most studies measure."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention, explain
from cupy_intfa.metrics import Comparison, compare
from cupy_intfa.recipe import PRESETS, Recipe, get_recipe
from cupy_intfa.study.trials import Trial

EMULATOR = "emulator"
"""What a row says that ran where no kernel did."""

SHORT_NAMES = {"mean_relative_error": "mre"}


def study_recipes() -> dict[str, Recipe]:
    """Give every preset, and ``fast`` with P in two bytes.

    Returns
    -------
    dict of str to Recipe
        By the name that rows use.
    """
    return {**PRESETS, "int8x2": get_recipe("fast", pv="int8x2")}


def find_kernel(recipe: Recipe, trial: Trial, backend: str) -> str:
    """Name what runs a recipe.

    Parameters
    ----------
    recipe : Recipe
        The numerics.
    trial : Trial
        Of the sizes in question.
    backend : str
        As in `attention`.

    Returns
    -------
    str
        A kernel of the GPU, or ``emulator``.
    """
    return explain(trial.q, trial.k, trial.v, recipe=recipe, backend=backend).kernel


def run_trials(recipe: Recipe, trials: Sequence[Trial], backend: str) -> list[NDArray[np.float32]]:
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
    list of ndarray (B, H, S, D), float32
        The outputs.
    """
    return [attention(t.q, t.k, t.v, recipe=recipe, backend=backend) for t in trials]


def compare_all(outs: Sequence[NDArray[Any]], trials: Sequence[Trial]) -> list[Comparison]:
    """Compare outputs with what they should be, side by side: all rows of 16k tokens are millions of elements.

    Parameters
    ----------
    outs : sequence of ndarray (B, H, S, D)
        One for each trial.
    trials : sequence of Trial
        In the same order.

    Returns
    -------
    list of Comparison
        In that order.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(compare, outs, (trial.exact for trial in trials)))


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
    found = compare_all(run_trials(recipe, trials, backend), trials)
    return {**summarise(found, "relative_rmse"), "ran": find_kernel(recipe, trials[0], backend)}
