"""Run suites: case by case, all contenders in turn."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cupy_intfa.backends import numpy_dtype
from cupy_intfa.bench import accuracy, bandwidth, first_call, stamp
from cupy_intfa.bench.cases import Case, Suite
from cupy_intfa.bench.cited import cited_entries
from cupy_intfa.bench.contenders import OURS, Contender, Forms, Inputs, first_line
from cupy_intfa.bench.report import CaseResult, Entry, Measured, Report
from cupy_intfa.bench.rivals import RIVALS
from cupy_intfa.bench.timing import Budget, Call, EventTimer, Timer, host_timer, interleave
from cupy_intfa.device import default_device

CONTENDERS: tuple[Contender, ...] = (*OURS, *RIVALS)
_MOST_SETS = 8

Entries = dict[str, Entry]


def choose_contenders(names: Sequence[str] | None) -> tuple[Contender, ...]:
    """Look contenders up by name.

    Parameters
    ----------
    names : sequence of str or None
        Names; None for all.

    Returns
    -------
    tuple of Contender
        In the order of `CONTENDERS`.

    Raises
    ------
    ValueError
        For a name that is none.

    Examples
    --------
    >>> [contender.name for contender in choose_contenders(["FA2 fp16", "fast"])]
    ['fast', 'FA2 fp16']
    """
    if names is None:
        return CONTENDERS
    known = [contender.name for contender in CONTENDERS]
    for name in names:
        if name not in known:
            raise ValueError(f"contender {name!r} is unknown: expected {', '.join(known)}")
    return tuple(contender for contender in CONTENDERS if contender.name in names)


def run_suite(
    suite: Suite,
    contenders: Sequence[Contender] = CONTENDERS,
    budget: Budget | None = None,
    tell: Callable[[str], None] = lambda text: None,
    commit: str | None = None,
) -> Report:
    """Measure a suite on the current GPU.

    Parameters
    ----------
    suite : Suite
        What is measured.
    contenders : sequence of Contender
        Who; rivals that cannot be imported are reported as missing, with the reason.
    budget : Budget, optional
        How long.
    tell : callable
        Takes a line about each case as it is done.
    commit : str, optional
        What ``git describe --always --dirty`` printed, for files that were copied away from their checkout.

    Returns
    -------
    Report
        With the machine, the versions and the commit.

    Raises
    ------
    NotImplementedError
        Where there is no GPU.
    """
    device = default_device()
    if isinstance(device, str):
        raise NotImplementedError(f"the benchmark needs an NVIDIA GPU and CuPy: there is no GPU ({device})")
    budget = budget or Budget()
    before, results = stamp.gpu_state(device.ordinal), []
    for case in suite.cases:
        entries = _MEASURE[suite.measures](case, contenders, budget)
        if suite.measures == "speed":
            entries |= _cite(entries, cited_entries(case, device.name))
        results.append(CaseResult(case=case, entries=entries))
        tell(f"{suite.name}: {case}: {sum(not entry.missing for entry in entries.values())} contenders")
    return Report(
        suite=suite.name,
        measures=suite.measures,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        **stamp.commit(commit),
        gpu=device.name,
        before=before,
        after=stamp.gpu_state(device.ordinal),
        versions=stamp.versions(c.package for c in contenders if c.package),
        results=tuple(results),
    )


def _cite(entries: Entries, cited: Entries) -> Entries:
    """Give the cited rows of contenders that were not measured, with the reason why they were not."""
    absent = {name: entries.get(name, Entry(missing="not in this run")) for name in cited}
    return {name: replace(cited[name], missing=entry.missing) for name, entry in absent.items() if entry.missing}


def attend(
    case: Case, contenders: Sequence[Contender], budget: Budget, timer: Timer, sets: Sequence[Inputs]
) -> Entries:
    """Measure contenders on one case: first the error, then all of them in turn.

    Parameters
    ----------
    case : Case
        The shape.
    contenders : sequence of Contender
        Who.
    budget : Budget
        How long.
    timer : Timer
        Takes the time of a call.
    sets : sequence of Inputs
        Sets of inputs that the rounds go through.

    Returns
    -------
    dict of str to Entry
        By contender; without times where a contender cannot run the case, and why.
    """
    samples = accuracy.choose_rows(case)
    expected = accuracy.expected_rows(case, samples, sets[0])
    entries: Entries = {}
    calls: dict[tuple[str, str], list[Call]] = {}
    errors: dict[tuple[str, str], float] = {}
    for contender in contenders:
        try:
            forms = _prepare(contender, case, sets)
            found = {form: accuracy.relative_rmse(_warm_up(forms, form), samples, expected) for form in forms[0].named}
        except Exception as error:  # a rival may raise anything, and the others must still be measured
            reason = str(error) if isinstance(error, NotImplementedError) else first_line(error)
            entries[contender.name] = Entry(missing=reason)
            continue
        entries[contender.name] = Entry()
        for form, relative_rmse in found.items():
            calls[contender.name, form] = [one.named[form] for one in forms]
            errors[contender.name, form] = relative_rmse
    for (name, form), timing in interleave(calls, timer, budget).items():
        measured = Measured(timing=timing, tops=case.tops(timing.median_ms), relative_rmse=errors[name, form])
        entries[name] = replace(entries[name], forms={**entries[name].forms, form: measured})
    return entries


def _prepare(contender: Contender, case: Case, sets: Sequence[Inputs]) -> list[Forms]:
    if reason := contender.missing():
        raise NotImplementedError(reason)
    return [contender.prepare(case, inputs) for inputs in sets]


def _warm_up(forms: Sequence[Forms], form: str) -> Any:
    """Call a form on every set of inputs, and give the output on the first."""
    outs = [one.named[form]() for one in forms]
    return forms[0].decode(outs[0])


def make_inputs(case: Case, seed: int) -> Inputs:
    """Draw q, k and v of N(0, 1) on the GPU, and round them once."""
    import cupy

    rng = cupy.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(case.dtype))
        for shape in (case.q_shape, case.kv_shape, case.kv_shape)
    )
    return q, k, v


def count_sets(case: Case, cache_bytes: int) -> int:
    """Give how many sets of inputs it takes that one of them cannot be in the cache when its turn comes again.

    Parameters
    ----------
    case : Case
        The shape.
    cache_bytes : int
        Size of the L2 cache.

    Returns
    -------
    int
        At least 1, at most 8.

    Examples
    --------
    >>> from cupy_intfa.bench.cases import square
    >>> [count_sets(square(batch=4, heads=32, length=n, head_dim=64), 60 << 20) for n in (256, 1024, 4096)]
    [8, 3, 1]
    """
    nbytes = 2 * case.batch * case.head_dim * (case.heads * case.q_len + 2 * case.kv_heads * case.kv_len)
    return min(max(1, -(-2 * cache_bytes // nbytes)), _MOST_SETS)


def _speed(case: Case, contenders: Sequence[Contender], budget: Budget) -> Entries:
    import cupy

    sets = count_sets(case, cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["l2CacheSize"])
    entries = attend(case, contenders, budget, EventTimer(), [make_inputs(case, seed) for seed in range(sets)])
    _free()
    return entries


def _host(case: Case, contenders: Sequence[Contender], budget: Budget) -> Entries:
    entries = attend(case, contenders, budget, host_timer, [make_inputs(case, 0)])
    return {name: replace(entry, forms=_without_tops(entry.forms)) for name, entry in entries.items()}


def _without_tops(forms: Mapping[str, Measured]) -> dict[str, Measured]:
    """Leave a rate out that says nothing: the host's time is not the GPU's."""
    return {name: replace(measured, tops=None) for name, measured in forms.items()}


def _first_call(case: Case, contenders: Sequence[Contender], budget: Budget) -> Entries:
    entries: Entries = {}
    for contender in contenders:
        if contender.package is None:
            try:
                found = first_call.measure(case, contender.name)
                entries[contender.name] = Entry(forms={form: Measured(timing=t) for form, t in found.items()})
            except OSError as error:  # the preset has no kernel on this GPU
                entries[contender.name] = Entry(missing=first_line(error))
    return entries


def _bandwidth(case: Case, contenders: Sequence[Contender], budget: Budget) -> Entries:
    presets = [contender.name for contender in contenders if contender.package is None]
    entries = bandwidth.measure(make_inputs(case, 0), presets, EventTimer(), budget)
    _free()
    return entries


def _free() -> None:
    """Give the memory of one case back, so that torch and CuPy do not starve each other in the next."""
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


_MEASURE: Mapping[str, Callable[[Case, Sequence[Contender], Budget], Entries]] = {
    "speed": _speed,
    "host": _host,
    "first_call": _first_call,
    "bandwidth": _bandwidth,
}
