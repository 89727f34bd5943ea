"""What a kernel becomes on an architecture: NVRTC and nvdisasm by themselves, without a GPU, a driver or CuPy.

Every tool is taken from its own wheel, by name, because two NVRTCs are installed side by side: CUDA 13 has left out the
architectures before Turing, which CUDA 12 still compiles.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from cupy_intfa.ptxsim.compiler import CompileError as CompileError
from cupy_intfa.ptxsim.compiler import run_nvrtc
from cupy_intfa.study.machine_code import OLDEST_READABLE, disassemble, load_nvrtc

# What CuPy adds to every compilation, and ptxas's report, which changes no instruction.
_OPTIONS = ("-ftz=true", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills")

_PROPERTIES = re.compile(
    r"Function properties for (?P<name>\S+)\s*\n"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s*\n"
    r".*?Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)
_MACHINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", re.MULTILINE)
_PTX = re.compile(r"^\s*\{?\s*(?:@!?%?\w+\s+)?([a-z][a-z0-9_.:]*[a-z0-9])\s[^;]*;", re.MULTILINE)


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


def compile_kernel(source: str, arch: str, options: tuple[str, ...] = (), *, cuda: int = 13) -> Compiled:
    """Compile CUDA C++ for an architecture such as ``sm_90``; `CompileError` where NVRTC refuses it."""
    every = (f"-arch={arch}", *_OPTIONS, *options)
    results = ("CUBIN", "PTX", "ProgramLog")
    cubin, ptx, log = run_nvrtc(load_nvrtc(cuda), f"{arch}, CUDA {cuda}", source, every, results)
    ptx, log = (text.rstrip(b"\0") for text in (ptx, log))
    return Compiled(arch=arch, cubin=cubin, ptx=ptx.decode(), log=log.decode())


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
    if int(compiled.arch.removeprefix("sm_").rstrip("a")) < OLDEST_READABLE:
        return Counter(_PTX.findall(compiled.ptx))
    return Counter(_MACHINE.findall(disassemble(compiled.cubin)))
