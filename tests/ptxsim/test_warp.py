"""Shuffles, votes and mma against the PTX ISA's own words, element by element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptxsim.small import Array, run_cuda, run_ptx

from cupy_intfa.ptxsim import Options, SimulationError
from cupy_intfa.ptxsim.fragments import layout_a, layout_b, layout_d
from cupy_intfa.ptxsim.mma import ELEMENTS

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=max(3, settings().max_examples // 10))


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("clamp", [31, 0x1C1F, 0x181F, 0x1803])
def test_shuffles_as_the_isa_computes_them(mode: str, clamp: int) -> None:
    """The pseudocode of shfl.sync, lane by lane."""
    rng = np.random.default_rng(clamp)
    x, by = rng.integers(0, 2**32, 64, dtype=np.uint32), rng.integers(0, 32, 64, dtype=np.uint32)
    value, valid = run_ptx(
        f"shfl.sync.{mode}.b32 %o0|%p, %i0, %i1, {clamp}, 0xffffffff; selp.u32 %o1, 1, 0, %p;",
        x,
        by,
        results=("u4", "u4"),
        registers=".reg .pred %p;",
    )
    for t in range(64):
        lane, bval = t % 32, int(by[t])
        segmask, cval = clamp >> 8 & 31, clamp & 31
        max_lane = (lane & segmask) | (cval & ~segmask)
        min_lane = lane & segmask
        if mode == "up":
            j = lane - bval
            good = j >= max_lane
        elif mode == "down":
            j = lane + bval
            good = j <= max_lane
        elif mode == "bfly":
            j = lane ^ bval
            good = j <= max_lane
        else:
            j = min_lane | (bval & ~segmask)
            good = j <= max_lane
        j = j if good else lane
        assert (int(value[t]), bool(valid[t])) == (int(x[t // 32 * 32 + j]), good), t


@few
@given(seeds)
def test_votes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, 128, dtype=np.uint32)
    x[:32], x[32:64] = 0, 1
    got = run_ptx(
        "setp.ne.u32 %p, %i0, 0; vote.sync.any.pred %q, %p, -1; selp.u32 %o0, 1, 0, %q;"
        "vote.sync.all.pred %q, %p, -1; selp.u32 %o1, 1, 0, %q; vote.sync.ballot.b32 %o2, %p, -1;"
        "vote.sync.uni.pred %q, %p, -1; selp.u32 %o3, 1, 0, %q; redux.sync.add.u32 %o4, %i0, -1;",
        x,
        results=("u4",) * 5,
        registers=".reg .pred %p, %q;",
    )
    for warp in range(4):
        lanes = slice(32 * warp, 32 * warp + 32)
        bits = x[lanes].tolist()
        wanted = (any(bits), all(bits), sum(b << i for i, b in enumerate(bits)), len(set(bits)) == 1, sum(bits))
        assert all((g[lanes] == w).all() for g, w in zip(got, wanted, strict=True))


def test_a_vote_of_half_a_warp() -> None:
    x = np.arange(32, dtype=np.uint32)
    body = """setp.lt.u32 %h, %t, 16; setp.eq.u32 %p, %t, 20; mov.u32 %o0, 9; mov.u32 %m, 0xffff;
    @!%h mov.u32 %m, 0xffff0000;
    vote.sync.any.pred %q, %p, %m; selp.u32 %o0, 1, 0, %q;"""
    (got,) = run_ptx(body, x, results=("u4",), registers=".reg .pred %p, %q, %h; .reg .b32 %m;")
    assert got.tolist() == [0] * 16 + [1] * 16


def isa_a(kind: str, lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of A's fragment, as "Matrix Fragments for mma" of the PTX ISA gives them."""
    group, thread = lane >> 2, lane % 4
    if kind == "m16n8k32":  # 8-bit
        row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
        return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)
    if kind == "m16n8k16":  # 16-bit
        row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if kind == "m16n8k8":  # 16-bit
        return (group if i < 2 else group + 8), thread * 2 + (i & 1)
    return group, thread * 4 + i  # m8n8k16, 8-bit


def isa_b(kind: str, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if kind == "m16n8k32":
        return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group
    if kind == "m16n8k16":
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if kind == "m16n8k8":
        return thread * 2 + i, group
    return thread * 4 + i, group


def isa_d(rows: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 or rows == 8 else group + 8), thread * 2 + (i & 1)


SHAPES = {
    "m16n8k32": (16, 32, ("s8", "u8", "e4m3", "e5m2")),
    "m16n8k16": (16, 16, ("f16", "bf16")),
    "m16n8k8": (16, 8, ("f16",)),
    "m8n8k16": (8, 16, ("s8", "u8")),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_fragments_are_where_the_isa_says(shape: str) -> None:
    rows, depth, kinds = SHAPES[shape]
    size = ELEMENTS[kinds[0]].itemsize
    a, b, d = layout_a(rows, depth, size), layout_b(depth, size), layout_d(rows, 8)
    for lane in range(32):
        for layout, wanted in ((a, isa_a), (b, isa_b)):
            for i in range(layout.rows.shape[1]):
                assert (layout.rows[lane, i], layout.columns[lane, i]) == wanted(shape, lane, i)
        for i in range(d.rows.shape[1]):
            assert (d.rows[lane, i], d.columns[lane, i]) == isa_d(rows, lane, i)


def random_elements(rng: np.random.Generator, kind: str, count: int) -> Array:
    dtype = ELEMENTS[kind]
    if dtype.kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, count).astype(dtype)
    return rng.standard_normal(count).astype(np.float32).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "type_a", "type_b"),
    [(s, a, "s8" if a == "u8" else a) for s, (_, _, kinds) in SHAPES.items() for a in kinds],
)
@few
@given(seeds)
def test_mma_is_the_product(shape: str, type_a: str, type_b: str, seed: int) -> None:
    rows, depth, _ = SHAPES[shape]
    rng = np.random.default_rng(seed)
    integers = ELEMENTS[type_a].kind in "iu"
    size = ELEMENTS[type_a].itemsize
    per, result = 4 // size, "s32" if integers else "f32"
    a, b = random_elements(rng, type_a, rows * depth), random_elements(rng, type_b, depth * 8)
    c = rng.integers(-(2**31), 2**31, rows * 8).astype(np.int32) if integers else rng.standard_normal(rows * 8)
    c = c.astype("i4" if integers else "f4")
    a_words, b_words, c_words = (x.reshape(32, -1).view(np.uint32) for x in (a, b, c))
    count = [w.shape[1] for w in (a_words, b_words, c_words)]
    inputs = [np.ascontiguousarray(w[:, i]) for w in (a_words, b_words, c_words) for i in range(w.shape[1])]
    lists, at = [], 0
    for n in count:
        lists.append("{" + ", ".join(f"%i{at + i}" for i in range(n)) + "}")
        at += n
    d_list = "{" + ", ".join(f"%o{i}" for i in range(count[2])) + "}"
    body = f"mma.sync.aligned.{shape}.row.col.{result}.{type_a}.{type_b}.{result} {d_list}, {', '.join(lists)};"
    got = run_ptx(body, *inputs, results=("i4" if integers else "f4",) * count[2])

    matrix_a, matrix_b = np.zeros((rows, depth)), np.zeros((depth, 8))
    for lane in range(32):
        for i in range(count[0] * per):
            matrix_a[isa_a(shape, lane, i)] = a.reshape(32, -1)[lane, i]
        for i in range(count[1] * per):
            matrix_b[isa_b(shape, lane, i)] = b.reshape(32, -1)[lane, i]
    exact = matrix_a @ matrix_b
    for lane in range(32):
        for i in range(count[2]):
            total = exact[isa_d(rows, lane, i)] + float(c.reshape(32, -1)[lane, i])
            if integers:
                assert int(got[i][lane]) == (int(total) + 2**31) % 2**32 - 2**31
            else:
                assert got[i][lane] == np.float32(total)


SYNC = """
extern "C" __global__ void small(int* out) {
    __shared__ int x[64];
    int t = threadIdx.x;
    x[t] = t * t;
    %s
    out[t] = x[t ^ 1];
}
"""


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_only_syncwarp_orders_lanes_of_a_warp(seed: int | None) -> None:
    wanted = (np.arange(64) ^ 1) ** 2
    got, _ = run_cuda(SYNC % "__syncwarp();", threads=64, out=((64,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got, wanted)
    for order in ("", "__any_sync(0xffffffffu, t);", "x[t] += __shfl_sync(0xffffffffu, t, 0);"):
        with pytest.raises(SimulationError, match=r"race: read of shared byte \d+, which thread \d+ \(warp [01]\) has"):
            run_cuda(SYNC % order, threads=64, out=((64,), "i4"), options=Options(seed=seed))
