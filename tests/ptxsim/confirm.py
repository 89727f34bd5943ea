"""Confirm the simulator on a GPU: the same kernels on the same inputs, there and here, bit for bit.

On a machine with an H200, then on any machine:

    PYTHONPATH=tests:. python -m ptxsim.confirm gpu answers.npz
    PYTHONPATH=tests:. python -m ptxsim.confirm compare answers.npz notebooks/results/simulator_nvidia-h200.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kernels.bounds import arithmetic_of, kernel_bound
from kernels.harness import describe, run
from kernels.test_quantize import Inputs, expected, on_device, quantised
from ptxsim.hopper import RING
from ptxsim.simulated import Setting
from ptxsim.small import Array, ptx_text, run_cuda, run_ptx
from ptxsim.test_hopper import TMA, ring_data, tile_kernel
from strategies import Case, dtype_of
from tolerances import output_rounding

from cupy_intfa import PRESETS
from cupy_intfa.bench.stamp import commit, gpu_state, versions
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.ptxsim.tensor_map import TensorMap
from cupy_intfa.quantize import QuantizedQKV, quantize_arrays
from cupy_intfa.simulate import attend_simulated, place_packing, quantise_simulated

Answer = dict[str, Array]
_SECONDS = 75  # on the GPU, of which compiling takes nearly all


@dataclass(frozen=True)
class Probe:
    """One kernel on one input: how to run it on a GPU and in the simulator.

    ``limit`` gives how far the answers may be apart where an approximate instruction is involved: twice the bound of a
    kernel's distance from the emulator; without it no bit may differ.
    """

    name: str
    on_gpu: Callable[[], Answer]
    simulated: Callable[[], Answer]
    limit: Callable[[], Answer] | None = None


def _words(count: int, seed: int = 0) -> Array:
    """Draw words of which a quarter are floats of moderate size."""
    rng = np.random.default_rng(seed)
    floats = (rng.standard_normal(count) * 2.0 ** rng.integers(-30, 20, count)).astype(np.float32).view(np.uint32)
    return np.where(rng.random(count) < 0.25, rng.integers(0, 2**32, count, dtype=np.uint32), floats)


_LANES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "rounding of float32": (
        "mul.rp.ftz.f32 %o0, %i0, %i1; sub.rm.ftz.f32 %o1, %i0, %i1; fma.rm.ftz.f32 %o2, %i0, %i1, %i2;"
        "fma.rn.ftz.f32 %o3, %i0, %i1, %i2; add.rz.ftz.f32 %o4, %i0, %i1; mul.rn.f32 %o5, %i0, %i1;"
        "fma.rn.f32 %o6, %i0, %i1, %i2; div.rn.ftz.f32 %o7, %i0, %i1; rcp.rn.ftz.f32 %o8, %i0;"
        "max.ftz.f32 %o9, %i0, %i1;",
        ("u4",) * 10,
        "",
    ),
    "conversions": (
        "cvt.rn.f16x2.f32 %o0, %i0, %i1; cvt.rn.bf16x2.f32 %o1, %i0, %i1; cvt.rn.satfinite.e4m3x2.f32 %h, %i0, %i1;"
        "cvt.u32.u16 %o2, %h; cvt.rn.satfinite.e5m2x2.f32 %h, %i0, %i1; cvt.u32.u16 %o3, %h;"
        "cvt.rni.ftz.s32.f32 %o4, %i0; cvt.rzi.u32.f32 %o5, %i0; cvt.rn.f32.s32 %o6, %i0; cvt.rn.f32.u32 %o7, %i0;",
        ("u4",) * 8,
        ".reg .b16 %h;",
    ),
    "integers and bits": (
        "prmt.b32 %o0, %i0, %i1, %i2; dp4a.s32.s32 %o1, %i0, %i1, %i2; dp4a.u32.s32 %o2, %i0, %i1, %i2;"
        "shf.l.wrap.b32 %o3, %i0, %i1, %i2; bfe.s32 %o4, %i0, 3, 11; lop3.b32 %o5, %i0, %i1, %i2, 0x96;"
        "mul.hi.s32 %o6, %i0, %i1;"
        "mad.lo.s32 %o7, %i0, %i1, %i2;",
        ("u4",) * 8,
        "",
    ),
    "packed halves": (
        "add.rn.f16x2 %o0, %i0, %i1; mul.rn.f16x2 %o1, %i0, %i1; fma.rn.f16x2 %o2, %i0, %i1, %i2;"
        "max.f16x2 %o3, %i0, %i1;",
        ("u4",) * 4,
        "",
    ),
    "shuffles and votes": (
        "shfl.sync.bfly.b32 %o0, %i0, 5, 31, -1; shfl.sync.up.b32 %o1|%p, %i0, 3, 0x1800, -1; selp.u32 %o2, 1, 0, %p;"
        "shfl.sync.idx.b32 %o3, %i0, %i1, 31, -1; setp.gt.u32 %p, %i0, %i1; vote.sync.ballot.b32 %o4, %p, -1;",
        ("u4",) * 5,
        ".reg .pred %p;",
    ),
}


def _mma(shape: str, types: str, count: tuple[int, int, int]) -> str:
    """One mma.sync on the words of the first inputs; its accumulators start at the third input."""
    a, b, c = ("{" + ", ".join([f"%i{i}"] * n) + "}" for i, n in enumerate(count))
    d = "{" + ", ".join(f"%o{i}" for i in range(count[2])) + "}"
    return f"mma.sync.aligned.{shape}.row.col.{types} {d}, {a}, {b}, {c};"


_LANES |= {
    f"mma {shape} {types}": (_mma(shape, types, count), ("u4",) * count[2], "")
    for shape, types, count in (
        ("m16n8k32", "s32.s8.s8.s32", (4, 2, 4)),
        ("m16n8k32", "s32.u8.s8.s32", (4, 2, 4)),
        ("m8n8k16", "s32.s8.s8.s32", (1, 1, 2)),
    )
}


def _lane_probe(name: str) -> Probe:
    body, results, registers = _LANES[name]
    threads = 256
    inputs = tuple(_words(threads, i) for i in range(3))
    if name == "packed halves":
        rng = np.random.default_rng(0)
        inputs = tuple(rng.standard_normal(2 * threads).astype(np.float16).view(np.uint32) for _ in range(3))

    def on_gpu() -> Answer:
        import cupy as cp

        text = ptx_text(body, (4, 4, 4), tuple(np.dtype(kind).itemsize for kind in results), registers=registers)
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(text)
            file.flush()
            kernel = cp.RawModule(path=file.name).get_function("small")
        outputs = [cp.zeros(threads, kind) for kind in results]
        kernel((1,), (threads,), (*map(cp.asarray, inputs), *outputs))
        return {f"o{i}": x.get() for i, x in enumerate(outputs)}

    def simulated() -> Answer:
        return {f"o{i}": x for i, x in enumerate(run_ptx(body, *inputs, results=results, registers=registers))}

    return Probe(name, on_gpu, simulated)


def _cuda_probe(
    name: str,
    source: str,
    arguments: tuple[Any, ...],
    out: tuple[tuple[int, ...], str],
    threads: int = 128,
    shared: int = 0,
) -> Probe:
    def on_gpu() -> Answer:
        import cupy as cp

        kernel = cp.RawModule(code=source, options=("--std=c++17", "-arch=sm_90a"), backend="nvrtc").get_function(
            "small"
        )
        result = cp.zeros(out[0], out[1])
        given = [cp.asarray(x) if isinstance(x, np.ndarray) and x.ndim else x for x in arguments]
        given = [x.on_gpu(*given) if isinstance(x, _Map) else x for x in given]
        kernel((1,), (threads,), (*given, result), shared_mem=shared)
        return {"out": result.get()}

    def simulated() -> Answer:
        given = [x.simulated if isinstance(x, _Map) else x for x in arguments]
        return {"out": run_cuda(source, *given, threads=threads, arch="sm_90a", shared_bytes=shared, out=out)[0]}

    return Probe(name, on_gpu, simulated)


@dataclass(frozen=True)
class _Map:
    """A tensor map of the first argument, a matrix of bytes."""

    rows: int
    columns: int
    box: tuple[int, int]

    def on_gpu(self, array: Any, *_: Any) -> Any:
        from cupy_intfa.tensor_map import tensor_map

        return tensor_map(array.data.ptr, 1, self.rows, self.columns, *self.box)

    def simulated(self, address: int, *_: int) -> bytes:
        rows, columns = self.box
        return TensorMap(address, 1, (self.columns, self.rows), (1, self.columns), (columns, rows), columns).encode()


def _hopper_probes() -> Iterator[Probe]:
    rng = np.random.default_rng(0)
    for types, columns in (("s8.s8", 64), ("u8.s8", 96)):
        for span in (16, 32, 64, 128):
            width = max(span, 32)
            a, b = (rng.integers(0, 256, (n, width), dtype=np.uint8) for n in (64, columns))
            source = tile_kernel(f"m64n{columns}k32.s32.{types}", columns // 2, span, columns, True)
            given = (a, b, np.uint32(width // 32 - 1))
            yield _cuda_probe(f"wgmma n{columns} {types} swizzle {span}", source, given, ((128, columns // 2), "i4"))
    q, k, _ = ring_data(5)
    yield _cuda_probe("ring of bulk copies and wgmma", RING, (q, k, np.uint32(5)), ((64, 64), "i4"), 256, 3 * 4096 + 32)
    array = rng.integers(1, 256, (11, 256), dtype=np.uint8)
    for width in (32, 64, 128):
        source = TMA.replace("SIZE", str(8 * width)).replace("RANK", "2").replace("COORDINATES", "%3, %4")
        source = source.replace("const __grid_constant__ Map map,", "const u8* array, const __grid_constant__ Map map,")
        corner = tuple(np.int32(x) for x in (-16, 6, 0, 0))
        matrix = (array, _Map(11, 256, (8, width)), *corner, np.uint32(8 * width))
        yield _cuda_probe(f"tensor copy, swizzle {width}", source, matrix, ((8 * width,), "u1"))


def _quantise_probe(preset: str, dtype: str) -> Probe:
    drawn, recipe = Inputs(heads=2, kv_heads=1, q_len=70, kv_len=130, head_dim=64, dtype=dtype), PRESETS[preset]

    def as_bytes(views: dict[str, Array]) -> Answer:
        return {name: np.ascontiguousarray(x).reshape(-1).view(np.uint8) for name, x in views.items()}

    def on_gpu() -> Answer:
        return as_bytes(quantised(drawn.problem(), recipe, tuple(map(on_device, drawn.arrays()))))

    def simulated() -> Answer:
        setting = Setting("naive", "sm_90a")
        plan, simulator = setting.plan(recipe, drawn.problem()), setting.simulator()
        assert plan.cuda
        workspace = quantise_simulated(simulator, plan, drawn.arrays())
        views = plan.cuda.packing.views(simulator.memory.read(workspace, plan.cuda.packing.nbytes))
        assert views.keys() == expected(drawn.problem(), recipe, drawn.arrays()).keys()
        return as_bytes(views)

    return Probe(f"quantise {preset} {dtype}", on_gpu, simulated)


def _attention_probe(name: str, preset: str, case: Case, *, zeros: bool = False) -> Probe:
    """Attention on the same codes; where all queries are zero no exponential is of anything but one number."""
    recipe, setting = PRESETS[preset], Setting(name, "sm_90a")

    def codes() -> QuantizedQKV:
        q, k, v = case.arrays()
        return quantize_arrays(0 * q if zeros else q, k, v, recipe=recipe)

    def on_gpu() -> Answer:
        out, lse = run(name, codes(), case, "device")
        return {"out": out, "lse": lse}

    def simulated() -> Answer:
        plan, simulator = setting.plan(recipe, describe(case)), setting.simulator()
        workspace = place_packing(simulator, plan, codes())
        out, lse = attend_simulated(simulator, plan, workspace, True, dtype_of(case.dtype))
        assert lse is not None
        return {"out": out, "lse": lse}

    def limit() -> Answer:
        plan = setting.plan(recipe, describe(case))
        options: dict[str, Any] = {
            "scale": case.softmax_scale,
            "key_tile": plan.key_tile,
            "causal_offset": case.causal_offset,
        }
        bound = kernel_bound(codes(), **options, arithmetic=arithmetic_of(plan))
        rounding = output_rounding(np.ones(bound.out.shape), case.dtype)
        return {"out": 2 * (bound.out + rounding), "lse": 2 * bound.lse}  # either may be as far from the emulator

    label = f"attention_{name} {preset} D{case.head_dim}" + (", queries of zero" if zeros else "")
    return Probe(label, on_gpu, simulated, limit)


def probes() -> Iterator[Probe]:
    """List everything that is confirmed."""
    yield from map(_lane_probe, _LANES)
    yield from _hopper_probes()
    for preset in ("paper", "fast", "precise", "half", "fp8_e4m3"):
        yield _quantise_probe(preset, "float16")
    yield _quantise_probe("fast", "float32")
    mask: dict[str, Any] = {"is_causal": True, "causal_alignment": "bottom_right"}
    case = Case(heads=2, kv_heads=1, q_len=70, kv_len=200, head_dim=64, **mask)
    for name in NAMED_KERNELS:
        rows = replace(case, q_len=3) if name == "naive" else case
        for preset in ("paper", "fast", "precise", "half", "fp16"):
            if Setting(name, "sm_90a").runs(PRESETS[preset], 64):
                yield _attention_probe(name, preset, rows)
                yield _attention_probe(name, preset, rows, zeros=True)
        yield _attention_probe(name, "fast", replace(rows, head_dim=128))


def ask_gpu(file: Path) -> None:
    """Run everything on the GPU and keep the answers."""
    answers: dict[str, Any] = {"stamp": json.dumps({"gpu": gpu_state(), "versions": versions(())})}
    start = time.perf_counter()
    for probe in probes():
        if time.perf_counter() - start > _SECONDS:
            break
        try:
            answers |= {f"{probe.name}/{name}": x for name, x in probe.on_gpu().items()}
        except Exception as error:  # the others are confirmed all the same, and `compare` says that this one is missing
            print(f"{probe.name}: {type(error).__name__}: {error}", file=sys.stderr)
    np.savez_compressed(file, **answers)


def compare(file: Path) -> dict[str, Any]:
    """Run everything in the simulator and compare."""
    answers = np.load(file)
    rows: list[dict[str, Any]] = []
    asked = {name.rpartition("/")[0] for name in answers.files}
    for probe in probes():
        if probe.name not in asked:
            rows.append({"name": probe.name, "missing": True})
            continue
        mine, limits = probe.simulated(), {} if probe.limit is None else probe.limit()
        row: dict[str, Any] = {"name": probe.name, "elements": 0, "equal": 0}
        for name, x in mine.items():
            y = answers[f"{probe.name}/{name}"]
            bits = f"u{x.itemsize}"
            same = np.ascontiguousarray(x).view(bits) == np.ascontiguousarray(y).view(bits)
            if x.dtype.kind == "f":
                same |= np.isnan(x) & np.isnan(y)
            row["elements"] += x.size
            row["equal"] += int(same.sum())
            if limits:
                off = np.abs(np.nan_to_num(x.astype(np.float64)) - np.nan_to_num(y.astype(np.float64)))
                allowed = np.maximum(limits[name], 1e-30)
                row["of_bound"] = max(row.get("of_bound", 0.0), float(np.nanmax(off / allowed)))
                row["farthest"] = max(row.get("farthest", 0.0), float(off.max()))
        rows.append(row)
        print(row, flush=True)
    exact = [row for row in rows if "of_bound" not in row and "missing" not in row]
    return {
        "schema": 1,
        "record": "simulator",
        **commit(),
        **json.loads(str(answers["stamp"])),
        "bit_for_bit": all(row["equal"] == row["elements"] for row in exact),
        "within_bound": all(float(row.get("of_bound", 0.0)) <= 1 for row in rows),
        "missing": [row["name"] for row in rows if "missing" in row],
        "results": rows,
    }


def main() -> int:
    """Do what the command line says."""
    what, file, *rest = sys.argv[1:]
    if what == "gpu":
        ask_gpu(Path(file))
        return 0
    record = compare(Path(file))
    Path(rest[0]).write_text(json.dumps(record, indent=1) + "\n")
    return int(not (record["bit_for_bit"] and record["within_bound"]))


if __name__ == "__main__":
    sys.exit(main())
