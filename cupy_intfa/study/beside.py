"""Rivals on the trials of a study: run where they can be imported, else a row that says why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.bench.accuracy import to_host
from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.contenders import Contender, first_line
from cupy_intfa.bench.rivals import RIVALS
from cupy_intfa.metrics import Comparison, compare
from cupy_intfa.study.errors import EMULATOR, compare_all
from cupy_intfa.study.sage import NAME as SAGE2
from cupy_intfa.study.sage import attend_as_sage2
from cupy_intfa.study.study import Row
from cupy_intfa.study.trials import Trial, make_trial

Inputs = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def make_common_trial(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], backend: str) -> Trial:
    """Make a trial of what rivals read: inputs rounded to float16, so that all see the same values.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D)
        Of any real dtype.
    backend : str
        Where float64 attention runs, as in `attend_exactly`.

    Returns
    -------
    Trial
        With the output in float64.
    """
    return make_trial(q.astype(np.float16), k.astype(np.float16), v.astype(np.float16), backend)


def damage(comparisons: Sequence[Comparison]) -> dict[str, float | int | None]:
    """Summarise comparisons of which some may not be finite.

    Parameters
    ----------
    comparisons : sequence of Comparison
        One for each trial.

    Returns
    -------
    dict
        Mean and spread of the relative RMSE of the trials that are finite, None if none is; and under ``not_finite``
        how many are not, where the exact output is.

    Examples
    --------
    >>> damage([compare([1.0], [2.0]), compare([float("nan")], [2.0])])
    {'relative_rmse': 0.5, 'relative_rmse_spread': 0.0, 'not_finite': 1}
    """
    errors = [comparison.relative_rmse for comparison in comparisons if comparison.non_finite is None]
    return {
        "relative_rmse": fmean(errors) if errors else None,
        "relative_rmse_spread": max(errors) - min(errors) if errors else None,
        "not_finite": len(comparisons) - len(errors),
    }


def measure_rivals(case: str, trials: Sequence[Trial], names: Sequence[str]) -> Iterator[Row]:
    """Measure the scheme of SageAttention 2, emulated, and rivals.

    Parameters
    ----------
    case : str
        What the rows call these inputs.
    trials : sequence of Trial
        From `make_common_trial`.
    names : sequence of str
        Of contenders of the benchmark.

    Yields
    ------
    mapping
        ``case``, ``recipe`` (who), `damage`, ``missing`` (why it was not run, or None) and ``ran``.
    """
    found = compare_all([attend_as_sage2(t.q, t.k, t.v) for t in trials], trials)
    yield {"case": case, "recipe": SAGE2, **damage(found), "missing": None, "ran": EMULATOR}
    for rival in RIVALS:
        if rival.name in names:
            yield {"case": case, "recipe": rival.name, **_ask(rival, trials), "ran": rival.name}


def packages_of(names: Sequence[str]) -> tuple[str, ...]:
    """Name the distributions of rivals, for the stamp of a report.

    Parameters
    ----------
    names : sequence of str
        As in `measure_rivals`.

    Returns
    -------
    tuple of str
        Each once.

    Examples
    --------
    >>> packages_of(("FA3 fp8",))
    ('fa3-fwd',)
    """
    return tuple(dict.fromkeys(rival.package for rival in RIVALS if rival.name in names and rival.package))


def _ask(rival: Contender, trials: Sequence[Trial]) -> Row:
    """Run a rival where it can be imported, or say why it was not run."""
    nothing = damage([])
    if reason := rival.missing():
        return {**nothing, "missing": reason}
    try:
        found = [compare(_run(rival, trial), trial.exact) for trial in trials]
    except Exception as error:  # a rival may raise anything, and the others must still be measured
        return {**nothing, "missing": first_line(error)}
    return {**damage(found), "missing": None}


def _run(rival: Contender, trial: Trial) -> NDArray[Any]:
    import cupy

    batch, heads, q_len, head_dim = trial.q.shape
    kv_len = trial.k.shape[2]
    case = Case(batch=batch, heads=heads, kv_heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim)
    q, k, v = (cupy.asarray(x.astype(np.float16)) for x in (trial.q, trial.k, trial.v))
    forms = rival.prepare(case, (q, k, v))
    return to_host(forms.decode(next(iter(forms.named.values()))()))
