"""How the tools of this folder write what they measured: figures as JSON, with what they were measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cupy_intfa.bench.stamp import commit, gpu_state, versions
from cupy_intfa.device import DeviceInfo, default_device


def make_stamp(packages: Iterable[str] = (), described: str | None = None) -> dict[str, Any]:
    """Say when, of which commit, on which machine and with which packages something is measured.

    Parameters
    ----------
    packages : iterable of str
        Distributions whose versions matter, beside those that always do.
    described : str, optional
        What ``git describe --always --dirty`` printed, where there is no checkout.

    Returns
    -------
    dict
        ``date``, ``commit``, ``dirty``, ``on``, ``versions``, and of a GPU its state.
    """
    device = default_device()
    made = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(described),
        "versions": versions(packages),
    }
    if isinstance(device, DeviceInfo):
        return {**made, "on": device.name, "gpu": gpu_state(device.ordinal)}
    return {**made, "on": "CPU, NumPy"}


def write_results(file: Path, *parts: Mapping[str, Any]) -> None:
    """Write mappings, one after the other, as one object."""
    whole = {name: value for part in parts for name, value in part.items()}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
