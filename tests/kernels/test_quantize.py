"""The quantise kernels write, to the bit, the packing that `pack` makes of what the NumPy quantisers give."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, HEAD_DIMS, Array, dtype_of, recipes

from cupy_intfa.data.families import FAMILIES, make_qkv
from cupy_intfa.device import DeviceInfo, default_device
from cupy_intfa.kernel_table import no_packing
from cupy_intfa.kernels import kernels_dir
from cupy_intfa.packing import KEY_BLOCK, Packing, make_packing, pack
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.quantize.cuda import PACKED, SCRATCH, plan_quantize
from cupy_intfa.quantize.launch import is_vector, pack_params, quantize_into
from cupy_intfa.recipe import PRESETS, Recipe

MEANS = ("k_mean", "v_mean", "q_kmean")  # may be NaN by arithmetic, whose sign and payload differ from chip to chip
LENGTHS = (1, 2, 5, 16, 63, 64, 65, 127, 128, 129, 200, 257, 600, 1025)  # 1025: nine chunks, two steps of the fold

packable = (
    recipes(
        pv=("int8", "float16", "float8_e4m3", "float8_e5m2"),
        v_granularities=("tensor", "channel", "block", "block_channel"),
    )
    .map(lambda r: replace(r, key_block=KEY_BLOCK, key_window=KEY_BLOCK if r.key_window else 0))
    .filter(lambda recipe: no_packing(recipe) is None)
)


# What happens to values before they take their dtype. The powers of ten leave float32 at both ends, or float16 at one.
SPOILT: Mapping[str, Callable[[Array, np.random.Generator], Array]] = MappingProxyType(
    {
        "as they are": lambda x, rng: x,
        "not finite": lambda x, rng: np.where(rng.random(x.shape) < 3 / x.size, rng.choice((np.nan, -np.inf)), x),
        "subnormal": lambda x, rng: x * 1e-39,
        "wide": lambda x, rng: x * 10.0 ** rng.integers(-42, 36, x.shape),
        "largest": lambda x, rng: np.sign(x) * 1e38,  # sums and rotations overflow
        "ties": lambda x, rng: np.rint(x),
        "zero rows": lambda x, rng: x * (rng.random((*x.shape[:-1], 1)) < 0.6),
        "negative zeros": lambda x, rng: -np.abs(x) * (rng.random(x.shape) < 0.3),
    }
)


def on_device(x: Array) -> Any:
    """Copy a host array to the device, bfloat16 too."""
    import cupy as cp

    x = np.ascontiguousarray(x)
    return cp.asarray(x.reshape(-1).view(np.uint8)).view(x.dtype).reshape(x.shape)


def _shifted(x: Array) -> Any:
    memory = on_device(np.concatenate((np.zeros(1, x.dtype), x.ravel())))
    return memory[1:].reshape(x.shape)


PLACED: Mapping[str, Callable[[Array], Any]] = MappingProxyType(
    {
        "contiguous": on_device,
        "heads inside": lambda x: on_device(x.swapaxes(1, 2)).swapaxes(1, 2),
        "tokens backwards": lambda x: on_device(x[:, :, ::-1])[:, :, ::-1],
        "all backwards": lambda x: on_device(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "channels outside": lambda x: on_device(x.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0),
        "every other channel": lambda x: on_device(np.repeat(x, 2, axis=-1))[..., ::2],
        "off by one element": _shifted,
    }
)
"""Ways for the same values to lie in device memory: the first three allow 16-byte loads, if D does."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A drawn q, k and v: what they are and how they lie in memory."""

    family: str = "normal"
    spoilt: tuple[str, str, str] = ("as they are",) * 3
    placed: tuple[str, str, str] = ("contiguous",) * 3
    seed: int = 0
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    q_len: int = 200
    kv_len: int = 200
    head_dim: int = 128
    dtype: str = "float16"

    def arrays(self) -> tuple[Array, ...]:
        """Make q, k and v (B, H, S, D) on the host."""
        sizes = {name: getattr(self, name) for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")}
        made = make_qkv(self.family, **sizes, seed=self.seed, dtype=np.float64)
        rng = np.random.default_rng(self.seed)
        with np.errstate(over="ignore", under="ignore"):
            spoilt = (SPOILT[how](x, rng) for how, x in zip(self.spoilt, made, strict=True))
            return tuple(x.astype(dtype_of(self.dtype)) for x in spoilt)

    def problem(self) -> AttentionProblem:
        """Describe them."""
        q, kv = (self.batch, self.heads, self.q_len), (self.batch, self.kv_heads, self.kv_len)
        return make_problem((*q, self.head_dim), *((*kv, self.head_dim),) * 2, (self.dtype,) * 3)


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """Draw q, k and v."""
    kv_heads = draw(st.integers(1, 2))
    each = st.tuples(*(st.sampled_from(tuple(SPOILT)),) * 3)
    return Inputs(
        family=draw(st.sampled_from(tuple(FAMILIES))),
        spoilt=draw(each | st.just(("as they are",) * 3)),
        placed=draw(st.tuples(*(st.sampled_from(tuple(PLACED)),) * 3) | st.just(("contiguous",) * 3)),
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        q_len=draw(st.sampled_from(LENGTHS)),
        kv_len=draw(st.sampled_from(LENGTHS)),
        head_dim=draw(st.sampled_from(HEAD_DIMS)),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def expected(problem: AttentionProblem, recipe: Recipe, arrays: tuple[Array, ...]) -> dict[str, Array]:
    """Make the packing with NumPy."""
    packing = make_packing(problem, recipe)
    workspace = np.empty(packing.nbytes, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):  # of what is then marked
        pack(quantize_arrays(*arrays, recipe=recipe), packing, workspace, np)
    return packing.views(workspace)


def quantised(problem: AttentionProblem, recipe: Recipe, arrays: tuple[Any, ...], fill: int = 0xFF) -> dict[str, Array]:
    """Make the packing with the kernels, in memory full of one byte, and see that they write nothing beside it."""
    import cupy as cp

    device = default_device()
    assert isinstance(device, DeviceInfo), device
    plan = make_plan(problem, recipe, "naive", device)  # runs all that has a packing
    assert plan.cuda
    guard = 4096
    workspace = cp.full(plan.cuda.workspace_bytes + guard, fill, np.uint8)
    quantize_into(plan, plan.cuda, arrays, workspace)
    written = workspace.get()
    assert (written[-guard:] == fill).all(), "memory behind the workspace was written"
    packing = plan.cuda.packing
    assert (written[_gaps(packing)] == fill).all(), "memory between the arrays of the packing was written"
    return packing.views(written)


def _gaps(packing: Packing) -> Array:
    ends = {region.offset: region.offset + region.nbytes for region in packing.regions.values()}
    starts = [*list(ends)[1:], packing.nbytes]
    return np.concatenate([np.arange(end, start) for end, start in zip(ends.values(), starts, strict=True)])


def assert_same_bits(actual: dict[str, Array], wanted: dict[str, Array], names: tuple[str, ...] = ()) -> None:
    """Compare the arrays of two packings, all of them or those named."""
    for name in names or wanted:
        a, b = actual[name], wanted[name]
        if name in MEANS:
            a, b = (np.where(np.isnan(x), np.float32(np.nan), x) for x in (a, b))
        bits_a, bits_b = (np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (a, b))
        different = bits_a != bits_b
        where = tuple(map(int, np.argwhere(different)[0])) if different.any() else ()
        assert not where, (
            f"{name}: {int(different.sum())} of {different.size} differ, the first at {where}: {a[where]!r}, "
            f"expected {b[where]!r}"
        )


@pytest.mark.gpu
@given(inputs(), packable)
def test_any_packing_is_numpys(drawn: Inputs, recipe: Recipe) -> None:
    host = drawn.arrays()
    device = tuple(PLACED[how](x) for how, x in zip(drawn.placed, host, strict=True))
    assert_same_bits(quantised(drawn.problem(), recipe, device), expected(drawn.problem(), recipe, host))
    for x, y in zip(host, device, strict=True):
        np.testing.assert_array_equal(x.view(f"u{x.itemsize}"), y.get().view(f"u{x.itemsize}"), "an input was written")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_through_16_byte_loads(preset: str, head_dim: int, dtype: str) -> None:
    drawn = Inputs(batch=2, heads=4, kv_heads=2, q_len=200, kv_len=321, head_dim=head_dim, dtype=dtype)
    host, recipe = drawn.arrays(), PRESETS[preset]
    device = tuple(map(on_device, host))
    assert is_vector(device)
    assert_same_bits(quantised(drawn.problem(), recipe, device), expected(drawn.problem(), recipe, host))


@pytest.mark.gpu
@pytest.mark.parametrize("kv_len", [8193, 70000])  # 65 and 547 chunks: three and four steps of the fold
def test_means_of_long_sequences(kv_len: int) -> None:
    drawn = Inputs(family="channel", heads=1, q_len=1, kv_len=kv_len, head_dim=40, dtype="float32")
    host = drawn.arrays()
    for preset in ("fast", "precise"):
        wanted = expected(drawn.problem(), PRESETS[preset], host)
        assert_same_bits(quantised(drawn.problem(), PRESETS[preset], tuple(map(on_device, host))), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("batched", [True, False])
def test_layouts_without_copies(layout: str, batched: bool) -> None:
    drawn = Inputs(heads=4, kv_heads=2, q_len=70, kv_len=130)
    host = drawn.arrays()
    laid_out = tuple(x if layout == "bhsd" else x.swapaxes(1, 2) for x in host)
    device = tuple(on_device(x if batched else x[0]) for x in laid_out)
    q, k, v = (x.shape for x in device)
    problem = make_problem(q, k, v, ("float16",) * 3, layout=layout)
    assert_same_bits(quantised(problem, PRESETS["fast"], device), expected(drawn.problem(), PRESETS["fast"], host))


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_input_gives_the_same_bits(preset: str) -> None:
    drawn = Inputs(family="outlier", batch=2, heads=8, kv_heads=4, q_len=1000, kv_len=1000)
    device = tuple(map(on_device, drawn.arrays()))
    first = quantised(drawn.problem(), PRESETS[preset], device)
    for fill in range(20):
        again = quantised(drawn.problem(), PRESETS[preset], device, fill)
        assert all(again[name].tobytes() == first[name].tobytes() for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["fast", "precise"])
def test_values_that_leave_float32_when_they_are_centred_mark_their_head(preset: str) -> None:
    """All but V of that head is NumPy's too: its scale would need a second look at values that no output shows."""
    drawn = Inputs(batch=2, heads=2, kv_heads=2, kv_len=3, head_dim=64, dtype="float32")
    q, k, v = drawn.arrays()
    v[0, 1] = np.array([3.4e38, -3.4e38, -3.4e38], np.float32)[:, None]  # the mean is -1.1e38
    got = quantised(drawn.problem(), PRESETS[preset], tuple(map(on_device, (q, k, v))))
    wanted = expected(drawn.problem(), PRESETS[preset], (q, k, v))
    assert np.isnan(got["kv_mark"]).tolist() == [[False, True], [False, False]]
    assert_same_bits(got, wanted, tuple(name for name in wanted if name not in ("v", "v_scale")))
    for name in ("v", "v_scale"):
        for b, h in ((0, 0), (1, 0), (1, 1)):
            assert got[name][b, h].tobytes() == wanted[name][b, h].tobytes()


def test_the_host_packs_the_fields_of_the_kernels_struct() -> None:
    text = (kernels_dir() / "intfa" / "quantize_params.cuh").read_text()
    body = text[text.index("struct QuantizeParams {") : text.index("};", text.index("struct QuantizeParams {"))]
    body = re.sub(r"//.*", "", body)
    inputs, pointers = re.findall(r"Input ([^;]+);", body), re.findall(r"\* (\w+);", body)
    assert inputs == ["q, k, v"]
    assert tuple(name.removesuffix("_codes") for name in pointers) == PACKED + SCRATCH
    assert re.findall(r"s32 ([^;]+);", body) == ["batch, heads, kv_heads, q_len, kv_len, head_dim", "q_pad, kv_pad"]


def fake(x: Array, address: int) -> Any:
    """Make up a device array with the shape and strides of a host array."""
    return SimpleNamespace(
        shape=x.shape, strides=x.strides, itemsize=x.itemsize, data=SimpleNamespace(ptr=address), dtype=x.dtype
    )


@pytest.mark.parametrize(
    ("array", "address", "wanted"),
    [
        (np.zeros((2, 3, 5, 8), np.float16), 4096, True),
        (np.zeros((2, 5, 3, 8), np.float16).swapaxes(1, 2), 4096, True),
        (np.zeros((2, 3, 5, 8), np.float16)[:, :, ::-1], 4096 + 64, True),
        (np.zeros((2, 3, 5, 8), np.float32), 4096, True),
        (np.zeros((1, 1, 1, 17), np.float16)[..., :16], 4096, True),  # strides of axes of one element lead nowhere
        (np.zeros((2, 3, 5, 8), np.float16), 4096 + 8, False),
        (np.zeros((2, 3, 5, 12), np.float16)[..., :8], 4096, False),  # rows 24 bytes apart
        (np.zeros((2, 3, 5, 12), np.float16), 4096, False),  # D is no multiple of 8
        (np.zeros((2, 3, 5, 16), np.float16)[..., ::2], 4096, False),
        (np.zeros((2, 3, 5, 8), np.float16)[..., ::-1], 4096 + 14, False),
        (np.lib.stride_tricks.as_strided(np.zeros(8, np.float16), (1, 1, 2, 8), (0, 0, 2**31, 2)), 4096, False),
    ],
)
def test_16_byte_loads_are_used_where_they_can_be(array: Array, address: int, wanted: bool) -> None:
    good = fake(np.zeros((2, 3, 5, 8), np.float16), 4096)
    for place in range(3):
        arrays = [good] * 3
        arrays[place] = fake(array, address)
        assert is_vector(tuple(arrays)) is wanted


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_parameters_hold_addresses_strides_and_sizes(layout: str) -> None:
    x = np.zeros((2, 3, 5, 8), np.float16)
    kv = np.zeros((2, 3, 7, 8), np.float16)
    seen = q, k, v = tuple(a if layout == "bhsd" else a.swapaxes(1, 2) for a in (x, kv, kv))
    problem = make_problem(q.shape, k.shape, v.shape, ("float16",) * 3, layout=layout)
    plan = plan_quantize(problem, PRESETS["fast"], True)
    numbers = np.frombuffer(pack_params(problem, plan, tuple(fake(a, 4096) for a in seen), 1 << 20), np.int64)
    assert numbers[:5].tolist() == [4096, *x.strides]
    assert numbers[5:10].tolist() == [4096, *kv.strides]
    addresses = dict(zip(PACKED + SCRATCH, numbers[15:].tolist(), strict=False))
    regions = plan.packing.regions
    assert addresses == {
        **dict.fromkeys(PACKED + SCRATCH, 0),
        **{name: (1 << 20) + region.offset for name, region in regions.items()},
        **{name: (1 << 20) + plan.packing.nbytes + region.offset for name, region in plan.scratch.items()},
    }
    assert numbers[-4:].view(np.int32).tolist() == [2, 3, 3, 5, 7, 8, plan.packing.q_len, plan.packing.kv_len]


@given(packable)
def test_scratch_is_what_the_launches_hand_on(recipe: Recipe) -> None:
    problem = Inputs(kv_len=1000).problem()
    plan = plan_quantize(problem, recipe, True)
    ends = [0] + [region.offset + region.nbytes for region in plan.scratch.values()]
    starts = [region.offset for region in plan.scratch.values()] + [plan.scratch_bytes]
    assert all(0 <= start - end < 256 and start % 256 == 0 for end, start in zip(ends, starts, strict=True))
    sources = [launch.source for launch in plan.launches]
    statistics = recipe.smooth_k or recipe.smooth_v or recipe.v_granularity in ("tensor", "channel")
    absmax = "tensor" in (recipe.q_granularity, recipe.k_granularity)
    assert sources == [
        *["quantize_statistics"] * statistics,
        "quantize_combine",
        *["quantize_rows"] * (1 + absmax),
        "quantize_values",
    ]
    assert bool(plan.scratch) == bool(statistics or absmax)


@given(st.sampled_from(HEAD_DIMS), st.integers(0, 2**32 - 1))
def test_q_kmean_is_the_product_of_codes_and_mean(head_dim: int, seed: int) -> None:
    """A product, ⌈log2 D⌉ additions and the scale round once each; one u more covers the second order."""
    drawn = Inputs(family="channel", seed=seed, head_dim=head_dim, dtype="float32", heads=2, kv_heads=1)
    recipe = replace(PRESETS["fast"], rotate=False)
    views = expected(drawn.problem(), recipe, drawn.arrays())
    q, scale = views["q"].astype(np.float64), views["q_scale"].astype(np.float64)
    mean = views["k_mean"].astype(np.float64)[:, :, None]
    bound = (math.ceil(math.log2(head_dim)) + 3) * 2.0**-24 * scale * (abs(q) * abs(mean)).sum(axis=-1)
    assert (abs(views["q_kmean"] - scale * (q * mean).sum(axis=-1)) <= bound).all()
