"""What a launch hands to a kernel: the bytes of its arguments are the fields of its C++ struct, value by value."""

import itertools
import math
import struct
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from nvrtc import CompileError, compile_kernel

from cupy_intfa import PRESETS, kernel_table, launch
from cupy_intfa.kernels import compile_options
from cupy_intfa.packing import KEY_BLOCK
from cupy_intfa.plan import CudaPlan, Plan, make_plan
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.quantize import cuda as quantize_cuda
from cupy_intfa.quantize import launch as quantize_launch
from cupy_intfa.quantize.arithmetic import SUM_CHUNK

# Fields in order: name → type as the module struct writes it, with a count for an array. Q is a pointer.
Fields = Mapping[str, str]
ATTENTION: Fields = {
    **dict.fromkeys((*launch._ARRAYS, "out", "lse", "o_flush"), "Q"),
    "out_stride": "4q",
    **dict.fromkeys(("heads", "kv_heads", "q_len", "kv_len", "head_dim", "q_pad", "kv_pad"), "i"),
    **dict.fromkeys(("causal_offset", "last_to_first", "out_dtype", "all_heads", "section"), "i"),
    **dict.fromkeys(("scale", "scale_log2", "score_reach", "log2_top"), "f"),
}
_CODES = {name: f"{name}_codes" for name in "qkv"}
QUANTIZE: Fields = {
    **{f"{x}.{field}": kind for x in "qkv" for field, kind in (("data", "Q"), ("stride", "4q"))},
    **{_CODES.get(name, name): "Q" for name in (*quantize_cuda.PACKED, *quantize_cuda.SCRATCH)},
    **dict.fromkeys(("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "q_pad", "kv_pad"), "i"),
}
STRUCTS = {
    "AttentionParams": ("intfa/params.cuh", ATTENTION, launch._ATTENTION),
    "QuantizeParams": ("intfa/quantize_params.cuh", QUANTIZE, quantize_cuda.PARAMS),
}
KINDS = """
template <class T> constexpr char kind = '?';
template <class T> constexpr char kind<T*> = 'Q';
template <> constexpr char kind<s64> = 'q';
template <> constexpr char kind<s32> = 'i';
template <> constexpr char kind<float> = 'f';
template <class T, int n> constexpr char kind<T[n]> = kind<T>;
"""


def compile_asserts(headers: Iterable[str], asserts: Iterable[str], before: str = "") -> None:
    lines = [f'#include "{header}"' for header in headers] + [before]
    lines += [f"static_assert({claim}, {claim!r});".replace("'", '"') for claim in asserts]
    compile_kernel("\n".join([*lines, 'extern "C" __global__ void nothing() {}']), "sm_90", compile_options(()))


def assert_layout(name: str, fields: Fields) -> None:
    """Compile the claim that a struct has these fields, of these types, at the offsets where Python packs them."""
    header, _, _ = STRUCTS[name]
    offset, claims = 0, []
    for field, kind in fields.items():
        member = f"(({name}*)0)->{field}"
        claims += [
            f"__INTADDR__(&{member}) == {offset}",  # NVRTC has no offsetof; this is what it would expand to
            f"sizeof({member}) == {struct.calcsize('=' + kind)}",
            f"kind<decltype({member})> == {ord(kind[-1])}",
        ]
        offset += struct.calcsize("=" + kind)
    compile_asserts([header], [*claims, f"sizeof({name}) == {offset}"], KINDS)


@pytest.mark.parametrize("name", STRUCTS)
def test_python_packs_the_fields_of_the_struct(name: str) -> None:
    _, fields, packer = STRUCTS[name]
    assert_layout(name, fields)
    assert list(_expanded(packer.format)) == list(_expanded("".join(fields.values())))


def _expanded(format_: str) -> Iterable[str]:
    """2i → i, i."""
    count = ""
    for character in format_.removeprefix("="):
        if character.isdigit():
            count += character
        else:
            yield from character * int(count or 1)
            count = ""


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("AttentionParams", "q_scale", "q_mark"),
        ("AttentionParams", "heads", "scale"),
        ("QuantizeParams", "k_sum", "v_sum"),
    ],
)
def test_layout_sees_fields_in_another_order(name: str, one: str, other: str) -> None:
    fields = STRUCTS[name][1]
    exchanged = {{one: other, other: one}.get(field, field): kind for field, kind in fields.items()}
    with pytest.raises(CompileError, match="static assertion failed"):
        assert_layout(name, exchanged)


def test_numbers_that_both_sides_know_are_the_same() -> None:
    formats = {"int8": "kInt8", "float16": "kHalf", "float8_e4m3": "kE4M3", "float8_e5m2": "kE5M2"}
    dtypes = {"float16": "kFloat16", "bfloat16": "kBFloat16", "float32": "kFloat32", "float64": "kFloat64"}
    spans = {name: "k" + name.title().replace("_", "") for name in quantize_cuda._SPANS}
    of_attention = [f"{formats[name]} == {number}" for name, number in kernel_table._FORMATS.items()]
    of_quantize = [f"{formats[name]} == {number}" for name, number in quantize_cuda._FORMATS.items()]
    of_quantize += [f"{spans[name]} == {number}" for name, number in quantize_cuda._SPANS.items()]
    of_quantize += [f"kChunk == {SUM_CHUNK}", f"kBlockRows == {KEY_BLOCK}"]
    shared = [f"{dtypes[name]} == {number}" for name, number in launch.OUT_DTYPES.items()]
    compile_asserts(["intfa/config.cuh"], [*of_attention, *shared, f"kNoMask == {launch.NO_MASK}"])
    compile_asserts(["intfa/quantize_config.cuh"], [*of_quantize, *shared])


class Launches:
    """Stands in for the kernels: keeps what they are launched with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def load(self, name: str, defines: tuple[str, ...], device: int, shared_bytes: int = 0) -> Any:
        def launched(grid: Any, block: Any, arguments: Any, shared_mem: int = 0) -> None:
            params, *maps = arguments
            assert isinstance(params, np.void), "CuPy passes a NumPy scalar by value"
            self.calls.append(
                {
                    "kernel": (name, defines, device, shared_bytes),
                    "grid": grid,
                    "block": block,
                    "params": params.tobytes(),
                    "maps": maps,
                    "shared": shared_mem,
                }
            )

        return launched


def unpack_fields(fields: Fields, packed: bytes) -> dict[str, Any]:
    values = iter(struct.unpack("=" + "".join(fields.values()), packed))
    taken = {
        name: tuple(itertools.islice(values, struct.calcsize("=" + kind) // struct.calcsize("=" + kind[-1])))
        for name, kind in fields.items()
    }
    return {name: value if len(value) > 1 else value[0] for name, value in taken.items()}


def plan_for(preset: str, problem: AttentionProblem) -> tuple[Plan, CudaPlan]:
    plan = make_plan(problem, PRESETS[preset], "cuda", DEVICES["sm_90"])
    assert plan.cuda
    return plan, plan.cuda


@pytest.mark.parametrize(
    ("preset", "is_causal", "absent"),
    [
        ("paper", True, {"v_mean", "q_kmean", "key_index", "o_flush"}),
        ("fast", False, {"v_mean", "o_flush"} if not PRESETS["fast"].smooth_v else {"o_flush"}),
        ("fp16", False, {"v_mean", "q_kmean", "key_index", "o_flush"}),
    ],
)
def test_attention_gets_every_value_in_its_field(preset: str, is_causal: bool, absent: set[str]) -> None:
    mask: dict[str, Any] = {"is_causal": is_causal, "causal_alignment": "bottom_right" if is_causal else None}
    kv = (3, 2, 200, 40)
    problem = make_problem((3, 6, 130, 40), kv, kv, ("bfloat16",) * 3, scale=0.3, **mask)
    plan, cuda = plan_for(preset, problem)
    launches = Launches()
    launch.attention(
        plan, cuda, 1 << 40, 1 << 41, (11, 12, 13, 14), 1 << 42, load=launches.load, make_map=lambda *view: view
    )
    (call,) = launches.calls
    assert call["kernel"] == (cuda.source, cuda.defines, cuda.device.ordinal, cuda.shared_bytes)
    regions = cuda.packing.regions
    assert [view[0] for view in call["maps"]] == [(1 << 40) + regions[box.array].offset for box in cuda.boxes]
    for (_, size, shape, strides, sizes), box in zip(call["maps"], cuda.boxes, strict=True):
        assert math.prod(shape) * size == regions[box.array].nbytes
        assert (sizes[0], math.prod(sizes[1:])) == (box.columns, box.rows)
        assert shape[0] % box.columns == 0
        assert box.columns * size in (32, 64, 128)
        assert max(sizes) <= 256
        assert strides[0] == 1
        assert all(stride * size % 16 == 0 for stride in strides[1:])

    assert (call["grid"], call["block"], call["shared"]) == ((cuda.grid,), (cuda.threads,), cuda.shared_bytes)

    got = unpack_fields(ATTENTION, call["params"])
    assert {name for name in (*launch._ARRAYS, "o_flush") if got[name] == 0} == absent
    for name, region in cuda.packing.regions.items():
        if name in got:
            assert got[name] == (1 << 40) + region.offset, name
    assert set(cuda.packing.regions) - set(got) <= {"k_mean"}, "the kernel uses q · k_mean"
    scale = np.float32(0.3)
    largest = np.float32({"paper": 127, "fast": 127, "fp16": 32768}[preset])
    expected = {
        "out": 1 << 41,
        "lse": 1 << 42,
        "out_stride": (11, 12, 13, 14),
        "heads": 6,
        "kv_heads": 2,
        "q_len": 130,
        "kv_len": 200,
        "head_dim": 40,
        "q_pad": 256,
        "kv_pad": 256,
        "causal_offset": 70 if is_causal else launch.NO_MASK,
        "last_to_first": PRESETS[preset].key_order == "last_to_first",
        "out_dtype": 1,
        "all_heads": 18,
        "section": 18,
        "scale": scale,
        "scale_log2": np.float32(scale * np.float32(np.log2(np.e))),
        "score_reach": largest * largest * 40,
        "log2_top": np.float32(np.log2({"paper": 127, "fast": 255, "fp16": 1}[preset])),
    }
    assert {name: got[name] for name in expected} == expected


def test_v_in_bytes_comes_in_the_order_of_a_lanes_channels() -> None:
    """Number 8k + 2t + e of 32 rows of a box is channel 8t + 2k + e: what lane t holds then lies side by side."""
    kv = (1, 1, 64, 128)
    _, cuda = plan_for("fast", make_problem(kv, kv, kv, ("float16",) * 3))
    (_, _, shape, strides, sizes) = cuda.views[2]
    assert shape[:4] == (64, 2, 4, 4)
    rows = np.add.outer(np.arange(sizes[4]) * strides[4], np.arange(4) * strides[3])  # i, k
    rows = np.add.outer(np.add.outer(rows, np.arange(4) * strides[2]), np.arange(2) * strides[1])  # t, e
    i, k, t, e = np.meshgrid(*map(np.arange, rows.shape), indexing="ij")
    assert np.array_equal(rows // 64, 32 * i + 8 * t + 2 * k + e)


def test_long_rows_get_the_scratch_behind_the_packing() -> None:
    kv = (1, 1, 65537, 16)
    plan, cuda = plan_for("fast", make_problem((1, 1, 8, 16), kv, kv, ("float16",) * 3))
    launches = Launches()
    launch.attention(plan, cuda, 4096, 0, (0, 0, 0, 1), 0, load=launches.load, make_map=lambda *_: None)
    assert unpack_fields(ATTENTION, launches.calls[0]["params"])["o_flush"] == 4096 + cuda.packing.nbytes


def test_sections_of_heads_fill_the_cache_and_no_more() -> None:
    kv = (2, 4, 16384, 128)  # 4 MB of K and V for each of 8 KV heads: eight of them are 32 MB
    for heads, kv_shape, section in ((8, kv, 16), (4, kv, 8), (8, (2, 4, 131072, 128), 2), (8, (2, 4, 64, 128), 16)):
        problem = make_problem((2, heads, 256, 128), kv_shape, kv_shape, ("float16",) * 3)
        plan, cuda = plan_for("fast", problem)
        launches = Launches()
        launch.attention(plan, cuda, 4096, 0, (0, 0, 0, 1), 0, load=launches.load, make_map=lambda *_: None)
        assert unpack_fields(ATTENTION, launches.calls[0]["params"])["section"] == section, (heads, kv_shape)


def array_at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int = 2) -> Any:
    """Make up a CuPy array: strides in elements."""
    return SimpleNamespace(
        shape=shape, strides=tuple(itemsize * n for n in strides), itemsize=itemsize, data=SimpleNamespace(ptr=address)
    )


@pytest.mark.parametrize(
    ("layout", "batched", "order"),
    [("bhsd", True, (0, 1, 2, 3)), ("bshd", True, (0, 2, 1, 3)), ("bshd", False, (None, 1, 0, 2))],
)
def test_quantise_kernels_get_every_value_in_its_field(
    layout: str, batched: bool, order: tuple[int | None, ...]
) -> None:
    def shape(heads: int, length: int) -> tuple[int, ...]:
        return ((3,) if batched else ()) + ((heads, length) if layout == "bhsd" else (length, heads)) + (40,)

    q, kv = shape(6, 130), shape(2, 200)
    problem = make_problem(q, kv, kv, ("float16",) * 3, layout=layout)
    plan, cuda = plan_for("fast", problem)
    strides = [tuple(10 * i + n for n in range(len(q))) for i in (1, 2, 3)]
    arrays = tuple(array_at(i << 44, x, s) for i, x, s in zip((1, 2, 3), (q, kv, kv), strides, strict=True))
    launches = Launches()
    quantize_launch.quantize_into(plan, cuda, arrays, SimpleNamespace(data=SimpleNamespace(ptr=1 << 40)), launches.load)

    planned = quantize_cuda.plan_quantize(problem, plan.recipe, quantize_launch.is_vector(arrays))
    assert [call["kernel"] for call in launches.calls] == [(x.source, x.defines, 0, 0) for x in planned.launches]
    assert [(call["grid"], call["block"]) for call in launches.calls] == [
        ((x.grid,), (x.threads,)) for x in planned.launches
    ]
    (packed,) = {call["params"] for call in launches.calls}  # one set of arguments serves all
    got = unpack_fields(QUANTIZE, packed)
    for i, name in enumerate("qkv"):
        assert got[f"{name}.data"] == (i + 1) << 44
        assert got[f"{name}.stride"] == tuple(0 if axis is None else 2 * strides[i][axis] for axis in order), "bytes"
    base = {**cuda.packing.regions, **planned.scratch}
    for name in (*quantize_cuda.PACKED, *quantize_cuda.SCRATCH):
        start = (1 << 40) + (cuda.packing.nbytes if name in quantize_cuda.SCRATCH else 0)
        assert got[_CODES.get(name, name)] == (start + base[name].offset if name in base else 0), name
    sizes = {"batch": 3 if batched else 1, "heads": 6, "kv_heads": 2, "q_len": 130, "kv_len": 200, "head_dim": 40}
    assert {name: got[name] for name in (*sizes, "q_pad", "kv_pad")} == {**sizes, "q_pad": 256, "kv_pad": 256}


@pytest.mark.parametrize(
    ("address", "shape", "strides", "is_vector"),
    [
        (256, (2, 4, 64), (256, 64, 1), True),
        (256, (2, 4, 64), (-256, 64, 1), True),
        (256, (1, 4, 64), (3, 64, 1), True),  # no second head to walk to
        (264, (2, 4, 64), (256, 64, 1), False),
        (256, (2, 4, 60), (256, 64, 1), False),
        (256, (2, 4, 64), (256, 68, 1), False),
        (256, (2, 4, 64), (256, 64, 2), False),
        (256, (2, 4, 64), (256, 64, -1), False),
        (256, (2, 4, 64), (2**30, 64, 1), False),  # 2 GB
    ],
)
def test_wide_loads_need_aligned_rows(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...], is_vector: bool
) -> None:
    good = array_at(0, (2, 4, 64), (256, 64, 1))
    array = array_at(address, shape, strides)
    for arrays in itertools.permutations((array, good, good)):
        assert quantize_launch.is_vector(arrays) == is_vector
