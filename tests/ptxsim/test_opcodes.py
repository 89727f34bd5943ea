"""Instructions of warps, copies and mbarriers alone, against what the PTX ISA says of them."""

from __future__ import annotations

import numpy as np
import pytest
from ptxsim.approximations import APPROXIMATIONS
from ptxsim.small import run_cuda, run_ptx

from cupy_intfa.ptxsim import Options, PtxError, SimulationError

ORDERS = pytest.mark.parametrize("seed", [None, 0, 1])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Row r of matrix i is at the address of lane 8i + r; lane 4r + c gets its elements 2c, 2c + 1; .trans: columns.

    The addresses of lanes beyond 8 * count are not looked at.
    """
    rows = np.random.default_rng(0).integers(0, 2**16, (32, 8), dtype=np.uint16)
    order = np.random.default_rng(1).permutation(32).astype(np.uint32)
    address = order.copy()
    address[8 * count :] = 10**6
    trans, targets = ".trans" if transposed else "", ", ".join(f"%o{i}" for i in range(count))
    body = f"""mov.u32 %s, tile; mad.lo.u32 %b, %t, 16, %s; st.shared.v4.b32 [%b], {{%i0, %i1, %i2, %i3}}; bar.sync 0;
    mad.lo.u32 %b, %i4, 16, %s;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{targets}}}, [%b];"""
    words = [np.ascontiguousarray(rows.view(np.uint32)[:, i]) for i in range(4)]
    got = run_ptx(
        body,
        *words,
        address,
        results=("u4",) * count,
        registers=".reg .b32 %s, %b;",
        declare=".shared .align 16 .b8 tile[512];",
    )
    for i, register in enumerate(got):
        matrix = rows[order[8 * i : 8 * i + 8]]
        np.testing.assert_array_equal(register.view(np.uint16).reshape(8, 8), matrix.T if transposed else matrix)


def test_elect_chooses_one_lane_of_those_that_are_named() -> None:
    """The ISA leaves open which; every lane is told the same one, and only it has the predicate."""
    body = """setp.lt.u32 %h, %t, 48; mov.u32 %m, -1; mov.u32 %o0, 99; mov.u32 %o1, 99;
    elect.sync %o0|%p, %m; selp.u32 %o1, 1, 0, %p;"""
    registers = ".reg .pred %p, %h; .reg .b32 %m;"
    leader, elected = run_ptx(body, results=("u4", "u4"), threads=64, registers=registers)
    for warp in range(2):
        lanes = slice(32 * warp, 32 * warp + 32)
        assert len(set(leader[lanes].tolist())) == 1
        assert elected[lanes].nonzero()[0].tolist() == [leader[32 * warp]]
    part = body.replace("mov.u32 %m, -1;", "mov.u32 %m, 0xff00; setp.ge.u32 %h, %t, 8; setp.lt.and.u32 %h, %t, 16, %h;")
    part = part.replace("elect.sync", "@%h elect.sync").replace("selp.u32", "@%h selp.u32")
    leader, elected = run_ptx(part, results=("u4", "u4"), threads=32, registers=registers)
    assert set(leader[8:16].tolist()) == {leader[8]} <= set(range(8, 16))
    assert elected[8:16].tolist() == [int(lane == leader[8]) for lane in range(8, 16)]
    assert (leader[:8] == 99).all()
    assert (leader[16:] == 99).all()


COPY = """
typedef unsigned int u32;
extern "C" __global__ void small(const int* in, const u32* used, int* out) {
    __shared__ __align__(16) int x[512];
    u32 t = threadIdx.x, to = (u32)__cvta_generic_to_shared(x + 4 * t);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(in + 4 * t), "r"(used[t]) : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int i = 0; i < 4; ++i) out[4 * t + i] = x[4 * t + i];
}
"""


@ORDERS
def test_a_copy_of_fewer_bytes_fills_up_with_zeros(seed: int | None) -> None:
    """``cp.async dst, src, 16, n``: n bytes, then zeros; wait_all waits for what is not committed too."""
    data = np.random.default_rng(0).integers(1, 2**31, 512, dtype=np.int32)
    used = np.random.default_rng(1).integers(0, 17, 128, dtype=np.uint32)
    got, _ = run_cuda(COPY, data, used, out=((512,), "i4"), options=Options(seed=seed))
    wanted = data.view(np.uint8).reshape(128, 16) * (np.arange(16) < used[:, None])
    np.testing.assert_array_equal(got.view(np.uint8).reshape(128, 16), wanted)
    few = np.where(np.arange(128) < 100, 16, 0).astype(np.uint32)
    few[99] = 7  # and nothing beyond is read
    got, _ = run_cuda(COPY, data[:398], few, out=((512,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got.view(np.uint8)[: 99 * 16 + 7], data.view(np.uint8)[: 99 * 16 + 7])
    assert not got.view(np.uint8)[99 * 16 + 7 :].any()
    with pytest.raises(SimulationError, match=r"bounds: read of .* input 0"):
        run_cuda(COPY, data[:398], np.where(few, 16, 0).astype(np.uint32), out=((512,), "i4"))
    with pytest.raises(SimulationError, match=r"alignment: a copy of 17 of 16 bytes"):
        run_cuda(COPY, data, np.full(128, 17, np.uint32), out=((512,), "i4"))
    with pytest.raises(
        SimulationError, match=r"alignment: a copy of 4 of 16 bytes from address .*: expected a multiple of 16"
    ):
        run_cuda(COPY.replace("in + 4 * t", "in + 4 * t + 1"), data, np.full(128, 4, np.uint32), out=((512,), "i4"))
    for instead in ("cp.async.commit_group;", "cp.async.wait_group 0;"):
        with pytest.raises(SimulationError, match=r"copy: .* is under way, not committed or not waited for"):
            run_cuda(COPY.replace("cp.async.wait_all;", instead), data, used, out=((512,), "i4"))


MBARRIER = """
typedef unsigned int u32; typedef unsigned long long u64;
extern "C" __global__ void small(const int* in, int* out) {
    __shared__ __align__(16) int x[512];
    __shared__ __align__(8) u64 barrier;
    const u32 b = (u32)__cvta_generic_to_shared(&barrier), to = (u32)__cvta_generic_to_shared(x);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared.b64 [%0], 128;" :: "r"(b) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 2048;" :: "r"(b) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 2048, [%2];"
                     :: "r"(to), "l"(in), "r"(b) : "memory");
    }
    __syncthreads();
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(b) : "memory");
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], 0; @!p bra again;}" :: "r"(b));
    const int found = x[511 - 4 * threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.inval.shared.b64 [%0];" :: "r"(b) : "memory");
        barrier = 7;
    }
    __syncthreads();
    out[threadIdx.x] = found + (int)barrier;
}
"""
DATA = np.arange(512, dtype=np.int32)


@ORDERS
def test_bytes_are_expected_without_an_arrival_and_barriers_end(seed: int | None) -> None:
    """expect_tx alone announces bytes to the phase; after inval the barrier's bytes are memory like any other."""
    got, _ = run_cuda(MBARRIER, DATA, out=((128,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got, 511 - 4 * np.arange(128) + 7)


_INIT = '        asm volatile("mbarrier.init.shared.b64 [%0], 128;" :: "r"(b) : "memory");\n'
_FENCE = '        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");\n'
_INVAL = '        asm volatile("mbarrier.inval.shared.b64 [%0];" :: "r"(b) : "memory");\n'
_ARRIVE = '    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(b) : "memory");\n'
_BARRIER = r"the mbarrier at byte \d+ \(initialised at kernel\.cu:8\)"


@ORDERS
@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("[%0], 2048;", "[%0], 2064;", f"deadlock(?s:.*){_BARRIER} is in phase 0, with 0 of 128 arrivals and 16 bytes"),
        ("[%0], 2048;", "[%0], 2032;", "deadlock|race|mbarrier"),
        (_FENCE, "", f"proxy: {_BARRIER} had no fence.mbarrier_init since"),
        (_INIT, 2 * _INIT, f"mbarrier: {_BARRIER} is there: expected mbarrier.inval before another"),
        (
            "    __syncthreads();\n    if (threadIdx.x == 0) {\n" + _INVAL,
            "    if (threadIdx.x == 0) {\n" + _INVAL,
            "race: ",
        ),
        (
            "        barrier = 7;\n    }\n",
            "    }\n    if (threadIdx.x == 32) barrier = 7;\n",
            "race: write of shared byte",
        ),
        (
            "    }\n    __syncthreads();\n" + _ARRIVE,
            _INVAL + "    }\n    __syncthreads();\n" + _ARRIVE,
            rf"mbarrier: 2048 bytes under way at the end of {_BARRIER}",
        ),
        (_INVAL, 2 * _INVAL, r"mbarrier: no mbarrier was initialised at byte \d+ of shared memory"),
        (_INVAL, _INVAL + _ARRIVE, r"mbarrier: no mbarrier was initialised"),
    ],
)
def test_a_wrong_life_of_an_mbarrier_is_found(right: str, wrong: str, error: str, seed: int | None) -> None:
    assert MBARRIER.count(right) == 1
    with pytest.raises(SimulationError, match=error):
        run_cuda(MBARRIER.replace(right, wrong), DATA, out=((128,), "i4"), options=Options(seed=seed))


@ORDERS
def test_who_copies_has_to_know_of_the_fence(seed: int | None) -> None:
    meet = "    __syncthreads();\n"
    late = "    }\n" + meet + "    if (threadIdx.x == 0)\n" + _FENCE + meet + "    if (threadIdx.x == 32) {\n"
    source = MBARRIER.replace(_FENCE, late)
    got, _ = run_cuda(source, DATA, out=((128,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got, 511 - 4 * np.arange(128) + 7)
    with pytest.raises(SimulationError, match=rf"proxy: {_BARRIER} had no fence\.mbarrier_init since"):
        run_cuda(source.replace(_FENCE + meet, _FENCE), DATA, out=((128,), "i4"), options=Options(seed=seed))


def test_an_unfinished_phase_is_named() -> None:
    again = _ARRIVE.replace("    asm", "    if (threadIdx.x < 3) asm")
    source = MBARRIER.replace(_INVAL + "        barrier = 7;\n", "").replace("(int)barrier", "7")
    source = source.replace("    out[threadIdx.x]", again + "    out[threadIdx.x]")
    expected = rf"mbarrier: block 0 ends while {_BARRIER} is in phase 1, with 125 of 128 arrivals and 0 bytes missing"
    with pytest.raises(SimulationError, match=expected):
        run_cuda(source, DATA)


@pytest.mark.parametrize("opcode", APPROXIMATIONS)
def test_approximations_keep_the_bounds_of_the_isa(opcode: str) -> None:
    """On arguments of any size whose results are normal; zeros, infinities and negative ones as the ISA's tables."""
    one = APPROXIMATIONS[opcode]
    x = one.arguments()
    (got,) = run_ptx(f"{opcode} %o0, %i0;", x, results=("f4",))
    assert (np.abs(got - one.function(x.astype(np.float64))) <= one.bound(x)).all()
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, 1e-40, -1e-40], np.float32)
    (got,) = run_ptx(f"{opcode} %o0, %i0;", special, results=("f4",))
    inf, nan = np.inf, np.nan
    results: dict[str, list[float]] = {
        "ex2": [1, 1, inf, 0, nan, 0.5, 1, 1],
        "rcp": [inf, -inf, 0, -0.0, nan, -1, inf, -inf],
        "sqrt": [0, -0.0, inf, nan, nan, nan, 0, -0.0],
        "rsqrt": [inf, -inf, 0, nan, nan, nan, inf, -inf],
        "lg2": [-inf, -inf, inf, nan, nan, nan, -inf, -inf],
    }
    wanted = np.array(results[opcode.split(".")[0]], np.float32)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(np.where(np.isnan(got), got, wanted)))


WMMA = """
typedef signed char s8; typedef unsigned int u32;
__device__ u32 at(const void* p) { return (u32)__cvta_generic_to_shared(p); }
extern "C" __global__ void small(const s8* a, const s8* b, const int* c, int* out) {
    __shared__ __align__(32) s8 staged[2][16 * 32];
    __shared__ __align__(32) int sums[16 * 24];
    u32 x[2], y[2], d[8];
    for (int i = threadIdx.x; i < 256; i += 32) {
        staged[0][i / 16 * 32 + i % 16] = a[i];
        staged[1][i] = b[i];
    }
    for (int i = 0; i < 8; ++i) d[i] = c[0];
    __syncwarp();
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.s8 {%0,%1}, [%2], 32;"
                 : "=r"(x[0]), "=r"(x[1]) : "r"(at(staged[0])) : "memory");
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.s8 {%0,%1}, [%2], 16;"
                 : "=r"(y[0]), "=r"(y[1]) : "r"(at(staged[1])) : "memory");
    asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11},"
                 "{%0,%1,%2,%3,%4,%5,%6,%7};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
                 : "r"(x[0]), "r"(x[1]), "r"(y[0]), "r"(y[1]));
    asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.shared.s32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8}, 24;"
                 :: "r"(at(sums)), "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3]), "r"(d[4]), "r"(d[5]), "r"(d[6]),
                 "r"(d[7]) : "memory");
    __syncwarp();
    for (int i = threadIdx.x; i < 256; i += 32) out[i] = sums[i / 16 * 24 + i % 16];
}
"""


def test_wmma_is_the_product_and_its_fragments_are_no_ones_business() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (16, 16)).astype(np.int8) for _ in range(2))
    arguments = (a, b, np.full(1, 7, np.int32))
    got, trace = run_cuda(WMMA, *arguments, threads=32, out=((16, 16), "i4"), options=Options(detailed=True))
    np.testing.assert_array_equal(got, a.astype(int) @ b.T.astype(int) + 7)
    (fragment,) = trace.fragments
    np.testing.assert_array_equal(fragment.a, a)
    np.testing.assert_array_equal(fragment.d, got)
    with pytest.raises(ValueError, match=r"wmma.* does not say which elements a thread holds"):
        fragment.held(0)
    wrong = WMMA.replace("aligned.row.m16n16k16.shared.s8", "aligned.col.m16n16k16.shared.s8")
    with pytest.raises(PtxError, match=r"not modelled: wmma\.load\.a\.sync\.aligned\.col"):
        run_cuda(wrong, *arguments, threads=32)


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("[%2], 16;", "[%2], 20;", "alignment: 8 bytes"),
        ("[%2], 32;", "[%2], 64;", "bounds|uninitialised"),
        ("%8}, 24;", "%8}, 20;", "alignment: 32 bytes"),
        ('"memory");\n    __syncwarp();\n    for', '"memory");\n    for', "race"),
        ("d[i] = c[0];\n    __syncwarp();", "d[i] = c[0];", "race"),
    ],
)
def test_wmma_reads_and_writes_shared_memory_under_the_checks(right: str, wrong: str, error: str) -> None:
    assert WMMA.count(right) == 1
    arguments = (np.ones((16, 16), np.int8), np.ones((16, 16), np.int8), np.zeros(1, np.int32))
    with pytest.raises(SimulationError, match=error):
        run_cuda(WMMA.replace(right, wrong), *arguments, threads=32, out=((16, 16), "i4"))
