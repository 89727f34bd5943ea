"""The report of a study as a table of text."""

from __future__ import annotations

from typing import Any

from cupy_intfa.bench.tables import Table
from cupy_intfa.recipe import PRESETS
from cupy_intfa.study.report import StudyReport
from cupy_intfa.study.study import Pivot, Study, pick

_NONE = "–"


def make_study_table(study: Study[Any], report: StudyReport, pivot: Pivot | None = None) -> Table:
    """Lay the rows of a report out.

    Parameters
    ----------
    study : Study
        The study of the report.
    report : StudyReport
        What was measured.
    pivot : Pivot, optional
        Another layout than the study's own.

    Returns
    -------
    Table
        Its notes are the findings.
    """
    pivot = pivot or study.table
    cells: dict[tuple[str, ...], dict[tuple[Any, ...], str]] = {}
    beside: dict[tuple[str, ...], tuple[str, ...]] = {}
    columns: dict[tuple[Any, ...], None] = {}
    for row in pick(report.rows, **pivot.where):
        column = tuple(row[name] for name in pivot.columns)
        columns[column] = None
        line = tuple(_label(row[name]) for name in pivot.rows)
        cells.setdefault(line, {})[column] = format_value(row[pivot.value])
        beside[line] = tuple(format_value(row[name]) for name in pivot.beside)
    head = (*pivot.rows, *(_title(pivot.columns, column) for column in columns), *pivot.beside)
    rows = tuple(
        (*line, *(found.get(column, _NONE) for column in columns), *beside[line]) for line, found in cells.items()
    )
    return Table(head, rows, tuple(study.findings(report.rows)), stamp(report))


def stamp(report: StudyReport) -> str:
    """Say in a sentence what a study was measured on.

    Parameters
    ----------
    report : StudyReport
        Any.

    Returns
    -------
    str
        Size, machine, commit, date, versions.
    """
    commit = f"commit {report.commit}{'-dirty' if report.dirty else ''}" if report.commit else "outside of a checkout"
    driver = f", driver {report.driver}" if report.driver else ""
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"Settings {report.size}, {report.seconds:.0f} s on {report.machine}{driver}, {commit}, {report.date[:10]}: "
        f"{packages}."
    )


def format_value(value: Any) -> str:
    """Write a cell: three digits, or a dash for what was not measured.

    Parameters
    ----------
    value : object
        Of a row.

    Returns
    -------
    str
        Text.

    Examples
    --------
    >>> [format_value(x) for x in (0.012345, 1254.6, 1234567, None, "emulator")]
    ['0.0123', '1255', '1234567', '–', 'emulator']
    """
    if value is None:
        return _NONE
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".removesuffix(".")
    return str(value)


def format_keys(keys: int) -> str:
    """Write a number of keys.

    Parameters
    ----------
    keys : int
        Their number.

    Returns
    -------
    str
        In units of 1024 where it is a multiple.

    Examples
    --------
    >>> format_keys(16384), format_keys(100)
    ('16k', '100')
    """
    return f"{keys // 1024}k" if keys % 1024 == 0 else str(keys)


def _title(names: tuple[str, ...], column: tuple[Any, ...]) -> str:
    """Name a column by its values; a number says what it counts."""
    written = {"keys": lambda n: f"S{format_keys(n)}", "head_dim": lambda n: f"D{n}", "layers": lambda n: f"{n} layers"}
    return " ".join(written.get(name, _label)(value) for name, value in zip(names, column, strict=True))


def _label(value: Any) -> str:
    return f"`{value}`" if value in PRESETS else str(value)
