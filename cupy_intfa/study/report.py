"""What a run of a study found, as a value and as JSON, with what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cupy_intfa
from cupy_intfa.study.study import Row

SCHEMA = 1
RESULTS = Path(cupy_intfa.__file__).parents[1] / "notebooks" / "results"
"""Where the results of a checkout are."""


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """A run of a study.

    Parameters
    ----------
    study : str
        Its name.
    size : {"quick", "small", "full"}
        Which of its settings were run.
    settings : mapping of str to object
        Those settings, seeds included.
    date : str
        UTC, ISO 8601.
    commit : str or None
        Of the package; None outside of a checkout.
    dirty : bool or None
        Whether files differed from the commit.
    machine : str
        The GPU, or the processor where everything ran on NumPy.
    driver : str or None
        Version of the GPU's driver.
    versions : mapping of str to str
        Python and packages.
    seconds : float
        How long it took, the oracle included.
    rows : tuple of mapping
        What was measured: one flat mapping for each.
    """

    study: str
    size: str
    settings: Mapping[str, Any]
    date: str
    commit: str | None
    dirty: bool | None
    machine: str
    driver: str | None
    versions: Mapping[str, str]
    seconds: float
    rows: tuple[Row, ...]

    @property
    def file_name(self) -> str:
        """Name of the study; a quick run never takes the place of a whole one."""
        return _file_name(self.study, self.size == "quick")

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` reads, in the types of JSON."""
        return {"schema": SCHEMA, **asdict(self), "rows": [dict(row) for row in self.rows]}


def from_json(stored: Mapping[str, Any]) -> StudyReport:
    """Read what `StudyReport.to_json` gave.

    Parameters
    ----------
    stored : mapping
        As loaded from a file.

    Returns
    -------
    StudyReport
        The same report.

    Raises
    ------
    ValueError
        For another schema, or for something that is no report of a study.
    """
    if stored.get("schema") != SCHEMA or "study" not in stored:
        raise ValueError(
            f"expected the report of a study in schema {SCHEMA}, found schema {stored.get('schema')!r}: run it again"
        )
    fields = {name: value for name, value in stored.items() if name != "schema"}
    return StudyReport(**{**fields, "rows": tuple(stored["rows"])})


def _file_name(study: str, quick: bool) -> str:
    return f"study_{study}{'_quick' if quick else ''}.json"


def load_study(name: str, folder: Path = RESULTS, *, quick: bool = False) -> StudyReport:
    """Read the report of a study.

    Parameters
    ----------
    name : str
        The study.
    folder : Path
        Where it is.
    quick : bool
        Whether the quick run is wanted, which has a file of its own.

    Returns
    -------
    StudyReport
        Of the last such run.

    Raises
    ------
    FileNotFoundError
        If there is none; the text says how to make one.
    """
    file = folder / _file_name(name, quick)
    if not file.is_file():
        command = f"python -m cupy_intfa study {name}{' --quick' if quick else ''} --output {folder}"
        raise FileNotFoundError(f"{file} is not there: run {command}")
    return from_json(json.loads(file.read_text(encoding="utf-8")))
