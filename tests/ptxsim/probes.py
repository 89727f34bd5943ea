"""What is asked of a GPU and of the simulator, for `ptxsim.confirm`: instructions and small kernels alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from ptxsim.approximations import APPROXIMATIONS
from ptxsim.hopper import (
    CP_ASYNC,
    NAMED,
    RING,
    TMA,
    held_of_a,
    registers_kernel,
    ring_data,
    tile_kernel,
    transposed_kernel,
)
from ptxsim.small import Array, ptx_text, run_cuda, run_ptx

from cupy_intfa.ptxsim.mma import ELEMENTS
from cupy_intfa.ptxsim.tensor_map import TensorMap

Answer = dict[str, Array]
_THREADS = 256


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


_BODIES: dict[str, tuple[str, int, str]] = {
    "rounding of float32": (
        "mul.rp.ftz.f32 %o0, %i0, %i1; sub.rm.ftz.f32 %o1, %i0, %i1; fma.rm.ftz.f32 %o2, %i0, %i1, %i2;"
        "fma.rn.ftz.f32 %o3, %i0, %i1, %i2; add.rz.ftz.f32 %o4, %i0, %i1; mul.rn.f32 %o5, %i0, %i1;"
        "fma.rn.f32 %o6, %i0, %i1, %i2; div.rn.ftz.f32 %o7, %i0, %i1; rcp.rn.ftz.f32 %o8, %i0;"
        "max.ftz.f32 %o9, %i0, %i1;",
        10,
        "",
    ),
    "conversions": (
        "cvt.rn.f16x2.f32 %o0, %i0, %i1; cvt.rn.bf16x2.f32 %o1, %i0, %i1; cvt.rn.satfinite.e4m3x2.f32 %h, %i0, %i1;"
        "cvt.u32.u16 %o2, %h; cvt.rn.satfinite.e5m2x2.f32 %h, %i0, %i1; cvt.u32.u16 %o3, %h;"
        "cvt.rni.ftz.s32.f32 %o4, %i0; cvt.rzi.u32.f32 %o5, %i0; cvt.rn.f32.s32 %o6, %i0; cvt.rn.f32.u32 %o7, %i0;",
        8,
        ".reg .b16 %h;",
    ),
    "integers and bits": (
        "prmt.b32 %o0, %i0, %i1, %i2; dp4a.s32.s32 %o1, %i0, %i1, %i2; dp4a.u32.s32 %o2, %i0, %i1, %i2;"
        "shf.l.wrap.b32 %o3, %i0, %i1, %i2; bfe.s32 %o4, %i0, 3, 11; lop3.b32 %o5, %i0, %i1, %i2, 0x96;"
        "mul.hi.s32 %o6, %i0, %i1;"
        "mad.lo.s32 %o7, %i0, %i1, %i2;",
        8,
        "",
    ),
    "packed halves": (
        "add.rn.f16x2 %o0, %i0, %i1; mul.rn.f16x2 %o1, %i0, %i1; fma.rn.f16x2 %o2, %i0, %i1, %i2;"
        "max.f16x2 %o3, %i0, %i1;",
        4,
        "",
    ),
    "shuffles and votes": (
        "shfl.sync.bfly.b32 %o0, %i0, 5, 31, -1; shfl.sync.up.b32 %o1|%p, %i0, 3, 0x1800, -1; selp.u32 %o2, 1, 0, %p;"
        "shfl.sync.idx.b32 %o3, %i0, %i1, 31, -1; setp.gt.u32 %p, %i0, %i1; vote.sync.ballot.b32 %o4, %p, -1;",
        5,
        ".reg .pred %p;",
    ),
}


def _lane_probe(
    name: str,
    body: str,
    inputs: tuple[Array, ...],
    results: int,
    registers: str = "",
    declare: str = "",
    kind: str = "u4",
    limit: Callable[[], Answer] | None = None,
) -> Probe:
    """Run instructions on words, one thread each."""
    kinds, threads = (kind,) * results, len(inputs[0])

    def on_gpu() -> Answer:
        import cupy as cp

        text = ptx_text(body, (4,) * len(inputs), (4,) * results, registers=registers, declare=declare)
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(text)
            file.flush()
            kernel = cp.RawModule(path=file.name).get_function("small")
        outputs = [cp.zeros(threads, kind) for kind in kinds]
        kernel((1,), (threads,), (*map(cp.asarray, inputs), *outputs))
        return {f"o{i}": x.get() for i, x in enumerate(outputs)}

    def simulated() -> Answer:
        found = run_ptx(body, *inputs, results=kinds, registers=registers, declare=declare)
        return {f"o{i}": x for i, x in enumerate(found)}

    return Probe(name, on_gpu, simulated, limit)


def _mma_probe(shape: str, types: str, count: tuple[int, int, int]) -> Probe:
    """One mma.sync. Of floats all are small integers, whose sums no order and no accumulator of 13 bits rounds."""
    rng, (result, kind_a, kind_b, _) = np.random.default_rng(0), types.split(".")
    words: list[Array] = []
    for kind, registers in ((kind_a, count[0]), (kind_b, count[1]), (result, count[2])):
        if result == "s32":
            words += [_words(_THREADS, len(words) + i) for i in range(registers)]
            continue
        dtype, most = ELEMENTS.get(kind, np.dtype(np.float32)), 8 if kind in ELEMENTS else 1000
        drawn = rng.integers(-most, most + 1, (registers, _THREADS * 4 // dtype.itemsize)).astype(np.float32)
        words += list(drawn.astype(dtype).view(np.uint32))
    first = np.cumsum((0, *count))
    lists = ("{" + ", ".join(f"%i{i}" for i in range(*span)) + "}" for span in pairwise(first))
    d = "{" + ", ".join(f"%o{i}" for i in range(count[2])) + "}"
    body = f"mma.sync.aligned.{shape}.row.col.{types} {d}, {', '.join(lists)};"
    return _lane_probe(f"mma {shape} {types}", body, tuple(words), count[2])


_MATRICES = (
    ("m16n8k32", "s32.s8.s8.s32", (4, 2, 4)),
    ("m16n8k32", "s32.u8.s8.s32", (4, 2, 4)),
    ("m8n8k16", "s32.s8.s8.s32", (1, 1, 2)),
    ("m8n8k16", "s32.u8.s8.s32", (1, 1, 2)),
    ("m16n8k16", "f32.f16.f16.f32", (4, 2, 4)),
    ("m16n8k8", "f32.f16.f16.f32", (2, 1, 4)),
    ("m16n8k16", "f32.bf16.bf16.f32", (4, 2, 4)),
    ("m16n8k32", "f32.e4m3.e4m3.f32", (4, 2, 4)),
    ("m16n8k32", "f32.e5m2.e5m2.f32", (4, 2, 4)),
)


def _approximation_probe(opcode: str) -> Probe:
    """Ask for results that are off by no more than the ISA says; the simulator rounds the exact ones."""
    one, seen = APPROXIMATIONS[opcode], slice(1024 - _THREADS // 2, 1024 + _THREADS // 2)
    x = one.arguments()[seen]

    def limit() -> Answer:
        return {"o0": one.bound(x) + np.spacing(np.abs(one.function(x)).astype(np.float32)) / 2}

    return _lane_probe(opcode, f"{opcode} %o0, %i0;", (x,), 1, kind="f4", limit=limit)


def _ldmatrix_probe(count: int, trans: str) -> Probe:
    """Rows of 16 bytes, as every warp has written them, in an order of the lanes' own."""
    body = f"""mov.u32 %s, tile; mad.lo.u32 %b, %t, 16, %s; st.shared.v4.b32 [%b], {{%i0, %i1, %i2, %i3}}; bar.sync 0;
    mad.lo.u32 %b, %i4, 16, %s;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(f"%o{i}" for i in range(count))}}}, [%b];"""
    order = np.random.default_rng(1).permutation(_THREADS).astype(np.uint32)
    inputs = (*(_words(_THREADS, i) for i in range(4)), order)
    declare = f".shared .align 16 .b8 tile[{16 * _THREADS}];"
    return _lane_probe(f"ldmatrix x{count}{trans}", body, inputs, count, ".reg .b32 %s, %b;", declare)


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

        return tensor_map(array.data.ptr, 1, (self.columns, self.rows), (1, self.columns), self.box[::-1])

    def simulated(self, address: int, *_: int) -> bytes:
        rows, columns = self.box
        return TensorMap(address, 1, (self.columns, self.rows), (1, self.columns), (columns, rows), columns).encode()


def _wgmma_probes() -> Iterator[Probe]:
    rng = np.random.default_rng(0)
    for types, columns in (("s8.s8", 64), ("u8.s8", 96)):
        for span in (16, 32, 64, 128):
            width = max(span, 32)
            a, b = (rng.integers(0, 256, (n, width), dtype=np.uint8) for n in (64, columns))
            source = tile_kernel(f"m64n{columns}k32.s32.{types}", columns // 2, span, columns, True)
            given = (a, b, np.uint32(width // 32 - 1))
            yield _cuda_probe(f"wgmma n{columns} {types} swizzle {span}", source, given, ((128, columns // 2), "i4"))
    for types in ("s8.s8", "u8.s8"):
        a, b = (rng.integers(0, 256, (64, n), dtype=np.uint8) for n in (32, 64))
        name = f"wgmma n64 {types}, A in registers"
        yield _cuda_probe(name, registers_kernel(types, 64), (held_of_a(a), b), ((128, 32), "i4"))
    halves = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((64, 32), (32, 32), (64, 16), (16, 64)))
    q, k, p, v = halves  # small integers: their sums are not rounded, in whatever order
    source = tile_kernel("m64n32k16.f32.f16.f16", 16, 64, 32, False, "float")
    yield _cuda_probe("wgmma n32 f16", source, (q, k, np.uint32(1)), ((128, 16), "f4"))
    name, source = "wgmma n64 f16, A in registers", transposed_kernel(64, 128)
    yield _cuda_probe(name, source, (held_of_a(p), v), ((128, 32), "f4"))


def _copy_probes() -> Iterator[Probe]:
    q, k, _ = ring_data(5)
    yield _cuda_probe("ring of bulk copies and wgmma", RING, (q, k, np.uint32(5)), ((64, 64), "i4"), 256, 3 * 4096 + 32)
    array = np.random.default_rng(0).integers(1, 256, (11, 256), dtype=np.uint8)
    for width in (32, 64, 128):
        source = TMA.replace("SIZE", str(8 * width)).replace("RANK", "2").replace("COORDINATES", "%3, %4")
        source = source.replace("const __grid_constant__ Map map,", "const u8* array, const __grid_constant__ Map map,")
        corner = tuple(np.int32(x) for x in (-16, 6, 0, 0))
        matrix = (array, _Map(11, 256, (8, width)), *corner, np.uint32(8 * width))
        yield _cuda_probe(f"tensor copy, swizzle {width}", source, matrix, ((8 * width,), "u1"))
    yield _cuda_probe(
        "cp.async that arrives at an mbarrier", CP_ASYNC, (np.arange(512, dtype=np.int32),), ((128,), "i4")
    )
    yield _cuda_probe("named barriers", NAMED, (), ((64,), "i4"))


def instruction_probes() -> Iterator[Probe]:
    """List instructions and small kernels."""
    for name, (body, results, registers) in _BODIES.items():
        inputs = tuple(_words(_THREADS, i) for i in range(3))
        if name == "packed halves":
            rng = np.random.default_rng(0)
            inputs = tuple(rng.standard_normal(2 * _THREADS).astype(np.float16).view(np.uint32) for _ in range(3))
        yield _lane_probe(name, body, inputs, results, registers)
    yield from map(_approximation_probe, APPROXIMATIONS)
    for shape, types, count in _MATRICES:
        yield _mma_probe(shape, types, count)
    for number, trans in ((1, ""), (2, ".trans"), (4, ""), (4, ".trans")):
        yield _ldmatrix_probe(number, trans)
    yield from _wgmma_probes()
    yield from _copy_probes()
