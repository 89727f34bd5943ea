"""What a study is: a question, settings, a function from settings to rows, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Row = Mapping[str, Any]  # flat: str, int, float or None by column
Rows = Sequence[Row]
Settings = TypeVar("Settings")

SIZES = ("quick", "small", "full")


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """How rows are laid out as a table of text.

    Parameters
    ----------
    rows : tuple of str
        Keys that name a line.
    columns : tuple of str
        Keys that name a column.
    value : str
        What a cell shows.
    where : mapping of str to object
        Values that a row must have to be shown.
    beside : tuple of str
        Values that all rows of a line share, each a column of its own at the end.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    value: str
    where: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Settings]):
    """A question and the measurement that answers it.

    Parameters
    ----------
    name : str
        What the command line calls it.
    question, setup, limits : str
        What is asked, what is measured, and what the answer does not show.
    sizes : mapping of str to settings
        ``quick`` for a test, ``small`` for minutes on two cores, ``full`` for a GPU. Frozen dataclasses.
    measure : callable
        (settings, backend) → rows, in which every array is drawn from a seed of the settings.
    keys, values : tuple of str
        The columns: those that name a row, and those that were measured.
    findings : callable
        Rows → sentences. Every number in them comes from the rows.
    table : Pivot
        The table that the command prints.
    packages : tuple of str
        Distributions, besides those of every run, whose versions belong to the result.
    """

    name: str
    question: str
    setup: str
    limits: str
    sizes: Mapping[str, Settings]
    measure: Callable[[Settings, str], Iterable[Row]]
    keys: tuple[str, ...]
    values: tuple[str, ...]
    findings: Callable[[Rows], Iterator[str]]
    table: Pivot
    packages: tuple[str, ...] = ()


def pick(rows: Rows, **where: Any) -> list[Row]:
    """Select the rows that have some values.

    Parameters
    ----------
    rows : sequence of mapping
        Of a study.
    **where
        A value for each column that must have it.

    Returns
    -------
    list of mapping
        In their order.

    Examples
    --------
    >>> pick([{"keys": 64, "error": 0.1}, {"keys": 128, "error": 0.2}], keys=128)
    [{'keys': 128, 'error': 0.2}]
    """
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def one(rows: Rows, value: str, **where: Any) -> Any:
    """Read a value of the only row that fits.

    Parameters
    ----------
    rows : sequence of mapping
        Of a study.
    value : str
        The column to read.
    **where
        As in `pick`.

    Returns
    -------
    object
        What stands there.

    Raises
    ------
    LookupError
        If no row fits, or several.

    Examples
    --------
    >>> one([{"keys": 64, "error": 0.1}, {"keys": 128, "error": 0.2}], "error", keys=128)
    0.2
    """
    found = pick(rows, **where)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows with {where}: expected one")
    return found[0][value]


def distinct(rows: Rows, column: str) -> list[Any]:
    """List the values of a column.

    Parameters
    ----------
    rows : sequence of mapping
        Of a study.
    column : str
        The column.

    Returns
    -------
    list
        Each once, in the order of the rows.

    Examples
    --------
    >>> distinct([{"keys": 64}, {"keys": 128}, {"keys": 64}], "keys")
    [64, 128]
    """
    return list(dict.fromkeys(row[column] for row in rows))
