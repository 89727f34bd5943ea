"""What a run of a suite found, as values and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.timing import Timing

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One form of a contender on one case.

    Parameters
    ----------
    timing : Timing
        Milliseconds.
    tops : float or None
        10¹² operations per second, where the case counts operations.
    gbps : float or None
        10⁹ bytes per second, each byte read once and each written once, where bytes are what counts.
    relative_rmse : float or None
        Error of the output against float64 on the same inputs, from sampled rows.
    """

    timing: Timing
    tops: float | None = None
    gbps: float | None = None
    relative_rmse: float | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender on one case.

    Parameters
    ----------
    forms : mapping of str to Measured
        ``kernel`` and ``e2e``; ``compile`` and ``disk_cache`` for a first call; ``quantise`` or ``copy`` for bandwidth.
    cited : mapping of str to float
        By form, TOPS that were not measured in this run.
    source : str or None
        Where cited numbers are from.
    missing : str or None
        Why there is none.
    """

    forms: Mapping[str, Measured] = field(default_factory=dict)
    cited: Mapping[str, float] = field(default_factory=dict)
    source: str | None = None
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """All contenders on one case.

    Parameters
    ----------
    case : Case
        The shape.
    entries : mapping of str to Entry
        By contender.
    """

    case: Case
    entries: Mapping[str, Entry]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run of a suite.

    Parameters
    ----------
    suite : str
        Its name.
    measures : str
        What was measured, as in `Suite`.
    date : str
        UTC, ISO 8601.
    commit : str or None
        Of the package; None outside of a checkout.
    dirty : bool or None
        Whether files differed from the commit.
    gpu : str
        Name of the GPU.
    before, after : mapping of str to str
        nvidia-smi before the first case and right after the last.
    versions : mapping of str to str
        Python, drivers, compilers, packages.
    results : tuple of CaseResult
        In the order of the suite.
    """

    suite: str
    measures: str
    date: str
    commit: str | None
    dirty: bool | None
    gpu: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    versions: Mapping[str, str]
    results: tuple[CaseResult, ...]

    @property
    def file_name(self) -> str:
        """Suite and GPU."""
        return f"{self.suite}_{re.sub(r'[^a-z0-9]+', '-', self.gpu.lower()).strip('-')}.json"

    @property
    def measured_on(self) -> str:
        """Machine, day and commit, to cite a row by."""
        return f"{self.gpu}, {self.date[:10]}, commit {self.commit}{'-dirty' if self.dirty else ''}"

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` reads, in the types of JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def from_json(stored: Mapping[str, Any]) -> Report:
    """Read what `Report.to_json` gave.

    Parameters
    ----------
    stored : mapping
        As loaded from a file.

    Returns
    -------
    Report
        The same report.

    Raises
    ------
    ValueError
        For another schema, or for something that is no report.
    """
    if stored.get("schema") != SCHEMA:
        raise ValueError(
            f"expected a benchmark report of schema {SCHEMA}, found {stored.get('schema')!r}: measure again"
        )
    fields = {name: value for name, value in stored.items() if name != "schema"}
    fields["results"] = tuple(
        CaseResult(
            case=Case(**result["case"]),
            entries={name: _entry(entry) for name, entry in result["entries"].items()},
        )
        for result in stored["results"]
    )
    return Report(**fields)


def _entry(stored: Mapping[str, Any]) -> Entry:
    forms = {name: Measured(**{**form, "timing": Timing(**form["timing"])}) for name, form in stored["forms"].items()}
    return Entry(**{**stored, "forms": forms})


def load_reports(folder: Path) -> tuple[Report, ...]:
    """Read every report in a folder.

    Parameters
    ----------
    folder : Path
        Other JSON files in it are left alone.

    Returns
    -------
    tuple of Report
        By file name.
    """
    stored = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json")))
    return tuple(from_json(one) for one in stored if "suite" in one)


class Saveable(Protocol):
    """What can be written as JSON: a report of the benchmark, or of a study."""

    @property
    def file_name(self) -> str:
        """Where, inside the folder."""

    def to_json(self) -> dict[str, Any]:
        """Give the types of JSON."""


def save_report(report: Saveable, folder: Path) -> Path:
    """Write a report.

    Parameters
    ----------
    report : Saveable
        What to write.
    folder : Path
        Made if it is not there.

    Returns
    -------
    Path
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / report.file_name
    file.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file
