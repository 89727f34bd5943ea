"""Run a study, and stamp what it found."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cupy_intfa.bench import stamp
from cupy_intfa.device import gpu_for
from cupy_intfa.study.report import StudyReport
from cupy_intfa.study.study import Study

_PACKAGES = ("ml_dtypes", "scipy")


def choose_size(backend: str) -> str:
    """Choose settings for the machine.

    Parameters
    ----------
    backend : str
        As in `attention`.

    Returns
    -------
    {"small", "full"}
        The full ones where a GPU runs them.

    Examples
    --------
    >>> choose_size("numpy")
    'small'
    """
    return "small" if gpu_for(backend) is None else "full"


def run_study(study: Study[Any], size: str, backend: str = "auto", commit: str | None = None) -> StudyReport:
    """Run a study.

    Parameters
    ----------
    study : Study
        Which.
    size : {"quick", "small", "full"}
        Which of its settings.
    backend : str
        As in `attention`. With ``auto``, a recipe for which there is no kernel runs on NumPy, and its row says so.
    commit : str, optional
        What ``git describe --always --dirty`` printed, for files that were copied away from their checkout.

    Returns
    -------
    StudyReport
        Rows, and what they were measured on.

    Raises
    ------
    NotImplementedError
        For a backend that insists on a kernel which a recipe of the study has not.
    """
    device, start = gpu_for(backend), time.perf_counter()
    rows = tuple(study.measure(study.sizes[size], backend))
    return StudyReport(
        study=study.name,
        size=size,
        settings=asdict(study.sizes[size]),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        **stamp.commit(commit),
        machine=f"a CPU ({platform.machine()}), NumPy" if device is None else f"an {device.name}",
        driver=None if device is None else stamp.gpu_state(device.ordinal).get("driver_version"),
        versions=stamp.versions((*_PACKAGES, *study.packages)),
        seconds=time.perf_counter() - start,
        rows=rows,
    )
