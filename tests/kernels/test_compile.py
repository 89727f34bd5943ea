"""Every kernel compiles for every architecture, without spills, into the instructions that it is written for.

A test compiles one build in its own process, so that -n 2 uses two cores: NVRTC holds a lock in a process.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from devices import DEVICES
from kernel_gate import build_kernel, examine, faults
from kernel_matrix import Build, attention_builds, combinations_of, cover, describe, quantize_builds
from nvrtc import CompileError

from cupy_intfa import PRESETS
from cupy_intfa.plan import make_plan

LIMIT = 150  # builds in the default selection
TAKEN, NAMED = attention_builds()
QUANTIZE = quantize_builds(500)
# All pairs of what the plan takes by itself; of the rest every value, then the pairs that the limit leaves room for.
SELECTED = cover(TAKEN, 2)
SELECTED += cover((*NAMED, *QUANTIZE), 1, SELECTED)
SELECTED += cover(QUANTIZE, 2, SELECTED)[: LIMIT - len(SELECTED)]


@pytest.mark.parametrize("build", SELECTED, ids=str)
def test_build(build: Build) -> None:
    found = examine(build)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
def test_all_builds_of_an_architecture(arch: str) -> None:
    builds = [build for build in (*TAKEN, *NAMED, *QUANTIZE) if build.device.arch == arch]
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    # Spawned: a fork of a process with threads can hang, and Python 3.12 warns of it.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = [fault for each in pool.map(examine, builds, chunksize=8) for fault in each]
    assert not found, "\n".join(found)


def met(builds: Sequence[Build], size: int) -> set[tuple[object, ...]]:
    return {one for build in builds for one in combinations_of(build, size)}


def test_selection_meets_what_it_promises() -> None:
    assert len(SELECTED) <= LIMIT
    assert met(SELECTED, 2) >= met(TAKEN, 2)
    assert met(SELECTED, 1) == met((*TAKEN, *NAMED, *QUANTIZE), 1)
    assert {build.device.arch for build in TAKEN} == set(DEVICES), "a device that no kernel runs on"


def forced(build: Build, **values: int) -> Build:
    """Replace macros of a build."""
    kept = (define for define in build.defines if define.split("=")[0] not in values)
    return replace(build, defines=(*kept, *(f"{name}={value}" for name, value in values.items())))


@pytest.fixture(scope="module")
def fast() -> Build:
    plan = make_plan(describe(64), PRESETS["fast"], "cuda", DEVICES["sm_80"]).cuda
    assert plan
    assert plan.source == "attention_sm80"
    return Build(
        device=plan.device,
        source=plan.source,
        defines=plan.defines,
        threads=plan.threads,
        shared_bytes=plan.shared_bytes,
    )


def test_gate_sees_spills_and_local_memory(fast: Build) -> None:
    starved = forced(fast, MIN_BLOCKS=2048 // fast.threads)  # 32 registers a thread
    found = "\n".join(examine(starved))
    for fault in ("bytes of spills", "with 32 registers", "STL: local memory", "LDL: local memory", "warning"):
        assert fault in found


def test_gate_sees_what_does_not_fit(fast: Build) -> None:
    compiled = build_kernel(fast)
    small = replace(fast, device=replace(fast.device, shared_per_block=fast.shared_bytes - 1))
    assert list(faults(small, compiled)) == [
        f"{fast.shared_bytes} bytes of shared memory, 0 of them static, do not fit"
    ]
    (bounds, *_) = faults(replace(fast, threads=2 * fast.threads), compiled)
    assert bounds.startswith(f"launch bounds of {fast.threads} threads")
    crowded = replace(compiled, ptx=compiled.ptx.replace(".minnctapersm", ".minnctapersm 64 //"))
    assert [fault for fault in faults(fast, crowded) if "do not fit" in fault]


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "kernel.cu(7): warning #177-D: variable was declared but never referenced",
    ],
)
def test_gate_sees_what_the_compiler_says(fast: Build, line: str) -> None:
    compiled = build_kernel(fast)
    assert list(faults(fast, compiled)) == []
    assert list(faults(fast, replace(compiled, log=f"{compiled.log}\n{line}"))) == [line]


def test_gate_sees_instructions_of_another_architecture_missing(fast: Build) -> None:
    on_turing = build_kernel(replace(fast, device=DEVICES["sm_75"]))
    missing = {fault for fault in faults(fast, on_turing) if fault.startswith("no ")}
    assert missing == {"no LDGSTS.E.BYPASS.128", "no IMMA.16832.S8.S8", "no IMMA.16832.U8.S8"}


@pytest.mark.parametrize("source", sorted({build.source for build in SELECTED}))
def test_a_wrong_count_of_bytes_does_not_compile(source: str) -> None:
    build = next(build for build in SELECTED if build.source == source)
    counted = {
        name: int(value) for name, value in (define.split("=") for define in build.defines) if name.endswith("_BYTES")
    }
    assert "PARAMS_BYTES" in counted
    assert ("SHARED_BYTES" in counted) == (build.shared_bytes > 0)
    for name, value in counted.items():
        with pytest.raises(CompileError, match=r"counts other bytes|packs another"):
            build_kernel(forced(build, **{name: value + 4}))


@pytest.mark.parametrize(
    ("macros", "reason"),
    [
        ({"D": 48}, "INTFA_D: 32, 64"),
        ({"BC": 96}, "INTFA_BC: 64 or 128"),
        ({"BC": 128, "V_BLOCK": 1}, "INTFA_BC: V with a scale per block"),
        ({"STEP": 16}, "INTFA_STEP: 32 or 64"),
        ({"STEP": 32, "TILE_REF": 1}, "INTFA_STEP: a tile reference is that of 64 keys"),
        ({"QK": 1, "K_TOKEN": 0}, "INTFA_QK: a float Q and K go with"),
        ({"PV": 1, "V_BLOCK": 1}, "INTFA_V_BLOCK: a float V has one scale"),
        ({"QK": 1, "PV": 1, "K_TOKEN": 1}, "INTFA_K_TOKEN: a float K has one scale"),
        ({"STAGES": 1}, "INTFA_STAGES: a tile is copied"),
        ({"STAGES": 2, "SLACK": 1}, "INTFA_STAGES: a tile is copied"),
        ({"WARPS": 16}, "the packing pads Q to 128 rows"),
        ({"QK": 2, "PV": 2, "K_TOKEN": 0}, "8-bit floats have an MMA from sm_89 on"),
    ],
)
def test_what_the_tensor_core_kernel_cannot_be_does_not_compile(macros: dict[str, int], reason: str) -> None:
    defines = tuple(f"{name}={value}" for name, value in macros.items())
    build = Build(device=DEVICES["sm_80"], source="attention_sm80", defines=defines, threads=128)
    with pytest.raises(CompileError, match=reason):
        build_kernel(build)
