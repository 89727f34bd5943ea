"""Rows of the study ``speed``: the benchmark's reports laid out flat, with what bounds our kernels beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.report import CaseResult, Entry, Report
from cupy_intfa.study.rate_model import BOUNDS, MEASURED, PLANNED, attention_sm90_was_there, nearest_bound
from cupy_intfa.study.report import load_study
from cupy_intfa.study.study import Row, Rows, pick

_DISTURBED = 0.1  # of a rate: its quartiles lie farther apart where something else used the host or the chip
EARLIER = "an earlier date"
PLAIN, CAUSAL = "no mask", "causal"


def choose_reports(reports: Iterable[Report], suites: tuple[str, ...]) -> list[Report]:
    """Choose the latest report of each suite.

    Parameters
    ----------
    reports : iterable of Report
        Of the benchmark.
    suites : tuple of str
        In the order wanted.

    Returns
    -------
    list of Report
        Of those suites that there are.

    Raises
    ------
    FileNotFoundError
        If there is none of them.
    """
    latest = {report.suite: report for report in sorted(reports, key=lambda one: one.date)}
    found = [latest[name] for name in suites if name in latest]
    if not found:
        raise FileNotFoundError(f"no report of {', '.join(suites)}: run python -m cupy_intfa bench on a GPU")
    return found


def load_roofline(folder: Path) -> Rows:
    """Read what the kernels are bounded by on an H200.

    Parameters
    ----------
    folder : Path
        With the result of the study ``architectures``.

    Returns
    -------
    sequence of mapping
        Its rows of the H200; none where it was not run.
    """
    try:
        return pick(load_study("architectures", folder).rows, arch=MEASURED)
    except FileNotFoundError:
        return []


def make_rows(reports: Iterable[Report], roofline: Rows) -> list[Row]:
    """Lay reports out.

    Parameters
    ----------
    reports : iterable of Report
        Of the benchmark.
    roofline : sequence of mapping
        As `load_roofline` gives it.

    Returns
    -------
    list of mapping
        One for each case, contender and form, with the bounds beside our kernels. Of the reports that have a case, the
        one whose quartiles lie closest is taken, for all contenders; what another says of a rate stands under
        ``tops_again``, unless its quartiles lie so far apart that something else disturbed it.
    """
    found: dict[tuple[Any, ...], list[list[Row]]] = {}
    for report in reports:
        for result in report.results:
            case = result.case
            found.setdefault((case.causal, case.head_dim, case.kv_len), []).append(
                list(_rows_of_case(report, result, roofline))
            )
    return [row for measured in found.values() for row in _choose(measured)]


def _choose(measured: list[list[Row]]) -> Iterator[Row]:
    """Choose of the rows that several reports have of a case."""
    chosen, *others = sorted(measured, key=lambda rows: max(map(_share_apart, rows)))
    again = {
        (row["contender"], row["form"]): row["tops"]
        for row in (others[0] if others else ())
        if row["measured_on"] != EARLIER and _share_apart(row) < _DISTURBED
    }
    for row in chosen:
        cited = row["measured_on"] == EARLIER
        yield {**row, "tops_again": None if cited else again.get((row["contender"], row["form"]))}


def _share_apart(row: Row) -> float:
    return float(row["tops_spread"] / row["tops"]) if row["tops_spread"] is not None else 0.0


def _rows_of_case(report: Report, result: CaseResult, roofline: Rows) -> Iterator[Row]:
    case = result.case
    shape = {"mask": CAUSAL if case.causal else PLAIN, "head_dim": case.head_dim, "keys": case.kv_len}
    on = report.measured_on
    for name, entry in result.entries.items():
        bounds = _bounds_of(report, name, case.head_dim, roofline)
        for form, tops, spread, error in _rates(case, entry):
            yield {
                **shape,
                "contender": name,
                "form": form,
                "case": str(case),
                "suite": report.suite,
                "tops": tops,
                "tops_spread": spread,
                "ms": case.operations / tops / 1e9,
                "relative_rmse": error,
                "measured_on": EARLIER if entry.cited and not entry.forms else on,
                **(bounds if form == "kernel" else dict.fromkeys(bounds)),
            }


def _rates(case: Case, entry: Entry) -> Iterator[tuple[str, float, float | None, float | None]]:
    """List the forms of a contender with TOPS, quartile range and error; cited ones where none was measured."""
    for form, measured in entry.forms.items():
        if measured.tops is not None:
            spread = case.tops(measured.timing.q1_ms) - case.tops(measured.timing.q3_ms)
            yield form, measured.tops, spread, measured.relative_rmse
    if not entry.forms:
        yield from ((form, tops, None, None) for form, tops in entry.cited.items())


def _bounds_of(report: Report, name: str, head_dim: int, roofline: Rows) -> dict[str, str | float | None]:
    """Give what bounds the kernel that ran a preset of ours; None for a rival, or where it was not counted."""
    ran = {"backend": PLANNED} if attention_sm90_was_there(report) else {"kernel": "attention_sm80"}
    for row in pick(roofline, recipe=name, head_dim=head_dim, **ran):
        bound = nearest_bound(row)
        return {
            "kernel": row["kernel"],
            **{bound_name: row[bound_name] for bound_name in BOUNDS},
            "nearest": bound[0] if bound else None,
        }
    return dict.fromkeys(("kernel", *BOUNDS, "nearest"))


def seen_as(rows: Rows, form: str) -> list[Row]:
    """Select one row for each contender and case: of a form, or the only one of a contender that quantises nothing.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    form : {"kernel", "e2e"}
        From tensors already quantised, or from 16-bit ones.

    Returns
    -------
    list of mapping
        In their order.
    """
    quantises = {row["contender"] for row in rows if row["form"] == "kernel"}
    return [row for row in rows if row["form"] == form or row["contender"] not in quantises]


def gains(rows: Rows, ours: str, rival: str, form: str, head_dim: int, mask: str = PLAIN) -> dict[int, float]:
    """Divide our rate by a rival's.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    ours, rival : str
        Contenders.
    form : {"kernel", "e2e"}
        As in `seen_as`.
    head_dim : int
        D.
    mask : str
        ``no mask`` or ``causal``.

    Returns
    -------
    dict of int to float
        By length, how many times as fast we are.
    """
    found = pick(seen_as(rows, form), head_dim=head_dim, mask=mask)
    theirs = {row["keys"]: row["tops"] for row in pick(found, contender=rival)}
    mine = pick(found, contender=ours)
    return {row["keys"]: row["tops"] / theirs[row["keys"]] for row in mine if row["keys"] in theirs}
