"""Where the package runs: versions, GPUs, NVRTC, kernels, and why what is missing is missing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cupy_intfa import kernels
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.recipe import get_recipe

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
    devices : tuple of str
        Name and compute capability of each GPU.
    driver, runtime, nvrtc : str or None
        Versions of CUDA that the driver supports, that CuPy runs, and that compiles.
    sources : tuple of str
        The CUDA sources that were found.
    kernels_missing : str or None
        Why no CUDA kernel runs the default recipe, or None where one does.
    """

    python: str
    packages: dict[str, str | None]
    cupy: str | None = None
    cupy_missing: str | None = None
    devices: tuple[str, ...] = ()
    driver: str | None = None
    runtime: str | None = None
    nvrtc: str | None = None
    sources: tuple[str, ...] = ()
    kernels_missing: str | None = None

    def __str__(self) -> str:
        """One line for each fact."""
        lines = {
            "python": self.python,
            **{name: version or "not installed" for name, version in self.packages.items()},
            "cupy": self.cupy or f"not usable: {self.cupy_missing}",
            "devices": ", ".join(self.devices) or "no GPU that CuPy can use",
            "driver": self.driver or "unknown",
            "CUDA runtime": self.runtime or "unknown",
            "NVRTC": self.nvrtc or "unknown",
            "CUDA sources": ", ".join(self.sources) or "none",
            "CUDA kernels": "available" if self.kernels_missing is None else f"none: {self.kernels_missing}",
        }
        return "\n".join(f"{name:<18}{value}" for name, value in lines.items())


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
    return Environment(
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        sources=kernels.source_names(),
        kernels_missing=_kernels_missing(),
        **_cupy(),
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _kernels_missing() -> str | None:
    """Ask the plan, which alone knows what can run."""
    shape = (1, 1, 64, 64)
    problem = make_problem(shape, shape, shape, ("float16",) * 3)
    try:
        make_plan(problem, get_recipe(), "cuda")
    except NotImplementedError as error:
        return str(error)
    return None


def _cupy() -> dict[str, Any]:
    """Fields of `Environment` that need CuPy."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        count = runtime.getDeviceCount()
        properties = [runtime.getDeviceProperties(i) for i in range(count)]
        return {
            "cupy": cupy.__version__,
            "devices": tuple(f"{p['name'].decode()} (sm_{p['major']}{p['minor']})" for p in properties),
            "driver": _cuda_version(runtime.driverGetVersion()),
            "runtime": _cuda_version(runtime.runtimeGetVersion()),
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        }
    except Exception as error:  # importing CuPy raises more than ImportError, where HOME is read-only for one
        return {"cupy_missing": f"{type(error).__name__}: {error}"}


def _cuda_version(number: int) -> str:
    """13000 → "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"
