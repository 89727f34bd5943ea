"""What a kernel becomes on an architecture: NVRTC and nvdisasm from their wheels, without a GPU, a driver or CuPy.

Two NVRTCs may be installed side by side: CUDA 13 has left out the architectures before Turing, which 12.9 compiles.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cupy_intfa.ptxsim.compiler import run_nvrtc

_WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}  # of NVRTC, by the major version of CUDA
_DISASSEMBLER = "nvidia-cuda-nvdisasm"
OLDEST_READABLE = 75  # of nvdisasm 13

# What CuPy adds to every compilation, and ptxas's report, which changes no instruction.
_OPTIONS = ("-ftz=true", "--ptxas-options=-v")

_PROPERTIES = re.compile(
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s*\n.*?Used (?P<registers>\d+) registers"
)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel for one architecture.

    Parameters
    ----------
    cubin : bytes
        Machine code.
    registers, spilled : int
        Registers of a thread, and its bytes of spill stores and loads.
    """

    cubin: bytes
    registers: int
    spilled: int


def compiles_for(arch: str) -> int:
    """Give the major version of CUDA whose NVRTC compiles for an architecture.

    Parameters
    ----------
    arch : str
        ``sm_90a``.

    Returns
    -------
    {12, 13}
        12 for what CUDA 13 has left out.

    Examples
    --------
    >>> compiles_for("sm_61"), compiles_for("sm_90a")
    (12, 13)
    """
    return 12 if int(arch.removeprefix("sm_").rstrip("a")) < OLDEST_READABLE else 13


def _installed(distribution: str, name: str) -> Path:
    """Find a file that a wheel has brought, by the beginning of its name."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for path in files:
        if path.name.startswith(name):
            return Path(str(path.locate()))
    raise FileNotFoundError(f"{distribution} is not installed: pip install {distribution}, which needs no GPU")


def is_readable(arch: str) -> bool:
    """Tell whether machine code of an architecture can be read here.

    Parameters
    ----------
    arch : str
        ``sm_90a``.

    Returns
    -------
    bool
        False where nvdisasm is not installed, or does not know the architecture.
    """
    try:
        _installed(_DISASSEMBLER, "nvdisasm")
    except FileNotFoundError:
        return False
    return compiles_for(arch) == 13


@functools.cache
def load_nvrtc(cuda: int) -> ctypes.CDLL:
    """Load the compiler.

    Parameters
    ----------
    cuda : {12, 13}
        Of which version.

    Returns
    -------
    CDLL
        NVRTC, from its wheel.

    Raises
    ------
    FileNotFoundError
        Where the wheel is not installed; the text names it.
    """
    wheel = _WHEELS[cuda]
    ctypes.CDLL(str(_installed(wheel, "libnvrtc-builtins.so")))  # that of 13.0 is not looked for beside libnvrtc
    return ctypes.CDLL(str(_installed(wheel, f"libnvrtc.so.{cuda}")))


def compile_machine_code(source: str, arch: str, options: tuple[str, ...]) -> Compiled:
    """Compile CUDA C++ to machine code.

    Parameters
    ----------
    source : str
        CUDA C++ with one kernel.
    arch : str
        ``sm_90a``.
    options : tuple of str
        Of NVRTC.

    Returns
    -------
    Compiled
        With what ptxas says of it.

    Raises
    ------
    CompileError
        For source that is wrong.
    FileNotFoundError
        Where the NVRTC that knows the architecture is not installed; the text names its wheel.
    """
    cuda = compiles_for(arch)
    every = (f"-arch={arch}", *_OPTIONS, *options)
    cubin, log = run_nvrtc(load_nvrtc(cuda), f"{arch}, CUDA {cuda}", source, every, ("CUBIN", "ProgramLog"))
    (found,) = _PROPERTIES.finditer(log.decode())
    spilled = int(found["stores"]) + int(found["loads"])
    return Compiled(cubin=cubin, registers=int(found["registers"]), spilled=spilled)


def disassemble(cubin: bytes) -> str:
    """Read machine code.

    Parameters
    ----------
    cubin : bytes
        Of an architecture that `is_readable`.

    Returns
    -------
    str
        What nvdisasm lists: labels, and one instruction a line.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = (_installed(_DISASSEMBLER, "nvdisasm"), "-c", file.name)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
