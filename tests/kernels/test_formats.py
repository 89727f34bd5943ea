"""The format kernels: compiled for every architecture, and on a GPU the bits of their NumPy twins."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from kernel_gate import examine
from kernel_matrix import Build, cover
from nvrtc import compile_kernel
from strategies import Array, dtype_of

from cupy_intfa.kernels import compile_options, source_text
from cupy_intfa.ptxsim import GlobalMemory, launch
from cupy_intfa.quantize.bits import ENCODINGS, pack_codes, unpack_codes
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.quantize.formats import KERNEL_FORMATS, codebook
from cupy_intfa.quantize.formats_launch import _BUCKETS, _table
from cupy_intfa.quantize.tensor import QuantizedTensor

FLOATS = ("float16", "bfloat16", "float32", "float64")


def builds() -> list[Build]:
    recode = [
        (source, (f"BITS={bits}", f"ENCODING={encoding}", f"VECTOR={vector}"))
        for source, bits, encoding, vector in product(
            ("formats_pack", "formats_unpack"), (4, 2), range(len(ENCODINGS)), (0, 1)
        )
    ]
    convert = [
        (source, (f"DTYPE={dtype}",)) for source, dtype in product(("formats_encode", "formats_decode"), range(3))
    ]
    return [
        Build(device=device, source=source, defines=defines, threads=256)
        for device in DEVICES.values()
        for source, defines in (*recode, *convert)
    ]


@pytest.mark.parametrize("build", cover(builds(), 1), ids=str)
def test_build(build: Build) -> None:
    found = examine(build)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
def test_all_builds_of_an_architecture(arch: str) -> None:
    found = [fault for build in builds() if build.device.arch == arch for fault in examine(build)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", KERNEL_FORMATS)
def test_the_table_of_the_kernel_finds_the_same_codes(name: str) -> None:
    """The look-up of formats_encode, in NumPy: at random, at every cut and level, and on both sides of the buckets."""
    raw, book = _table(name), codebook(name)
    cuts = np.frombuffer(raw, np.float32, _BUCKETS)
    below = np.frombuffer(raw, np.uint32, _BUCKETS, cuts.nbytes)
    assert (np.frombuffer(raw, np.float32, 16, 2 * cuts.nbytes) == book.levels).all()
    assert np.isin(book.cuts, cuts).all()
    edges = np.arange(-16, 17, dtype=np.float32) / 16
    marks = np.concatenate((book.cuts, book.levels, edges))
    near = [np.nextafter(marks, np.float32(way)) for way in (-9, 9)]
    y = np.concatenate((np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32), marks, *near))
    bucket = np.floor(16 * y.astype(np.float64) + 17).astype(int)
    assert (bucket.min(), bucket.max()) == (0, _BUCKETS - 1)
    assert (below[bucket] + (y > cuts[bucket]) == book.encode(y, np)).all()
    assert np.frombuffer(raw, np.uint32)[-1] == 0x11111111 * int(book.encode(np.zeros(1, np.float32), np)[0])


def hard_values(seed: int, count: int) -> Array:
    """Draw normal values with blocks of zeros, subnormals, huge and tiny numbers, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count) * 10.0 ** rng.integers(-30, 30, count // 64 + 1).repeat(64)[:count]
    for start, value in ((0, 0.0), (64, 1e-40), (128, 9e37), (192, np.nan), (256, -np.inf), (320, 3e38), (384, 1e-38)):
        x[start : start + 64 : 3] = value
    x[448:512] = 0
    return x


def simulate(source: str, defines: tuple[str, ...], threads: int, *arguments: Any, out: dict[str, int]) -> list[Array]:
    """Run a kernel's PTX on the CPU, with its checks of bounds, races and uninitialised memory; arrays come first.

    Give the arrays of bytes that it wrote.
    """
    arrays = [x for x in arguments if isinstance(x, np.ndarray)]
    memory = GlobalMemory()
    given = [memory.allocate(f"input {i}", np.ascontiguousarray(x).view(np.uint8).ravel(), writable=False)
             for i, x in enumerate(arrays)]  # fmt: skip
    made = [memory.allocate(name, size) for name, size in out.items()]
    ptx = compile_kernel(source_text(source), "sm_80", compile_options(defines)).ptx
    launch(ptx, source, -(-threads // 256), 256, (*given, *made, *arguments[len(arrays) :]), memory)
    return [memory.read(address, size) for address, size in zip(made, out.values(), strict=True)]


@pytest.mark.parametrize("dtype", range(3))
@pytest.mark.parametrize("count", [7, 65, 8200])
def test_codebooks_in_the_simulator_are_numpys(dtype: int, count: int) -> None:
    with np.errstate(over="ignore"):
        x = hard_values(count, max(count, 512))[:count].astype(dtype_of(FLOATS[dtype]))
    twin, size = quantize_blockwise(x), np.int64(count)
    defines, blocks = (f"DTYPE={dtype}",), -(-count // 64)
    sizes = {"codes": -(-count // 2), "scale": 4 * blocks}
    per_thread = 16 if dtype == 2 else 32
    codes, scale = simulate("formats_encode", defines, -(-count // per_thread), x, _table("nf4"), size, out=sizes)
    assert codes.tobytes() == twin.values.tobytes()
    assert scale.tobytes() == np.asarray(twin.scale).tobytes()
    (back,) = simulate(
        "formats_decode", defines, -(-count // 16), codes, scale, _table("nf4"), size, out={"x": x.nbytes}
    )
    wanted = twin.dequantize(FLOATS[dtype])
    assert ((back.view(wanted.dtype) == wanted) | np.isnan(wanted)).all()
    assert (np.isnan(back.view(wanted.dtype)) == np.isnan(wanted)).all()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("rows", "length"), [(3, 5), (5, 48)])
def test_packing_in_the_simulator_is_numpys(bits: int, encoding: str, rows: int, length: int) -> None:
    codes = np.random.default_rng(length).integers(0, 256, (rows, length)).astype(np.uint8)
    packed = pack_codes(codes, bits, encoding)
    vector = length % 16 == 0
    defines = (f"BITS={bits}", f"ENCODING={ENCODINGS.index(encoding)}", f"VECTOR={int(vector)}")
    sizes, threads = (np.int64(rows), np.int64(length)), -(-rows * length // 64) if vector else rows * length
    (found,) = simulate("formats_pack", defines, threads, codes, *sizes, out={"packed": packed.size})
    assert found.tobytes() == packed.tobytes()
    (back,) = simulate("formats_unpack", defines, threads, packed, *sizes, out={"codes": codes.size})
    assert back.tobytes() == unpack_codes(packed, bits, length, encoding).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (16,), (3, 5), (33, 64), (5, 1000), (2, 3, 48), (1 << 20,), (0, 4), (4, 0)]
)
def test_packing_is_numpys(bits: int, encoding: str, shape: tuple[int, ...]) -> None:
    import cupy

    rng = np.random.default_rng(1)
    low = 0 if encoding == "unsigned" else -(1 << (bits - 1))
    dtype = np.uint8 if encoding == "unsigned" else np.int8
    codes = rng.integers(low, low + (1 << bits), shape).astype(dtype)
    packed = pack_codes(cupy.asarray(codes), bits, encoding)
    expected = pack_codes(codes, bits, encoding)
    assert packed.dtype == np.uint8
    assert (packed.get() == expected).all()
    assert packed.shape == expected.shape
    back = unpack_codes(packed, bits, shape[-1], encoding)
    assert back.dtype == dtype
    assert back.shape == shape
    assert (back.get() == codes).all()


@pytest.mark.gpu
def test_packing_of_any_bytes_views_and_odd_addresses_is_numpys() -> None:
    import cupy

    every: Array = np.random.default_rng(2).integers(0, 256, (64, 96)).astype(np.uint8)
    device = cupy.asarray(every)
    for host, there in ((every, device), (every.T, device.T), (every[:, 1:81], device[:, 1:81])):
        for bits, encoding in product((4, 2), ENCODINGS):
            assert (pack_codes(there, bits, encoding).get() == pack_codes(host, bits, encoding)).all()
    odd, host = device.ravel()[3 : 3 + 4096], every.ravel()[3 : 3 + 4096]
    assert (pack_codes(odd, 4).get() == pack_codes(host, 4)).all()
    assert (unpack_codes(odd, 2, 4 * 4096).get() == unpack_codes(host, 2, 4 * 4096)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNEL_FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 7, 64, 65, 4096, 70_001])
@pytest.mark.parametrize("double", [False, True])
def test_codebooks_are_numpys(name: str, dtype: str, count: int, double: bool) -> None:
    import cupy

    with np.errstate(over="ignore"):
        x = hard_values(count, max(count, 512))[:count].astype(dtype_of(dtype))
    ours = quantize_blockwise(cupy.asarray(x), name, double=double)
    twin = quantize_blockwise(x, name, double=double)
    for (key, found), expected in zip(ours._arrays().items(), twin._arrays().values(), strict=True):
        assert found.dtype == expected.dtype
        assert found.get().tobytes() == expected.tobytes(), key
    for to in ("float32", "float16", "bfloat16"):
        back, wanted = ours.dequantize(to).get(), twin.dequantize(to)
        assert back.dtype == wanted.dtype
        assert (np.isnan(back) == np.isnan(wanted)).all()
        assert (back == wanted)[~np.isnan(wanted)].all()


@pytest.mark.gpu
def test_codebooks_read_views_and_odd_addresses() -> None:
    import cupy

    x = np.random.default_rng(3).standard_normal((65, 131)).astype(np.float16)
    device = cupy.asarray(x)
    for host, there in ((x.T, device.T), (x[1:, 3:], device[1:, 3:]), (x.ravel()[5:], device.ravel()[5:])):
        ours, twin = quantize_blockwise(there), quantize_blockwise(host)
        assert (ours.values.get() == twin.values).all()
        moved = QuantizedTensor(**{**vars(ours), "values": cupy.concatenate((ours.values[:1], ours.values))[1:]})
        assert (moved.dequantize().get() == twin.dequantize()).all()
        assert (moved.codes().get() == twin.codes()).all()
