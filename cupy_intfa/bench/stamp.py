"""What a measurement was made on: machine, versions, commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import cupy_intfa
from cupy_intfa.environment import environment

_GPU = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)
_ROOT = Path(cupy_intfa.__file__).parents[1]


def gpu_state(ordinal: int = 0) -> dict[str, str]:
    """Ask nvidia-smi for clocks, power and temperature.

    Parameters
    ----------
    ordinal : int
        Number of the GPU.

    Returns
    -------
    dict of str to str
        By nvidia-smi's names of the properties, with units; or the reason under ``"missing"``.
    """
    command = ["nvidia-smi", f"--id={ordinal}", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return {"missing": f"nvidia-smi: {type(error).__name__}"}
    return parse_gpu_state(done.stdout)


def parse_gpu_state(text: str) -> dict[str, str]:
    """Read the line that nvidia-smi prints.

    Parameters
    ----------
    text : str
        Comma-separated values.

    Returns
    -------
    dict of str to str
        By property.

    Examples
    --------
    >>> parse_gpu_state("GPU X, 580.1, 1980 MHz, 3201 MHz, 1980 MHz, 70.1 W, 700.0 W, 31")["power.draw"]
    '70.1 W'
    """
    values = [value.strip() for value in text.strip().splitlines()[0].split(",")]
    return dict(zip(_GPU, values, strict=True))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Give the versions of this package, of what it runs on, and of the packages of the rivals that are installed.

    Parameters
    ----------
    packages : iterable of str
        Names of distributions.

    Returns
    -------
    dict of str to str
        By name.
    """
    found = environment()
    stamped: dict[str, str | None] = {
        "cupy-intfa": cupy_intfa.__version__,
        "python": found.python,
        "numpy": found.packages["numpy"],
        "cupy": found.cupy,
        "CUDA driver": found.driver,
        "CUDA runtime": found.runtime,
        "NVRTC": found.nvrtc,
        **{name: _version(name) for name in sorted({*packages, "triton"})},
    }
    stamped["cuDNN"] = _cudnn() if stamped.get("torch") else None
    return {name: version for name, version in stamped.items() if version is not None}


def commit(described: str | None = None) -> dict[str, Any]:
    """Name the commit that the package is run from, and whether files differ from it.

    Parameters
    ----------
    described : str, optional
        What ``git describe --always --dirty`` printed, where files were copied away from their checkout.

    Returns
    -------
    dict
        ``commit`` and ``dirty``, both None outside of a checkout.

    Examples
    --------
    >>> commit("6f6cd0372011-dirty")
    {'commit': '6f6cd0372011', 'dirty': True}
    """
    described = described or _describe()
    if described is None:
        return {"commit": None, "dirty": None}
    return {"commit": described.removesuffix("-dirty"), "dirty": described.endswith("-dirty")}


def _describe() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cudnn() -> str:
    import torch

    return str(torch.backends.cudnn.version())
