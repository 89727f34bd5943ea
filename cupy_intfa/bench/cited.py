"""Rivals that no package index has: what they reached on an earlier date, always shown as such."""

from __future__ import annotations

import json
from importlib import resources

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.report import Entry


def cited_entries(case: Case, gpu: str) -> dict[str, Entry]:
    """Find the numbers on record for a case.

    Parameters
    ----------
    case : Case
        The shape.
    gpu : str
        Name of the GPU: a number from another one would say nothing.

    Returns
    -------
    dict of str to Entry
        By contender, in the order of the file.

    Examples
    --------
    >>> from cupy_intfa.bench.cases import SUITES
    >>> entry = cited_entries(SUITES["prefill"].cases[0], "NVIDIA H200")["SageAttention 2"]
    >>> entry.cited, entry.source
    ({'kernel': 451.0, 'e2e': 152.0}, 'measured on an H200 on an earlier date, not in this run: ...')
    """
    stored = json.loads(resources.files(__package__).joinpath("cited.json").read_text(encoding="utf-8"))
    if gpu != stored["gpu"]:
        return {}
    return {
        row["contender"]: Entry(
            cited={form: float(tops) for form, tops in row["tops"].items()}, source=stored["source"]
        )
        for row in stored["rows"]
        if case == Case(**row["case"])
    }
