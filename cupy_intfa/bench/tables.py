"""Reports as tables of text: for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cupy_intfa.bench.bandwidth import COPY
from cupy_intfa.bench.report import CaseResult, Entry, Measured, Report
from cupy_intfa.recipe import PRESETS

YARDSTICK = "FA2 fp16"  # what the paper compares with
_NONE = "–"
_CITED = "*"
_APART, _FAR = "~", 0.1  # quartiles that lie farther apart than this share of the median

_HEADS = {
    "speed": "TOPS",
    "host": "µs of the host for a call",
    "first_call": "ms until the first result",
    "bandwidth": "GB/s",
}


@dataclass(frozen=True)
class Table:
    """Text in rows and columns, and what stands below it.

    Parameters
    ----------
    head : tuple of str
        Names of the columns.
    rows : tuple of tuple of str
        A cell for each column.
    notes : tuple of str
        Sentences.
    stamp : str
        What it was measured on.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    stamp: str


def make_table(report: Report) -> Table:
    """Lay a report out, a row for each contender and a column for each case.

    Parameters
    ----------
    report : Report
        Of any suite.

    Returns
    -------
    Table
        Of text.
    """
    names = [name for name in _names(report) if any(_has_numbers(r.entries.get(name)) for r in report.results)]
    head, rows = [_HEADS[report.measures]], {name: [_label(name)] for name in names}
    for result in report.results:
        for title, cell in _columns(report, result):
            head.append(title)
            for name in names:
                rows[name].append(cell(result.entries.get(name, Entry())))
    if report.measures == "speed":
        head.append("error")
        for name in names:
            rows[name].append(_last_error(report, name))
    return Table(tuple(head), tuple(tuple(row) for row in rows.values()), tuple(_notes(report)), stamp(report))


def _names(report: Report) -> list[str]:
    return list(dict.fromkeys(name for result in report.results for name in result.entries))


def _has_numbers(entry: Entry | None) -> bool:
    return entry is not None and bool(entry.forms or entry.cited)


def _label(name: str) -> str:
    return f"`{name}`" if name in PRESETS else name


def _columns(report: Report, result: CaseResult) -> Iterator[tuple[str, Callable[[Entry], str]]]:
    """Give the columns of a case: their titles, and how a cell is made."""
    label = result.case.label
    if report.measures == "speed":
        yield label, lambda entry: _pair(entry, lambda measured: measured.tops)
    elif report.measures == "host":
        yield f"{label}, kernel / e2e", lambda entry: _pair(entry, lambda measured: 1e3 * measured.timing.median_ms)
    elif report.measures == "first_call":
        yield f"{label}, compiled", lambda entry: _number(entry.forms.get("compile"))
        yield f"{label}, from disk", lambda entry: _number(entry.forms.get("disk_cache"))
    else:
        copied = _gbps(result.entries.get(COPY, Entry()))
        yield label, lambda entry: f"{_gbps(entry):.0f}"
        yield f"{label}, of the copy", lambda entry: f"{100 * _gbps(entry) / copied:.0f} %" if copied else _NONE


def _pair(entry: Entry, value: Callable[[Measured], float | None]) -> str:
    """Give "kernel / e2e"; a contender that takes 16-bit tensors has one number for both."""
    found = {form: number for form, one in entry.forms.items() if (number := value(one)) is not None}
    mark = ""
    if not found and entry.cited:
        found, mark = dict(entry.cited), _CITED
    if not found:
        return _NONE
    shown = {form: f"{number:.0f}{mark or _apart(entry.forms[form])}" for form, number in found.items()}
    if set(shown) == {"e2e"}:
        return shown["e2e"]
    return " / ".join(shown.get(form, _NONE) for form in ("kernel", "e2e"))


def _apart(measured: Measured) -> str:
    timing = measured.timing
    return _APART if timing.q3_ms - timing.q1_ms > _FAR * timing.median_ms else ""


def _number(measured: Measured | None) -> str:
    return _NONE if measured is None else f"{measured.timing.median_ms:.0f}"


def _gbps(entry: Entry) -> float:
    return next((one.gbps for one in entry.forms.values() if one.gbps is not None), 0.0)


def _last_error(report: Report, name: str) -> str:
    """Give the error of the last case that a contender ran."""
    errors = [
        one.relative_rmse
        for result in report.results
        for one in result.entries.get(name, Entry()).forms.values()
        if one.relative_rmse is not None
    ]
    return f"{errors[-1]:#.2g}" if errors else _NONE


def _notes(report: Report) -> Iterator[str]:
    if report.measures == "speed":
        yield (
            "kernel / e2e: from tensors already quantised / from 16-bit ones, quantising included; one number for "
            "contenders that quantise nothing. TOPS: 4 · B · H · Sq · Skv · D, half of it when causal, by the median "
            "time. Error: relative RMSE against float64 on the same inputs, N(0, 1), in the last case that ran."
        )
    if report.measures == "host":
        yield (
            "torch SDPA is what torch picks itself; FA2 and cuDNN are picked by a context manager around each call, "
            "which is most of their cost here."
        )
    if any(_apart(one) for result in report.results for e in result.entries.values() for one in e.forms.values()):
        yield f"{_APART} quartiles more than {100 * _FAR:.0f} % of the median apart: other work, or another clock."
    yield from ratios(report)
    sources = {e.source: None for r in report.results for e in r.entries.values() if e.cited and e.source}
    yield from (f"{_CITED} {source}." for source in sources)
    absent = {
        name: entry.missing
        for name in _names(report)
        if (entry := report.results[-1].entries.get(name)) is not None
        and entry.missing
        and not any(_has_numbers(result.entries.get(name)) for result in report.results)
    }
    if absent:
        yield "Not measured: " + "; ".join(f"{name} ({reason})" for name, reason in absent.items()) + "."


def ratios(report: Report) -> Iterator[str]:
    """Say how many times as fast as the yardstick our kernels are, in the longest case of each head dimension.

    Parameters
    ----------
    report : Report
        Of a suite of speeds; others give nothing.

    Yields
    ------
    str
        A sentence for each head dimension.
    """
    if report.measures != "speed":
        return
    longest = {r.case.head_dim: r for r in sorted(report.results, key=lambda r: r.case.kv_len)}
    for result in longest.values():
        yardstick = result.entries.get(YARDSTICK, Entry()).forms.get("e2e")
        if yardstick is None:
            continue
        found = (
            f"`{name}` {yardstick.timing.median_ms / entry.forms['kernel'].timing.median_ms:.2f}"
            for name, entry in result.entries.items()
            if name in PRESETS and "kernel" in entry.forms
        )
        yield f"Times as fast as {YARDSTICK} of the same run, {result.case.label}, kernel: {', '.join(found)}."


def stamp(report: Report) -> str:
    """Say in a sentence what a report was measured on.

    Parameters
    ----------
    report : Report
        Any.

    Returns
    -------
    str
        Machine, versions, commit, date.
    """
    driver = report.before.get("driver_version", "unknown")
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    commit = f"commit {report.commit}{'-dirty' if report.dirty else ''}" if report.commit else "outside of a checkout"
    return f"Measured on an {report.gpu}, driver {driver}, {commit}, {report.date[:10]}: {packages}."


def as_text(table: Table) -> str:
    """Lay a table out for a terminal.

    Parameters
    ----------
    table : Table
        The table.

    Returns
    -------
    str
        Aligned columns, then the notes.

    Examples
    --------
    >>> print(as_text(Table(("TOPS", "S1k D64"), (("`fast`", "430 / 200"),), ("A note.",), "A date.")))
    TOPS      S1k D64
    fast    430 / 200
    <BLANKLINE>
    A note.
    A date.
    """
    lines = [[cell.strip("`") for cell in row] for row in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = (
        f"{first:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        for first, *rest in lines
    )
    return "\n".join([*body, "", *table.notes, table.stamp])
