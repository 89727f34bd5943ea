"""Each check on the smallest kernel that fails it, with the block, thread, instruction and line that it names."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ptxsim.small import run_cuda, run_ptx

from cupy_intfa.ptxsim import GlobalMemory, Options, PtxError, SimulationError, launch
from cupy_intfa.ptxsim.compiler import CompileError, compile_ptx
from cupy_intfa.ptxsim.trace import wavefronts

ORDERS = pytest.mark.parametrize("seed", [None, 0, 1])

REVERSE = """
extern "C" __global__ void small(const int* in, int* out) {
    __shared__ int x[128];
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    x[t] = in[i];
    __syncthreads();
    out[i] = x[127 - t];
    __syncthreads();
    x[t] = 0;
}
"""
DATA = np.arange(256, dtype=np.int32)


@ORDERS
def test_a_right_kernel_passes(seed: int | None) -> None:
    got, trace = run_cuda(REVERSE, DATA, blocks=2, out=((256,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got.reshape(2, 128), DATA.reshape(2, 128)[:, ::-1])
    assert trace.blocks == 2
    assert trace.instructions["bar.sync"] == 2 * 2 * 4
    assert trace.moved["global read"] == trace.moved["global written"] == 1024


# what is wrong: the check, what the error says, the line and thread that it names
WRONG = {
    "read beyond an array": (
        "in[i];",
        "in[i + 1];",
        "bounds",
        "read of 4 bytes at byte 1024 of input 0",
        5,
        "block 1, thread 127",
    ),
    "write beyond an array": (
        "out[i] =",
        "out[i + 2] =",
        "bounds",
        "write of 4 bytes at byte 1024 of out",
        7,
        "block 1, thread 126",
    ),
    "write of an input": ("out[i] =", "((int*)in)[i] =", "bounds", "which kernels only read", 7, "block 0, thread 0"),
    "shared index too large": (
        "x[t] = in[i]",
        "x[t + 1] = in[i]",
        "bounds",
        "byte 512 of shared memory, which has 512",
        5,
        "thread 127",
    ),
    "crooked address": (
        "out[i] = x[127 - t]",
        "if (t < 99) *(long long*)(out + i) = x[127 - t]",
        "alignment",
        "no multiple of 8",
        7,
        "thread 1 ",
    ),
    "crooked shared address": (
        "out[i] = x[127 - t]",
        "if (t < 99) out[i] = *(long long*)(x + t)",
        "alignment",
        "no multiple of 8",
        7,
        "thread 1 ",
    ),
    "nobody wrote": (
        "x[t] = in[i];",
        "if (t < 100) x[t] = in[i];",
        "uninitialised",
        "nobody has written",
        7,
        "thread 0 ",
    ),
    "no barrier before the read": (
        "    __syncthreads();\n    out",
        "    out",
        "race|uninitialised",
        "read of shared byte",
        6,
        "thread",
    ),
    "no barrier before the write": (
        "    __syncthreads();\n    x[t] = 0",
        "    x[t] = 0",
        "race",
        "of shared byte",
        8,
        "thread",
    ),
    "a barrier for some": (
        "    __syncthreads();\n    x[t]",
        "    if (t != 77) __syncthreads();\n    x[t]",
        "race|divergence",
        "",
        0,
        "77",
    ),
    "a barrier that one warp misses": (
        "    __syncthreads();\n    x[t] = 0",
        '    if (t < 96) __syncthreads();\n    if (t < 96) asm volatile("bar.sync 1, 128;");',
        "deadlock",
        "barrier 1 has 96 of 128",
        0,
        "threads 0–95 at bar.sync",
    ),
    "different values at one place": (
        "out[i] =",
        "out[i / 2] =",
        "race",
        "write different values to one place",
        7,
        "thread",
    ),
}


@ORDERS
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_found(name: str, seed: int | None) -> None:
    right, wrong, check, text, line, thread = WRONG[name]
    assert REVERSE.count(right) == 1
    with pytest.raises(SimulationError) as found:
        run_cuda(REVERSE.replace(right, wrong), DATA, blocks=2, out=((256,), "i4"), options=Options(seed=seed))
    message = str(found.value)
    assert found.value.check in check.split("|"), message
    assert text in message
    if line:
        assert f"kernel.cu:{line}" in message
    assert thread in message or seed is not None, message


def test_a_race_names_both_instructions() -> None:
    with pytest.raises(SimulationError) as found:
        run_cuda(
            REVERSE.replace("    __syncthreads();\n    x[t] = 0", "    x[t] = 0"), DATA, blocks=2, out=((256,), "i4")
        )
    assert re.fullmatch(
        r"race: write of shared byte 0, which thread 127 \(warp 3\) has read, unordered, at kernel.cu:7: "
        r"ld.shared.u32 .*"
        r"\n  block 0, thread 0 \(warp 0, lane 0\): st.shared.u32 .*\n  kernel.cu:8",
        str(found.value),
    )


CP_ASYNC = """
__device__ void copy(void* to, const void* from) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(at), "l"(from) : "memory");
}
extern "C" __global__ void small(const int* in, int* out) {
    __shared__ __align__(16) int x[2][512];
    int t = threadIdx.x;
    copy(&x[0][4 * t], in + 4 * t);
    asm volatile("cp.async.commit_group;" ::: "memory");
    copy(&x[1][4 * t], in + 512 + 4 * t);
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    int first = x[0][511 - t];
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    out[t] = first + x[1][t];
}
"""


@ORDERS
def test_copies_land_when_they_are_waited_for(seed: int | None) -> None:
    data = np.arange(1024, dtype=np.int32)
    got, _ = run_cuda(CP_ASYNC, data, options=Options(seed=seed))
    np.testing.assert_array_equal(got, data[511:383:-1] + data[512:640])


@ORDERS
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('    asm volatile("cp.async.wait_group 1;" ::: "memory");\n', ""),
        ("wait_group 1", "wait_group 2"),
        ("wait_group 0", "wait_group 1"),
        (
            '    asm volatile("cp.async.commit_group;" ::: "memory");\n    asm volatile("cp.async.wait_group 1',
            '    asm volatile("cp.async.wait_group 0',
        ),
        ('    asm volatile("cp.async.wait_group 0;" ::: "memory");\n', ""),
    ],
)
def test_a_copy_that_nobody_waits_for_is_found(right: str, wrong: str, seed: int | None) -> None:
    assert CP_ASYNC.count(right) == 1
    with pytest.raises(SimulationError, match=r"copy: .*is under way, not committed or not waited for"):
        run_cuda(CP_ASYNC.replace(right, wrong), np.arange(1024, dtype=np.int32), options=Options(seed=seed))


DIVERGENT = """
extern "C" __global__ void small(int* out) {
    int t = threadIdx.x, x = t;
    %s
    out[t] = x;
}
"""


@ORDERS
@pytest.mark.parametrize(
    "line",
    [
        "if (t % 2) x = __shfl_xor_sync(0xffffffffu, x, 1);",
        "if (t % 2) x = __any_sync(0xffffffffu, x > 5);",
        "if (t < 16) __syncwarp(); else if (t > 90) return; x = __shfl_xor_sync(0xffffffffu, x, 1);",
    ],
)
def test_lanes_that_stay_away_are_named(line: str, seed: int | None) -> None:
    with pytest.raises(
        SimulationError,
        match=r"divergence: nobody can go on in block 0\n  threads .* \(kernel.cu:4\), for the other lanes",
    ):
        run_cuda(DIVERGENT % line, options=Options(seed=seed))


@ORDERS
def test_half_a_warp_may_meet_by_itself(seed: int | None) -> None:
    got, _ = run_cuda(
        DIVERGENT % "if (t % 32 < 16) x = __shfl_xor_sync(0x0000ffffu, x, 1);", options=Options(seed=seed)
    )
    t = np.arange(128)
    np.testing.assert_array_equal(got, np.where(t % 32 < 16, t ^ 1, t))


ATOMIC = """
extern "C" __global__ void small(const unsigned* in, unsigned* out) {
    __shared__ unsigned most;
    if (threadIdx.x == 0) most = 0;
    __syncthreads();
    atomicMax(&most, in[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) out[0] = most;
    atomicAdd(out + 1, 2u);
}
"""


@ORDERS
def test_atomics_are_ordered_among_themselves_only(seed: int | None) -> None:
    data = np.random.default_rng(0).integers(0, 10**6, 128, dtype=np.uint32)
    got, _ = run_cuda(ATOMIC, data, out=((2,), "u4"), options=Options(seed=seed))
    assert got.tolist() == [data.max(), 256]
    for barrier in ("    __syncthreads();\n    atomicMax", "    __syncthreads();\n    if"):
        wrong = ATOMIC.replace(barrier, "    " + barrier.rsplit("    ", 1)[1])
        with pytest.raises(SimulationError, match=r"race|uninitialised"):
            run_cuda(wrong, data, out=((2,), "u4"), options=Options(seed=seed))


def test_a_loop_without_an_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupy_intfa.ptxsim.machine.MOST_STEPS", 1000)
    with pytest.raises(SimulationError, match="deadlock: 1000 steps, and no end"):
        run_ptx("again: bra again;", threads=32, results=("u4",))


def test_bank_conflicts_are_counted() -> None:
    source = """
    extern "C" __global__ void small(int* out) {
        __shared__ int x[32 * 33];
        int t = threadIdx.x;
        x[t * 32] = t;
        __syncwarp();
        out[t] = x[t * 32];
    }
    """
    _, trace = run_cuda(source, threads=32, out=((32,), "i4"), options=Options(detailed=True))
    assert [(a.wavefronts, a.ideal, a.warps) for a in trace.accesses] == [(32, 1, 1)] * 2
    _, trace = run_cuda(
        source.replace("t * 32", "t * 33"), threads=32, out=((32,), "i4"), options=Options(detailed=True)
    )
    assert [a.conflicts for a in trace.accesses] == [0, 0]
    assert "32.0 wavefronts where 1.0 would do" not in str(trace)


def test_wavefronts_of_wide_accesses() -> None:
    lanes = np.arange(32)
    assert wavefronts(0 * lanes, lanes, 16 * lanes, 16) == (4, 4)  # 8 lanes of 16 bytes fill the banks
    assert wavefronts(0 * lanes, lanes, 32 * lanes, 16) == (8, 4)
    assert wavefronts(lanes // 16, lanes, 4 * lanes, 4) == (2, 2)  # two warps


def test_arguments_are_checked() -> None:
    ptx = compile_ptx(REVERSE, "sm_80")
    with pytest.raises(PtxError, match="takes 2 arguments, got 1"):
        launch(ptx, "small", 1, 128, (0,), GlobalMemory())
    with pytest.raises(PtxError, match="has 8 bytes, the argument 4"):
        launch(ptx, "small", 1, 128, (0, np.int32(0)), GlobalMemory())
    with pytest.raises(PtxError, match="no kernel 'large' in the PTX: it has small"):
        launch(ptx, "large", 1, 128, (0, 0), GlobalMemory())
    with pytest.raises(SimulationError, match="4 bytes at 0x0, where there is no array"):
        launch(ptx, "small", 1, 128, (0, 0), GlobalMemory())


def test_a_source_that_does_not_compile_says_why() -> None:
    with pytest.raises(CompileError, match=r"(?s)sm_80: .*identifier \"nonsense\" is undefined"):
        compile_ptx('extern "C" __global__ void small() { nonsense(); }', "sm_80")


def test_an_atomic_of_what_nobody_has_written_is_found() -> None:
    source = """extern "C" __global__ void small(const unsigned* in, unsigned* out) {
        __shared__ unsigned most;
        atomicMax(&most, in[threadIdx.x]);
        __syncthreads();
        if (threadIdx.x == 0) out[0] = most;
    }"""
    with pytest.raises(SimulationError, match="uninitialised: atomic of"):
        run_cuda(source, np.arange(128, dtype=np.uint32), out=((1,), "u4"))


def test_a_threads_own_memory_has_bounds() -> None:
    source = """extern "C" __global__ void small(const int* in, int* out) {
        int x[8];
        for (int i = 0; i < 8; ++i) x[i] = 100 * threadIdx.x + i;
        asm volatile("" ::: "memory");
        x[in[threadIdx.x]] = 7;
        out[threadIdx.x] = x[(in[threadIdx.x] + 1) & 7];
    }"""
    with pytest.raises(SimulationError, match="bounds: 4 bytes at byte 36 of the thread's local memory, which has 32"):
        run_cuda(source, np.full(128, 9, np.int32))
