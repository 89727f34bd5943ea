"""wgmma, bulk and tensor copies, mbarriers and named barriers, each alone and in a ring."""

from __future__ import annotations

import numpy as np
import pytest
from ptxsim.hopper import (
    CP_ASYNC,
    NAMED,
    RING,
    TMA,
    held_of_a,
    place_of_d,
    registers_kernel,
    ring_data,
    tile_kernel,
    transposed_kernel,
)
from ptxsim.small import Array, run_cuda

from cupy_intfa.ptxsim import Options, SimulationError
from cupy_intfa.ptxsim.tensor_map import TensorMap


@pytest.mark.parametrize("span", [16, 32, 64, 128])
@pytest.mark.parametrize(("types", "columns"), [("s8.s8", 64), ("u8.s8", 32), ("s8.s8", 128), ("u8.s8", 96)])
def test_wgmma_of_bytes_in_every_swizzle(types: str, columns: int, span: int) -> None:
    rng, width = np.random.default_rng(span), max(span, 32)
    first = np.uint8 if types.startswith("u8") else np.int8
    a = rng.integers(0, 256, (64, width), dtype=np.uint8).view(first)
    b = rng.integers(0, 256, (columns, width), dtype=np.uint8).view(np.int8)
    rows, places = place_of_d(columns // 2)
    for step in range(width // 32):
        depth = slice(32 * step, 32 * step + 32)
        exact = a[:, depth].astype(int) @ b[:, depth].astype(int).T
        for add in (False, True):
            source = tile_kernel(f"m64n{columns}k32.s32.{types}", columns // 2, span, columns, add)
            got, _ = run_cuda(source, a, b, np.uint32(step), arch="sm_90a", out=((128, columns // 2), "i4"))
            before = np.add.outer(np.arange(128), np.arange(columns // 2)) if add else 0
            np.testing.assert_array_equal(got, exact[rows, places] + before)


@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("types", ["s8.s8", "u8.s8"])
def test_wgmma_of_bytes_with_a_in_registers(types: str, span: int) -> None:
    """A lane holds of A what it holds of m16n8k32: rows g and g + 8, bytes 4t and 16 + 4t and the three after each."""
    source = registers_kernel(types, span)
    rng, first = np.random.default_rng(span), np.uint8 if types.startswith("u8") else np.int8
    a = rng.integers(0, 256, (64, 32), dtype=np.uint8).view(first)
    b = rng.integers(0, 256, (64, span), dtype=np.uint8).view(np.int8)
    got, _ = run_cuda(source, held_of_a(a), b, arch="sm_90a", out=((128, 32), "i4"))
    rows, places = place_of_d(32)
    np.testing.assert_array_equal(got, (a.astype(int) @ b[:, :32].astype(int).T)[rows, places])


def test_registers_of_warpgroups_have_to_fit_together() -> None:
    source = """extern "C" __global__ void __launch_bounds__(384) small(int* out) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 168;");
        out[threadIdx.x] = threadIdx.x;
    }"""
    got, _ = run_cuda(source, threads=384, arch="sm_90a", out=((384,), "i4"))
    np.testing.assert_array_equal(got, np.arange(384))
    with pytest.raises(SimulationError, match="registers: warpgroups ask for 67584"):
        run_cuda(source.replace("168", "176"), threads=384, arch="sm_90a", out=((384,), "i4"))


@pytest.mark.parametrize("span", [32, 64, 128])
def test_wgmma_of_halves(span: int) -> None:
    rng = np.random.default_rng(span)
    a, b = (rng.integers(-8, 8, (n, span // 2)).astype(np.float16) for n in (64, 32))
    source = tile_kernel("m64n32k16.f32.f16.f16", 16, span, 32, False, "float")
    got, _ = run_cuda(source, a, b, np.uint32(0), arch="sm_90a", out=((128, 16), "f4"))
    rows, places = place_of_d(16)
    exact = a[:, :16].astype(np.float64) @ b[:, :16].astype(np.float64).T
    np.testing.assert_array_equal(got, exact[rows, places])


@pytest.mark.parametrize(("columns", "span"), [(32, 64), (64, 128), (96, 64), (128, 128), (32, 32)])
def test_wgmma_with_a_in_registers_and_b_transposed(columns: int, span: int) -> None:
    """B as float16 V lies: a row per key, cut into columns as wide as the swizzle."""
    count, source = columns // 2, transposed_kernel(columns, span)
    rng = np.random.default_rng(columns)
    a, b = rng.integers(-8, 8, (64, 16)).astype(np.float16), rng.integers(-8, 8, (16, columns)).astype(np.float16)
    got, _ = run_cuda(source, held_of_a(a), b, arch="sm_90a", out=((128, count), "f4"))
    rows, places = place_of_d(count)
    np.testing.assert_array_equal(got, (a.astype(np.float64) @ b.astype(np.float64))[rows, places])


def run_ring(source: str, tiles: int, seed: int | None = None) -> tuple[Array, Array]:
    q, k, exact = ring_data(tiles)
    got, _ = run_cuda(
        source,
        q,
        k,
        np.uint32(tiles),
        threads=256,
        arch="sm_90a",
        shared_bytes=3 * 4096 + 32,
        out=((64, 64), "i4"),
        options=Options(seed=seed),
    )
    return got, exact


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_a_ring_of_tiles_is_right_in_any_order(tiles: int, seed: int | None) -> None:
    got, exact = run_ring(RING, tiles, seed)
    np.testing.assert_array_equal(got, exact)


MISTAKES = {
    "the producer does not wait for a free stage": (
        "                wait(empty + 8 * s, phase ^ 1);\n",
        "",
        "race|mbarrier",
        "copy_line|expect",
    ),
    "the wrong parity of an empty stage": ("phase ^ 1", "phase", "deadlock", "wait"),
    "the consumer does not wait for its tile": (
        "            wait(full + 8 * s, phase);\n",
        "",
        "race|uninitialised|deadlock",
        "product",
    ),
    "the wrong parity of a full stage": (
        "wait(full + 8 * s, phase);",
        "wait(full + 8 * s, phase ^ 1);",
        "race",
        "product",
    ),
    "a stage is not given back": ("            arrive(empty + 8 * s);\n", "", "deadlock", "wait"),
    "a stage is given back before its product is done": (
        "            retire<0>();\n            arrive(empty + 8 * s);",
        "            arrive(empty + 8 * s);\n            retire<0>();",
        "race",
        "copy_line",
    ),
    "too few bytes are announced": (
        "expect(full + 8 * s, kTile);",
        "expect(full + 8 * s, kTile - 16);",
        "race|mbarrier|deadlock",
        "",
    ),
    "too many bytes are announced": (
        "expect(full + 8 * s, kTile);",
        "expect(full + 8 * s, kTile + 16);",
        "deadlock",
        "",
    ),
    "an mbarrier expects too many arrivals": ("init(empty + 8 * i, 128);", "init(empty + 8 * i, 129);", "deadlock", ""),
    "an mbarrier expects too few arrivals": (
        "init(empty + 8 * i, 128);",
        "init(empty + 8 * i, 127);",
        "mbarrier|race|deadlock",
        "",
    ),
    "nobody knows that the mbarriers are there": ("    __syncthreads();\n", "", "race|mbarrier", ""),
    "no proxy fence between st.shared and wgmma": ("    proxy_fence();\n", "", "proxy", "product"),
    "no wgmma.fence": ("            wgmma_fence();\n", "", "wgmma", "product"),
    "no wait_group": ("            retire<0>();\n", "", "wgmma|race", ""),
    "no commit_group": ("            commit();\n", "", "wgmma|race", ""),
    "one group is left pending": ("retire<0>();", "retire<1>();", "wgmma|race", ""),
    "a tile in the middle of a pattern": (
        "stages + s * kTile + 32, 64",
        "stages + s * kTile + 96, 64",
        "alignment",
        "",
    ),
    "stages too near": ("stages = base + kTile,", "stages = base + kTile - 1024,", "race", "copy_line"),
    "a copy of an odd length": (
        "k + i * kTile, kTile, full",
        "k + i * kTile, kTile - 8, full",
        "alignment",
        "copy_line",
    ),
    "a copy from an odd address": ("k + i * kTile, kTile", "k + i * kTile + 8, kTile", "alignment", "copy_line"),
    "a copy beyond the array": ("k + i * kTile,", "k + (i + 1) * kTile,", "bounds", "copy_line"),
    "a barrier beyond shared memory": ("empty = barriers + 8 * kStages;", "empty = barriers + 24;", "bounds", ""),
    "half of a warpgroup multiplies": (
        "            wgmma_fence();\n",
        "            if (threadIdx.x >= 192) continue;\n            wgmma_fence();\n",
        "divergence|deadlock|mbarrier",
        "",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_mistake_in_the_ring_is_found(mistake: str, seed: int | None) -> None:
    right, wrong, check, line = MISTAKES[mistake]
    assert RING.count(right) >= 1
    with pytest.raises(SimulationError) as found:
        run_ring(RING.replace(right, wrong, 1), 5, seed)
    assert found.value.check in check.split("|"), found.value
    if line:
        lines = enumerate(RING.replace(right, wrong, 1).split("\n"), 1)
        numbers = [i for i, text in lines if any(part in text for part in line.split("|"))]
        assert any(f"kernel.cu:{number}" in str(found.value) for number in numbers), found.value


def test_copies_have_to_know_that_mbarriers_are_there() -> None:
    told, fence = "        init_done();\n", "    proxy_fence();\n"
    wrong = RING.replace(told, "").replace(fence, "")
    expected = r"proxy: the mbarrier at byte \d+ \(initialised at kernel.cu:\d+.*\) had no fence.mbarrier_init since"
    with pytest.raises(SimulationError, match=expected) as found:
        run_ring(wrong, 2)
    assert "cp.async.bulk" in found.value.where
    by_another = RING.replace(told, "").replace(fence, "    __syncthreads();\n    if (threadIdx.x == 1) init_done();\n")
    with pytest.raises(SimulationError, match=expected):
        run_ring(by_another, 2)


def test_fence_mbarrier_init_orders_nothing_but_mbarriers() -> None:
    """It is no fence.proxy.async: what st.shared wrote stays unknown to wgmma."""
    with pytest.raises(SimulationError, match=r"proxy: the asynchronous proxy's read .* without a fence.proxy.async"):
        run_ring(RING.replace("    proxy_fence();\n", "    init_done();\n"), 2)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("corner", [(0, 0, 0, 0), (16, 3, 1, 1), (-16, -2, 0, -1), (100, 5, 2, 1)])
def test_a_tensor_copy_brings_a_box_with_zeros_outside(rank: int, swizzle: int, corner: tuple[int, ...]) -> None:
    sizes, box = (80, 7, 3, 2)[:rank], (swizzle or 48, 8, 2, 2)[:rank]
    array = np.random.default_rng(rank).integers(1, 256, sizes[::-1], dtype=np.uint8)
    strides = tuple(int(s) for s in array.strides[::-1])
    count = int(np.prod(box))

    def tensor_map(address: int, *_: int) -> bytes:
        return TensorMap(address, 1, sizes, strides, box, swizzle).encode()

    coordinates = ", ".join(f"%{3 + i}" for i in range(rank))
    source = TMA.replace("SIZE", str(count)).replace("RANK", str(rank)).replace("COORDINATES", coordinates)
    given = [np.int32(c) for c in corner]
    got, _ = run_cuda(
        source.replace("const __grid_constant__ Map map,", "const u8* array, const __grid_constant__ Map map,"),
        array,
        tensor_map,
        *given,
        np.uint32(count),
        arch="sm_90a",
        out=((count,), "u1"),
    )
    wanted = np.zeros(box[::-1], np.uint8)
    for index in np.ndindex(*box[::-1]):
        place = tuple(c + i for c, i in zip(corner[:rank][::-1], index, strict=True))
        if all(0 <= p < n for p, n in zip(place, array.shape, strict=True)):
            wanted[index] = array[place]
    at = np.arange(count)
    units = max(swizzle, 16) // 16
    np.testing.assert_array_equal(got[at ^ (at >> 7 & units - 1) << 4], wanted.ravel())


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_named_barriers_order_who_arrives_before_who_waits(seed: int | None) -> None:
    options = Options(seed=seed)
    got, _ = run_cuda(NAMED, out=((64,), "i4"), options=options)
    np.testing.assert_array_equal(got, np.arange(64)[::-1])
    wrong = NAMED.replace("bar.arrive 1, 128", "bar.arrive 2, 128")
    with pytest.raises(SimulationError, match=r"(?s)threads 64–127 at bar.sync 1, 128 .*barrier 1 has 64 of 128"):
        run_cuda(wrong, out=((64,), "i4"), options=options)
    with pytest.raises(SimulationError, match="barrier for 160 threads in a block of 128"):
        run_cuda(NAMED.replace("1, 128", "1, 160"), out=((64,), "i4"), options=options)
    late = NAMED.replace("        x[t] = t;\n", "").replace("    } else {", "        x[t] = t;\n    } else {")
    with pytest.raises(SimulationError, match=r"race|uninitialised"):
        run_cuda(late, out=((64,), "i4"), options=options)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_mbarrier_waits_for_copies_of_threads(seed: int | None) -> None:
    data = np.arange(512, dtype=np.int32)
    got, _ = run_cuda(CP_ASYNC, data, out=((128,), "i4"), options=Options(seed=seed))
    np.testing.assert_array_equal(got, 511 - 4 * np.arange(128))
    lines = CP_ASYNC.split("\n")
    for gone, check in (
        ("mbarrier.arrive", "deadlock"),
        ("test_wait", "race|copy|uninitialised"),
        ("mbarrier.init", "mbarrier"),
    ):
        source = "\n".join(line for line in lines if gone not in line)
        with pytest.raises(SimulationError) as found:
            run_cuda(source, data, out=((128,), "i4"), options=Options(seed=seed))
        assert found.value.check in check.split("|")


def test_a_question_that_is_asked_once_may_be_answered_no() -> None:
    """try_wait may return before the phase has ended: who does not ask again is found out."""
    wrong = RING.replace("@!p bra again;", "")
    with pytest.raises(SimulationError):
        run_ring(wrong, 5)
