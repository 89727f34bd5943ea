"""Where the package runs: versions, GPUs, NVRTC, kernels, and why what is missing is missing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cupy_intfa import kernels
from cupy_intfa.device import DeviceInfo, default_device, device_info
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.recipe import PRESETS

_PACKAGES = ("numpy", "ml_dtypes", "array-api-compat", "threadpoolctl", "scipy", "matplotlib")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What ``python -m cupy_intfa info`` prints.

    Parameters
    ----------
    python : str
        Version of the interpreter.
    packages : dict of str to str or None
        Version of each distribution, by name; None for one that is not installed.
    cupy : str or None
        Version of CuPy, if it works and sees a GPU.
    cupy_missing : str or None
        Why it does not.
    devices : tuple of DeviceInfo
        The GPUs.
    driver, runtime, nvrtc : str or None
        CUDA versions of the driver, of CuPy's runtime, and of the compiler.
    sources : tuple of str
        The CUDA sources that were found.
    kernels, kernels_missing : dict of str to str
        By preset, the kernel that runs it on the first GPU, or why none does; float16 inputs, D 64.
    """

    python: str
    packages: dict[str, str | None]
    cupy: str | None = None
    cupy_missing: str | None = None
    devices: tuple[DeviceInfo, ...] = ()
    driver: str | None = None
    runtime: str | None = None
    nvrtc: str | None = None
    sources: tuple[str, ...]
    kernels: dict[str, str]
    kernels_missing: dict[str, str]

    def __str__(self) -> str:
        """One line for each fact."""
        facts = [
            ("python", self.python),
            *((name, version or "not installed") for name, version in self.packages.items()),
            ("cupy", self.cupy or f"not usable: {self.cupy_missing}"),
            ("devices", ", ".join(f"{device.name} ({device.arch})" for device in self.devices) or "no GPU"),
            ("driver", self.driver or "unknown"),
            ("CUDA runtime", self.runtime or "unknown"),
            ("NVRTC", self.nvrtc or "unknown"),
            ("CUDA sources", ", ".join(name[:-3] for name in self.sources if name.endswith(".cu"))),
            *(("CUDA kernel", f"{kernel} for {presets}") for kernel, presets in _by_value(self.kernels)),
            *(("CUDA kernel", f"none for {presets}: {reason}") for reason, presets in _by_value(self.kernels_missing)),
        ]
        return "\n".join(f"{name:<18}{value}" for name, value in facts)


def environment() -> Environment:
    """Look around. CuPy is imported here, and nothing that it raises escapes.

    Returns
    -------
    Environment
        What was found.

    Examples
    --------
    >>> environment().packages["numpy"] is None
    False
    """
    found, missing = _kernels()
    return Environment(
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        sources=kernels.source_names(),
        kernels=found,
        kernels_missing=missing,
        **_cupy(),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _kernels() -> tuple[dict[str, str], dict[str, str]]:
    """Ask the plan, which alone knows what can run."""
    shape = (1, 1, 64, 64)
    problem = make_problem(shape, shape, shape, ("float16",) * 3)
    found, missing = {}, {}
    for preset, recipe in PRESETS.items():
        try:
            found[preset] = make_plan(problem, recipe, "cuda", default_device()).kernel
        except NotImplementedError as error:
            missing[preset] = str(error)
    return found, missing


def _by_value(named: dict[str, str]) -> list[tuple[str, str]]:
    """Gather the names that share a value."""
    return [(value, ", ".join(n for n, v in named.items() if v == value)) for value in dict.fromkeys(named.values())]


def _cupy() -> dict[str, Any]:
    """Fields of `Environment` that need CuPy."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        return {
            "devices": tuple(device_info(ordinal) for ordinal in range(runtime.getDeviceCount())),
            "driver": _cuda_version(runtime.driverGetVersion()),
            "runtime": _cuda_version(runtime.runtimeGetVersion()),
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
            "cupy": cupy.__version__,
        }
    except Exception as error:  # importing CuPy raises more than ImportError, where HOME is read-only for one
        return {"cupy_missing": f"{type(error).__name__}: {error}"}


def _cuda_version(number: int) -> str:
    """13000 → "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"
