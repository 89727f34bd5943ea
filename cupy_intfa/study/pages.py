"""A study as text in Markdown, for the notebooks: what is asked, what came out, and how to run it again."""

from __future__ import annotations

from typing import Any

from cupy_intfa.study.report import StudyReport
from cupy_intfa.study.study import Study
from cupy_intfa.study.tables import stamp


def introduce(study: Study[Any]) -> str:
    """Write what is asked and what is measured.

    Parameters
    ----------
    study : Study
        Which.

    Returns
    -------
    str
        Two paragraphs.
    """
    return f"**Question.** {study.question}\n\n**Set-up.** {study.setup}"


def conclude(study: Study[Any], report: StudyReport) -> str:
    """Write what was found, what it does not show, on what it was measured, and the command that measures it again.

    Parameters
    ----------
    study : Study
        Which.
    report : StudyReport
        What was measured.

    Returns
    -------
    str
        A list and three paragraphs.

    Examples
    --------
    >>> from cupy_intfa.study.registry import STUDIES
    >>> from cupy_intfa.study.runner import run_study
    >>> study = STUDIES["memory"]
    >>> print(conclude(study, run_study(study, "quick", "numpy")).splitlines()[-1])
    **Again:** `python -m cupy_intfa study memory --quick`
    """
    found = "\n".join(f"- {text}" for text in study.findings(report.rows))
    return (
        f"**Found.**\n\n{found}\n\n**What it does not show.** {study.limits}\n\n{stamp(report)}\n\n"
        f"**Again:** `python -m cupy_intfa study {study.name} --{report.size}`"
    )
