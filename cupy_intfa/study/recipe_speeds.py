"""How fast recipes are, beside their error: measured on a GPU, else read from the benchmark's report on the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.contenders import Contender, make_contender
from cupy_intfa.bench.report import Entry, load_reports
from cupy_intfa.bench.runner import attend, make_inputs
from cupy_intfa.bench.timing import Budget, EventTimer
from cupy_intfa.device import gpu_for
from cupy_intfa.recipe import PRESETS, Recipe
from cupy_intfa.study.compile_ahead import compile_ahead
from cupy_intfa.study.report import RESULTS

UNKNOWN: Mapping[str, float | str | None] = {"tops": None, "tops_from": None}


def find_speeds(
    recipes: Mapping[str, Recipe], case: Case, backend: str, folder: Path = RESULTS
) -> dict[str, Mapping[str, float | str | None]]:
    """Give the speed of recipes on one case.

    Parameters
    ----------
    recipes : mapping of str to Recipe
        By name.
    case : Case
        The shape.
    backend : str
        As in `attention`; a GPU that it would use is measured.
    folder : Path
        Of the benchmark's reports, for where there is none. They know the presets alone.

    Returns
    -------
    dict of str to mapping
        By name, ``tops`` (10¹² operations per second from quantised tensors, None where no kernel runs the recipe or
        nobody measured it) and ``tops_from`` (the GPU, and the date if it was not now; or why there is none).
    """
    device = gpu_for(backend)
    if device is None:
        cited = _cited(case, folder)
        return {name: cited.get(recipe.name, UNKNOWN) for name, recipe in recipes.items()}
    compile_ahead(recipes.values(), [(case.q_shape, case.kv_shape)], backend, case.dtype)
    contenders = [_from_codes(make_contender(name, recipe)) for name, recipe in recipes.items()]
    entries = attend(case, contenders, Budget(), EventTimer(), [make_inputs(case, 0)])
    return {name: _speed(entry, device.name) for name, entry in entries.items()}


def _from_codes(contender: Contender) -> Contender:
    """Let a contender run from quantised tensors alone."""
    return replace(contender, prepare=lambda *given: replace(contender.prepare(*given), e2e=None))


def _cited(case: Case, folder: Path) -> dict[str, Mapping[str, float | str | None]]:
    """Read what the benchmark measured on a case, the latest report last."""
    reports = sorted(load_reports(folder), key=lambda report: report.date)
    return {
        name: _speed(result.entries[name], f"{report.gpu}, {report.date[:10]}")
        for report in reports
        if report.measures == "speed"
        for result in report.results
        if result.case == case
        for name in PRESETS
        if name in result.entries
    }


def _speed(entry: Entry, source: str) -> Mapping[str, float | str | None]:
    kernel = entry.forms.get("kernel")
    return {"tops": None, "tops_from": entry.missing} if kernel is None else {"tops": kernel.tops, "tops_from": source}
