"""Quick runs of the studies, each made once for all tests."""

from functools import cache

from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import StudyReport
from cupy_intfa.study.runner import run_study


@cache
def quick(name: str) -> StudyReport:
    """Run a study once for all tests."""
    return run_study(STUDIES[name], "quick", "numpy", commit="0123456789ab")
