"""What must be true of every compiled kernel: `faults` says what is not."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kernel_matrix import Build
from nvrtc import Compiled, CompileError, compile_kernel, instructions, launch_bounds, resources

from cupy_intfa.kernels import architecture, compile_options, source_text

REGISTERS = 65536  # of a multiprocessor, on every architecture here
GRAIN = 8  # registers are handed out to the threads of a warp in eights
STATIC_SHARED = 48 * 1024  # the most that a kernel may declare by itself
LOCAL_MEMORY = ("LDL", "STL", "ld.local", "st.local")
NATIVE_FLOAT8 = ("sm_89", "sm_120")  # elsewhere, mma.sync on 8-bit floats is made of conversions and HMMA

_WARNING = re.compile(r"warning[ :]|\(C75\d\d\)")  # C75xx: ptxas serialises the tensor-core instructions of Hopper
# Of CUDA 12, about every architecture before Turing: known, and no reason to stop.
_EXPECTED_WARNING = "Architectures prior to '<compute/sm>_75' are deprecated"


def build_kernel(build: Build) -> Compiled:
    """Compile as CuPy would on the device; `CompileError` where NVRTC refuses."""
    options = compile_options(build.defines)
    arch = architecture(build.source, build.device.arch)
    return compile_kernel(source_text(build.source), arch, options, cuda=build.device.nvrtc[0])


def examine(build: Build) -> list[str]:
    """Compile, and list the faults."""
    try:
        return [f"{build}: {fault}" for fault in faults(build, build_kernel(build))]
    except CompileError as error:
        return [f"{build}: {error}"]


def faults(build: Build, compiled: Compiled) -> Iterator[str]:
    """Say what is wrong with a compiled kernel: spills, warnings, resources, instructions."""
    for line in compiled.log.splitlines():
        if _WARNING.search(line) and _EXPECTED_WARNING not in line:
            yield line
    used = resources(compiled)
    if used.stack or used.spilled:
        yield f"{used.spilled} bytes of spills, {used.stack} of stack, with {used.registers} registers"
    threads, min_blocks = launch_bounds(compiled)
    if threads != build.threads or str(min_blocks) != build.macros.get("MIN_BLOCKS", str(min_blocks)):
        yield f"launch bounds of {threads} threads, {min_blocks} blocks are not the plan's"
    per_block = -(-used.registers // GRAIN) * GRAIN * build.threads
    if per_block * min_blocks > REGISTERS:
        yield f"{used.registers} registers: {min_blocks} blocks of {build.threads} threads do not fit"
    shared = used.static_shared + build.shared_bytes
    if used.static_shared > STATIC_SHARED or shared > build.device.shared_per_block:
        yield f"{shared} bytes of shared memory, {used.static_shared} of them static, do not fit"
    counts = instructions(compiled)
    for name in sorted(counts):
        if name.startswith(LOCAL_MEMORY):
            yield f"{counts[name]} {name}: local memory"
    for wanted in expected_instructions(build):
        if not any(name.startswith(wanted) for name in counts):
            yield f"no {wanted}"


def expected_instructions(build: Build) -> Iterator[str]:
    """Name the instructions that a kernel is written for, by the beginning of their names."""
    has_names = build.device.capability >= (7, 5)  # of machine instructions; else those of PTX
    if build.source == "attention_dp4a":
        yield from ("IDP.4A.S8.S8", "IDP.4A.U8.S8") if has_names else ("dp4a.s32.s32", "dp4a.u32.s32")
    if build.source == "attention_sm80":
        yield "LDSM.16.M88.4"
        if build.macros["PV"] == "1":
            yield "LDSM.16.MT88.4"
        if build.device.capability >= (8, 0):
            yield "LDGSTS.E.BYPASS.128"
        yield from (_mma(build, "QK", "S8.S8"), _mma(build, "PV", "U8.S8"))
    if build.source == "attention_sm90":
        yield f"IGMMA.64x{build.macros['BC']}x32.S8.S8"
        yield "HGMMA.64x" if build.macros["PV"] == "1" else "IGMMA.64x"
        yield from ("UTMALDG.2D", "UBLKCP", "SYNCS.ARRIVE.TRANS64", "USETMAXREG")
    if build.source == "quantize_rows" and build.macros["VECTOR"] == "1":
        yield "LDG.E.128" if has_names else "ld.global.nc.v4"


def _mma(build: Build, product: str, signs: str) -> str:
    turing, native = build.device.capability < (8, 0), build.device.arch in NATIVE_FLOAT8
    half = "HMMA.1688.F32" if turing else "HMMA.16816.F32"
    return {
        "0": f"IMMA.8816.{signs}" if turing else f"IMMA.16832.{signs}",
        "1": half,
        "2": "QMMA.16832.F32.E4M3.E4M3" if native else half,
        "3": "QMMA.16832.F32.E5M2.E5M2" if native else half,
    }[build.macros[product]]
