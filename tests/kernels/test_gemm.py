"""The GEMM ladder: compiled for every architecture, run in the simulator, on a GPU exact over shapes and layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_gate import build_kernel, faults
from kernel_matrix import Build
from nvrtc import CompileError, instructions
from strategies import Array, dtype_of, seeds

from cupy_intfa.device import DeviceInfo
from cupy_intfa.gemm import explain_int8_matmul, int8_matmul
from cupy_intfa.gemm_ladder import RUNGS, GemmProblem, Matrix, Rung, Tile
from cupy_intfa.gemm_launch import Addresses, launch_gemm
from cupy_intfa.gemm_plan import DTYPES, GemmPlan, make_gemm_plan
from cupy_intfa.simulator import Simulator, simulated_device

SIDES = (1, 15, 16, 17, 127, 129, 1000)
LAYOUTS = ("row", "column", "gaps", "reversed", "odd")
OUTPUTS = tuple(DTYPES)
# A product per tile that a plan can choose: few rows, few tiles, many, many of one row of tiles.
SHAPES = ((16, 4096, 64), (64, 4096, 64), (128, 128, 64), (8192, 8192, 64), (128, 65536, 64))


def plan_of(m: int, n: int, rung: str, device: DeviceInfo, out: str = "int32", k: int = 64) -> GemmPlan | str:
    a, b = (Matrix(rows=rows, depth=k, row_stride=k, depth_stride=1) for rows in (m, n))
    try:
        return make_gemm_plan(GemmProblem(a=a, b=b, out_dtype=out), rung, device)
    except NotImplementedError as error:
        return str(error)


def builds() -> list[Build]:
    made: dict[Build, None] = {}
    for device in DEVICES.values():
        for rung in RUNGS:
            for (m, n, k), out in [(shape, out) for shape in SHAPES for out in OUTPUTS]:
                plan = plan_of(m, n, rung, device, out, k)
                if isinstance(plan, GemmPlan) and plan.kernel:
                    kernel = plan.kernel
                    made[
                        Build(
                            device=device,
                            source=kernel.source,
                            defines=plan.defines,
                            threads=kernel.threads,
                            shared_bytes=kernel.shared_bytes,
                        )
                    ] = None
        for transpose, words in ((0, 0), (1, 0), (1, 1)):
            defines = (f"TRANSPOSE={transpose}", f"VECTOR={words}")
            made[Build(device=device, source="gemm_pack", defines=defines, threads=256)] = None
    return list(made)


BUILDS = builds()
# Of an architecture and a kernel the integers and one float type of every tile: the others differ in a conversion.
SELECTED = [build for build in BUILDS if build.macros.get("OUT", "4") in "14"]


def expected_instructions(build: Build) -> tuple[str, ...]:
    capability = build.device.capability
    match build.source:
        case "gemm_dp4a":
            return ("IDP.4A.S8.S8",) if capability >= (7, 5) else ("dp4a.s32.s32",)
        case "gemm_wmma":
            return ("IMMA.8816.S8.S8",) if capability < (8, 0) else ("IMMA.16816.S8.S8",)
        case "gemm_sm80" if capability < (8, 0):
            return ("LDSM.16.M88.4", "IMMA.8816.S8.S8")
        case "gemm_sm80":
            return ("LDSM.16.M88.4", "IMMA.16832.S8.S8", "LDGSTS.E.BYPASS")  # ptxas may add .LTC128B
        case "gemm_sm90":
            return ("IGMMA.64x256x32.S8.S8", "UTMALDG.2D", "SYNCS.ARRIVE.TRANS64", "USETMAXREG")
    return ()


def gate(build: Build) -> list[str]:
    try:
        compiled = build_kernel(build)
    except CompileError as error:
        return [str(error)]
    found, counts = list(faults(build, compiled)), instructions(compiled)
    found += [f"no {name}" for name in expected_instructions(build) if not any(x.startswith(name) for x in counts)]
    return found


@pytest.mark.parametrize("build", SELECTED, ids=str)
def test_build(build: Build) -> None:
    found = gate(build)
    assert not found, f"{build}: " + "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
def test_all_builds_of_an_architecture(arch: str) -> None:
    found = [f"{build}: {fault}" for build in BUILDS if build.device.arch == arch for fault in gate(build)]
    assert not found, "\n".join(found)


def test_every_rung_and_device_is_built() -> None:
    assert {build.device.arch for build in SELECTED} == set(DEVICES)
    assert {build.source for build in SELECTED} == {
        f"gemm_{name}" for name in ("naive", "dp4a", "wmma", "sm80", "sm90", "pack")
    }


@pytest.mark.parametrize("rung", ["dp4a", "wmma", "sm80", "sm90"])
def test_a_wrong_count_of_bytes_does_not_compile(rung: str) -> None:
    build = next(build for build in BUILDS if build.source == f"gemm_{rung}" and build.device.arch == "sm_90")
    for name in ("PARAMS_BYTES", "SHARED_BYTES"):
        defines = tuple(f"{name}=4" if define.startswith(name) else define for define in build.defines)
        with pytest.raises(CompileError, match=r"counts other bytes|packs another"):
            build_kernel(replace(build, defines=defines))


def laid_out(x: Array, layout: str) -> Array:
    """Give the same values in another layout: without gaps by rows or columns, with gaps, backwards, at odd bytes."""
    rows, columns = x.shape
    if layout == "column":
        return np.asfortranarray(x)
    if layout == "gaps":
        room = np.full((rows, -(-columns // 16) * 16 + 32), 99, np.int8)
        room[:, :columns] = x
        return room[:, :columns]
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    if layout == "odd":
        flat = np.full(x.size + 1, 99, np.int8)
        flat[1:] = x.ravel()
        return flat[1:].reshape(x.shape)
    return np.ascontiguousarray(x)


def drawn(m: int, n: int, k: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n)))
    return a, b


def exact(a: Array, b: Array) -> Array:
    product: Array = a.astype(np.int64) @ b.astype(np.int64)
    return product


def simulate(
    plan: GemmPlan, a: Array, b: Array, ends: Mapping[str, Array] = MappingProxyType({}), folder: Path | None = None
) -> Array:
    """Run a plan's kernels in the simulator, with its checks of bounds, races and uninitialised memory.

    ``folder`` has other CUDA sources than the package's: those in which tests of the simulator have planted a bug.
    """
    assert plan.device
    simulator = Simulator(plan.device, folder=folder)
    m, n, _ = plan.problem.shape
    there = {name: simulator.copy_in(name, x).data.ptr for name, x in {"a": a, "b": b, **ends}.items()}
    rooms = {
        f"packed_{name}": simulator.allocate(f"packed {name}", copy.nbytes)
        for name, copy in zip("ab", plan.copies, strict=True)
        if copy
    }
    dtype = dtype_of(plan.problem.out_dtype)
    out = simulator.allocate("out", m * n * dtype.itemsize)
    steps = {f"step_{x}": int(ends[f"scale_{x}"].size > 1) for x in "ab" if f"scale_{x}" in ends}
    launch_gemm(plan, Addresses(out=out, **there, **rooms, **steps), simulator.load, simulator.make_map)
    found: Array = simulator.read(out, (m, n), dtype)
    return found


def planned(a: Array, b: Array, rung: str, device: DeviceInfo, out: str = "int32") -> GemmPlan:
    matrices = [
        Matrix(
            rows=x.shape[0],
            depth=x.shape[1],
            row_stride=x.strides[0],
            depth_stride=x.strides[1],
            offset=x.ctypes.data % 16,
        )
        for x in (a, b.T)
    ]
    return make_gemm_plan(GemmProblem(a=matrices[0], b=matrices[1], out_dtype=out), rung, device)


def with_tile(plan: GemmPlan, tile: Tile) -> GemmPlan:
    """Give a plan another tile than the one that its shape asks for."""
    assert plan.kernel
    threads, shared = 32 * tile.warps_m * tile.warps_n, tile.ring * tile.stage_bytes
    kernel: Rung = replace(plan.kernel, tile=tile, threads=threads, shared_bytes=shared)
    m, n, _ = plan.problem.shape
    return replace(plan, kernel=kernel, grid=-(-m // tile.m) * -(-n // tile.n))


SIMULATED = (
    ("naive", "sm_75", (17, 19, 33), "gaps", "reversed"),
    ("dp4a", "sm_75", (33, 130, 80), "row", "column"),
    ("dp4a", "sm_80", (129, 17, 200), "odd", "row"),
    ("wmma", "sm_75", (130, 35, 176), "row", "column"),
    ("wmma", "sm_80", (5, 140, 300), "gaps", "row"),
    ("sm80", "sm_75", (5, 40, 144), "row", "column"),
    ("sm80", "sm_80", (17, 70, 300), "row", "row"),
    ("sm80", "sm_90a", (3, 33, 1040), "gaps", "column"),
    ("sm80", "sm_80", (17, 19, 33), "gaps", "column"),
    ("sm80", "sm_86", (3, 33, 2320), "row", "column"),
    ("sm80", "sm_86", (70, 66, 656), "row", "column"),
    ("sm90", "sm_90a", (70, 258, 144), "row", "column"),
    ("sm90", "sm_90a", (128, 300, 650), "reversed", "row"),
)


@pytest.mark.parametrize(("rung", "arch", "shape", "layout_a", "layout_b"), SIMULATED)
def test_rungs_in_the_simulator_are_exact(
    rung: str, arch: str, shape: tuple[int, int, int], layout_a: str, layout_b: str
) -> None:
    a, b = drawn(*shape, seed=7)
    a, b = laid_out(a, layout_a), laid_out(b, layout_b)
    assert (simulate(planned(a, b, rung, simulated_device(arch)), a, b) == exact(a, b)).all()


@pytest.mark.parametrize(("arch", "depth", "ring"), [("sm_75", 64, 2), ("sm_86", 64, 4), ("sm_90a", 128, 4)])
def test_the_large_tile_in_the_simulator_is_exact(arch: str, depth: int, ring: int) -> None:
    a, b = drawn(130, 260, 208, seed=8)
    device = simulated_device(arch)
    plan = planned(np.zeros((8192, 208), np.int8), np.zeros((208, 8192), np.int8), "sm80", device)
    assert plan.kernel
    assert (plan.kernel.tile.m, plan.kernel.tile.k, plan.kernel.tile.ring) == (256, depth, ring)
    plan = with_tile(planned(a, b, "sm80", device), plan.kernel.tile)
    assert (simulate(plan, a, b) == exact(a, b)).all()


@pytest.mark.parametrize(("m", "columns"), [(65, 256), (128, 256), (129, 128), (256, 128), (300, 256), (8192, 128)])
def test_of_two_large_tiles_the_one_that_pads_less_is_taken(m: int, columns: int) -> None:
    plan = plan_of(m, 65536, "sm80", DEVICES["sm_80"])
    assert isinstance(plan, GemmPlan)
    assert plan.kernel
    assert (plan.kernel.tile.m * plan.kernel.tile.n, plan.kernel.tile.n) == (2**15, columns)


def test_bands_of_tiles_in_the_simulator_meet_every_tile_once() -> None:
    """19 tiles of rows are a band of 16 and one of 3."""
    a, b = drawn(300, 70, 16, seed=4)
    device = simulated_device("sm_80")
    small = planned(a[:1], b, "sm80", device).kernel
    assert small
    assert (small.tile.m, small.tile.n) == (16, 32)
    plan = with_tile(planned(a, b, "sm80", device), small.tile)
    assert plan.grid == 19 * 3
    assert (simulate(plan, a, b) == exact(a, b)).all()


@pytest.mark.parametrize("grid", [1, 3])
def test_blocks_that_take_several_tiles_in_the_simulator_are_exact(grid: int) -> None:
    a, b = drawn(200, 300, 650, seed=5)
    plan = planned(a, b, "sm90", simulated_device("sm_90a"))
    assert plan.grid == 4
    assert (simulate(replace(plan, grid=grid), a, b) == exact(a, b)).all()


@pytest.mark.parametrize("out", OUTPUTS[:3])
@pytest.mark.parametrize(
    ("rung", "arch"),
    [("naive", "sm_80"), ("dp4a", "sm_80"), ("wmma", "sm_80"), ("sm80", "sm_80"), ("sm90", "sm_90a")],
)
def test_epilogues_in_the_simulator_are_numpys(rung: str, arch: str, out: str) -> None:
    a, b = drawn(19, 35, 48, seed=9)
    rng = np.random.default_rng(9)
    ends = {
        "scale_a": rng.standard_normal(19).astype(np.float32),
        "scale_b": np.float32(10) ** rng.integers(-30, 20, 35).astype(np.float32),  # into subnormals and infinity
        "bias": rng.standard_normal(35).astype(np.float32) * (np.arange(35) % 3 > 0).astype(np.float32),
    }
    found = simulate(planned(a, b, rung, simulated_device(arch), out), a, b, ends)
    wanted = int8_matmul(a, b, **ends, out_dtype=out, backend="numpy")
    assert found.tobytes() == wanted.tobytes()


def on_gpu(x: Array) -> Any:
    """Put an array on the GPU with the strides and the offset that it has."""
    import cupy

    low, high = np.lib.array_utils.byte_bounds(x)
    base = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    start, end = np.lib.array_utils.byte_bounds(base)
    assert start <= low <= high <= end
    memory = cupy.asarray(np.frombuffer(base.tobytes("A"), np.int8))
    return cupy.ndarray(x.shape, np.int8, memory.data + (x.ctypes.data - start), x.strides)


def runs(rung: str) -> bool:
    import cupy

    from cupy_intfa.device import device_info

    return not isinstance(plan_of(64, 64, rung, device_info(int(cupy.cuda.Device().id))), str)


@pytest.mark.gpu
@pytest.mark.parametrize("rung", RUNGS)
@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.sampled_from(SIDES)] * 3),
    layout_a=st.sampled_from(LAYOUTS),
    layout_b=st.sampled_from(LAYOUTS),
    seed=seeds,
)
def test_rungs_are_exact(rung: str, shape: tuple[int, int, int], layout_a: str, layout_b: str, seed: int) -> None:
    if not runs(rung):
        with pytest.raises(NotImplementedError, match=rung):
            int8_matmul(*drawn(1, 1, 1, 0), backend=rung)
        return
    a, b = drawn(*shape, seed=seed)
    a, b = laid_out(a, layout_a), laid_out(b, layout_b)
    product = int8_matmul(on_gpu(a), on_gpu(b), backend=rung)
    assert product.dtype == np.int32
    assert (product.get() == exact(a, b)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("rung", [*RUNGS, "auto"])
@settings(max_examples=12)
@given(
    shape=st.tuples(*[st.sampled_from(SIDES)] * 3),
    out=st.sampled_from(OUTPUTS[:3]),
    which=st.tuples(*[st.booleans()] * 3),
    seed=seeds,
)
def test_epilogues_are_numpys(
    rung: str, shape: tuple[int, int, int], out: str, which: tuple[bool, bool, bool], seed: int
) -> None:
    import cupy

    if rung in RUNGS and not runs(rung):
        return
    m, n, _ = shape
    a, b = drawn(*shape, seed=seed)
    rng = np.random.default_rng(seed)
    ends = {
        "scale_a": 10 ** rng.uniform(-20, 10, m),
        "scale_b": 10 ** rng.uniform(-20, 10, (1, n)),
        "bias": rng.standard_normal(n),
    }
    given_ends = {name: x.astype(np.float32) for (name, x), there in zip(ends.items(), which, strict=True) if there}
    there_ends = {name: cupy.asarray(x) for name, x in given_ends.items()}
    found = int8_matmul(cupy.asarray(a), cupy.asarray(b), **there_ends, out_dtype=out, backend=rung)
    wanted = int8_matmul(a, b, **given_ends, out_dtype=out, backend="numpy")
    assert found.dtype == wanted.dtype
    assert found.get().tobytes() == wanted.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (300, 520, 1000), (1000, 1000, 127), (2100, 9000, 144)])
def test_largest_products_do_not_wrap(rung: str, shape: tuple[int, int, int]) -> None:
    """All products are 2^14, of many tiles: a band of the raster that is visited twice or never shows."""
    import cupy

    if not runs(rung):
        return
    m, n, k = shape
    a, b = (cupy.full(size, -128, np.int8) for size in ((m, k), (k, n)))
    assert (int8_matmul(a, b, backend=rung) == 2**14 * k).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    import cupy

    a, b = drawn(*shape, seed=0)
    found = int8_matmul(cupy.asarray(a), cupy.asarray(b), bias=cupy.ones(shape[1], np.float32))
    assert (found.get() == np.ones(shape[:2], np.float32)).all()


@pytest.mark.gpu
def test_numpy_arrays_travel() -> None:
    a, b = drawn(130, 70, 50, seed=1)
    for layout in LAYOUTS:
        x, y = laid_out(a, layout), laid_out(b, layout)
        found = int8_matmul(x, y, backend="cuda")
        assert isinstance(found, np.ndarray)
        assert (found == exact(a, b)).all()
        assert explain_int8_matmul(x, y, backend="cuda").device
