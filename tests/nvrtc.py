"""What a kernel becomes on an architecture: NVRTC and nvdisasm by themselves, without a GPU, a driver or CuPy.

Every tool is taken from its own wheel, by name, because two NVRTCs are installed side by side: CUDA 13 has left out the
architectures before Turing, which CUDA 12 still compiles.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Major version of CUDA → the wheels of NVRTC and of the headers that kernels include.
_WHEELS = {
    12: ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"),
    13: ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime"),
}
_DISASSEMBLER = "nvidia-cuda-nvdisasm"
_DISASSEMBLED_FROM = 75  # older machine code has no reader on the package index: its PTX stands in

# What CuPy adds to every compilation, and ptxas's report, which changes no instruction.
_OPTIONS = ("-ftz=true", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills")

_PROPERTIES = re.compile(
    r"Function properties for (?P<name>\S+)\s*\n"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s*\n"
    r".*?Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)
_MACHINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", re.MULTILINE)
_PTX = re.compile(r"^\s*\{?\s*(?:@!?%?\w+\s+)?([a-z][a-z0-9_.:]*[a-z0-9])\s[^;]*;", re.MULTILINE)


class CompileError(Exception):
    """NVRTC has refused a source; the text is its log."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel for one architecture: machine code, the PTX that it was made from, and what the compiler said."""

    arch: str
    cubin: bytes
    ptx: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Registers per thread; bytes of stack and of spills per thread; bytes of static shared memory per block."""

    registers: int
    stack: int
    spilled: int
    static_shared: int


def _installed(distribution: str, name: str) -> Path:
    """Find a file that a wheel has brought, by the beginning of its name."""
    for path in metadata.files(distribution) or ():
        if path.name.startswith(name):
            return Path(str(path.locate()))
    raise FileNotFoundError(f"expected {name}* in the package {distribution}: install the extra `test`")


@functools.cache
def _load(cuda: int) -> ctypes.CDLL:
    wheel, _ = _WHEELS[cuda]
    ctypes.CDLL(str(_installed(wheel, "libnvrtc-builtins.so")))  # that of 13.0 is not looked for beside libnvrtc
    library = ctypes.CDLL(str(_installed(wheel, f"libnvrtc.so.{cuda}")))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@functools.cache
def _headers(cuda: int) -> Path:
    return _installed(_WHEELS[cuda][1], "cuda_fp16.h").parent


def compile_kernel(source: str, arch: str, options: tuple[str, ...] = (), *, cuda: int = 13) -> Compiled:
    """Compile CUDA C++ for an architecture such as ``sm_90``; `CompileError` where NVRTC refuses it."""
    nvrtc = _load(cuda)
    every = [option.encode() for option in (f"-arch={arch}", f"-I{_headers(cuda)}", *_OPTIONS, *options)]
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(every), (ctypes.c_char_p * len(every))(*every))
        log = _result(nvrtc, program, "ProgramLog").decode()
        if status:
            raise CompileError(f"{arch}, CUDA {cuda}: {nvrtc.nvrtcGetErrorString(status).decode()}\n{log}")
        cubin, ptx = (_result(nvrtc, program, what) for what in ("CUBIN", "PTX"))
        return Compiled(arch=arch, cubin=cubin, ptx=ptx.decode(), log=log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _result(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw if what == "CUBIN" else buffer.value


def resources(compiled: Compiled) -> Resources:
    """Read in the log what the kernel takes of a multiprocessor."""
    (found,) = _PROPERTIES.finditer(compiled.log)
    return Resources(
        registers=int(found["registers"]),
        stack=int(found["stack"]),
        spilled=int(found["stores"]) + int(found["loads"]),
        static_shared=int(found["shared"] or 0),
    )


def launch_bounds(compiled: Compiled) -> tuple[int, int]:
    """Read in the PTX how many threads a block may have, and how many blocks ptxas must leave registers for."""
    threads = re.search(r"\.maxntid (\d+)", compiled.ptx)
    blocks = re.search(r"\.minnctapersm (\d+)", compiled.ptx)
    return int(threads[1]) if threads else 0, int(blocks[1]) if blocks else 1


def instructions(compiled: Compiled) -> Counter[str]:
    """Count the kernel's instructions by full name: ``IMMA.16832.U8.S8``; before Turing PTX, ``dp4a.u32.s32``."""
    if int(compiled.arch.removeprefix("sm_").rstrip("a")) < _DISASSEMBLED_FROM:
        return Counter(_PTX.findall(compiled.ptx))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        command = (_installed(_DISASSEMBLER, "nvdisasm"), "-c", file.name)
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Counter(_MACHINE.findall(listing))
