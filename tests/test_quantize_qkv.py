"""Quantised Q, K and V: every granularity against plain loops, bounds, marks, and what must not matter."""

import itertools
import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LENGTHS, Array, Case, cases, dtype_of, presets, recipes, restride, strides
from tolerances import assert_within, quantisation_error, storage_format
from transcription import TINY, U, rotation, stored_order, token_scales, value_scales

from cupy_intfa import PRESETS, QuantizedQKV, Recipe, get_recipe
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.quantize.codes import FORMATS

SHORT = (1, 3, 8, 31, 64, 65, 130)
Owner = Callable[[int, int], tuple[Hashable, ...]]  # (token, channel) → which scale of the head


def by_loop(x: Array, owner: Owner, fmt: str) -> tuple[dict[Any, float], Array]:
    """Quantise one head element by element: scales by owner, and codes."""
    largest: dict[Any, float] = {}
    for t, d in np.ndindex(*x.shape):
        largest[owner(t, d)] = max(largest.get(owner(t, d), 0.0), abs(float(x[t, d])))
    top = {"int8": 127, "int4": 7, "float8_e4m3": 448, "float8_e5m2": 57344}.get(fmt)
    scales: dict[Any, float] = {}
    for key, absmax in largest.items():
        if absmax == 0:
            scales[key] = 1.0
        elif top is None:
            scales[key] = 2.0 ** (math.floor(math.log2(absmax)) - 14)
        else:
            scales[key] = max(TINY, float(np.float32(absmax / top)))
    codes = np.empty(x.shape, FORMATS[fmt].dtype)
    for t, d in np.ndindex(*x.shape):
        scaled = np.float32(x[t, d] * np.float32(1 / np.float32(scales[owner(t, d)])))
        if fmt.startswith("int"):
            codes[t, d] = max(-top, min(top, round(float(scaled)))) if top else 0
        else:
            codes[t, d] = scaled
    return scales, codes


def owners(recipe: Recipe, operand: str, order: Array) -> Owner:
    """Say which elements share a scale; blocks and groups count stored positions."""
    position = np.argsort(order).tolist()
    block = recipe.key_block
    kinds: dict[str, Owner] = {
        "tensor": lambda t, d: (),
        "token": lambda t, d: (t,),
        "block": lambda t, d: (position[t] // block,),
        "group": lambda t, d: (position[t] // block, position[t] % 8 // 2),
        "channel": lambda t, d: (d,),
        "block_channel": lambda t, d: (position[t] // block, d),
    }
    return kinds[getattr(recipe, f"{operand}_granularity")]


def assert_as_by_loop(qkv: QuantizedQKV, arrays: tuple[Array, Array, Array]) -> None:
    for operand, x in zip("qkv", arrays, strict=True):
        codes, scale = getattr(qkv, operand), getattr(qkv, f"{operand}_scale")
        for b, h in np.ndindex(*x.shape[:2]):
            order = np.arange(x.shape[2]) if operand == "q" else stored_order(qkv, b, h)
            wanted, wanted_codes = by_loop(
                x[b, h], owners(qkv.recipe, operand, order), storage_format(qkv.recipe, operand)
            )
            assert {key: float(scale[(b, h, *key)]) for key in wanted} == wanted, operand
            assert codes[b, h].tobytes() == wanted_codes.tobytes(), operand


GRANULARITIES = [
    *itertools.product(("q",), ("tensor", "block", "token")),
    *itertools.product(("k",), ("tensor", "block", "token", "group")),
    *itertools.product(("v",), ("tensor", "channel", "block", "block_channel", "token")),
]


@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize(("operand", "granularity"), GRANULARITIES)
def test_granularity_is_that_of_a_loop(operand: str, granularity: str, window: int) -> None:
    recipe = get_recipe("paper", row_sum="exact", key_window=window, **{f"{operand}_granularity": granularity})
    case = Case(family="outlier_token", batch=2, heads=2, kv_heads=1, q_len=70, kv_len=150, head_dim=5)
    arrays = case.arrays()
    assert_as_by_loop(quantize_arrays(*arrays, recipe=recipe), arrays)


@given(cases(lengths=SHORT, head_dims=(1, 3, 8)), recipes())
def test_any_recipe_is_that_of_a_loop(case: Case, recipe: Recipe) -> None:
    """Without centring and rotation, whose own tests hold them to their bits."""
    arrays = case.arrays()
    recipe = replace(recipe, smooth_k=False, smooth_v=False, rotate=False)
    assert_as_by_loop(quantize_arrays(*arrays, recipe=recipe), arrays)


def dequantised_by_hand(qkv: QuantizedQKV, operand: str, b: int, h: int) -> Array:
    """Code times scale of one head, in float64, in original order and in the coordinates that were quantised."""
    codes = getattr(qkv, operand)[b, h].astype(np.float64)
    order = np.arange(len(codes)) if operand == "q" else stored_order(qkv, b, h)
    if operand == "v":
        scale = value_scales(qkv, b, h, order)
    else:
        granularity, block = getattr(qkv.recipe, f"{operand}_granularity"), qkv.recipe.key_block
        scale = token_scales(getattr(qkv, f"{operand}_scale")[b, h], granularity, order, block)[:, None]
    meant: Array = codes * np.asarray(scale)[np.argsort(order)]
    return meant


@given(cases(lengths=LENGTHS, dtypes=("float16", "bfloat16", "float32", "float64")), recipes())
def test_error_is_half_a_step(case: Case, recipe: Recipe) -> None:
    """Codes and scales stand for the inputs, and `dequantize` says so: both within `quantisation_error`."""
    arrays = case.arrays()
    qkv = quantize_arrays(*arrays, recipe=recipe)
    head_dim, turn = case.head_dim, rotation(case.head_dim) if recipe.rotate else np.eye(case.head_dim)
    for operand, x, given_back in zip("qkv", arrays, qkv.dequantize(), strict=True):
        assert given_back.dtype == np.float32
        assert given_back.shape == x.shape
        mean = {"q": None, "k": qkv.k_mean, "v": qkv.v_mean}[operand]
        turned = turn if operand != "v" else np.eye(head_dim)
        for b, h in np.ndindex(*x.shape[:2]):
            exact = x[b, h].astype(np.float64)
            centre = np.zeros(head_dim) if mean is None else mean[b, h].astype(np.float64)
            reach = (np.abs(exact) + np.abs(centre)) @ np.abs(turned)
            coded = dequantised_by_hand(qkv, operand, b, h)
            # Preparing in float32: a subtraction, log₂ D ≤ 8 additions and a product; and what is flushed.
            inside = (exact - centre) @ turned
            step = np.abs(coded) + np.abs(inside) + reach
            scale = scale_by_element(qkv, operand, b, h)
            off = quantisation_error(inside, scale, storage_format(recipe, operand)) + 11 * U * step + head_dim * TINY
            assert_within(coded, inside, off, f"{operand} {recipe.name}")
            outside = off @ np.abs(turned) + 14 * U * (step @ np.abs(turned) + np.abs(centre)) + head_dim * TINY
            assert_within(given_back[b, h], exact, outside, f"dequantize {operand} {recipe.name}")


def scale_by_element(qkv: QuantizedQKV, operand: str, b: int, h: int) -> Array:
    """Scale of each element of one head in original order."""
    ones = replace(qkv, **{operand: np.ones_like(getattr(qkv, operand))})
    return dequantised_by_hand(ones, operand, b, h)


@given(cases(families=("normal", "outlier", "channel", "zeros"), lengths=SHORT), recipes(), st.data())
def test_storage_does_not_matter(case: Case, recipe: Recipe, data: st.DataObject) -> None:
    """Strides, byte order and alignment change no bit, and read-only inputs show that none is written."""
    arrays = case.arrays()
    plain = quantize_arrays(*arrays, recipe=recipe)
    stored = quantize_arrays(*(restride(x, data.draw(strides)) for x in arrays), recipe=recipe)
    for name, array in arrays_of(plain).items():
        other = getattr(stored, name)
        assert other.tobytes() == array.tobytes(), name
        assert (other.dtype, other.shape) == (array.dtype, array.shape), name


def arrays_of(qkv: QuantizedQKV) -> dict[str, Array]:
    return {name: value for name, value in vars(qkv).items() if isinstance(value, np.ndarray)}


@given(cases(lengths=SHORT, head_dims=(1, 5, 16)), recipes())
def test_scales_are_normal_float32_and_codes_in_range(case: Case, recipe: Recipe) -> None:
    qkv = quantize_arrays(*case.arrays(), recipe=recipe)
    for operand in "qkv":
        scale, codes = getattr(qkv, f"{operand}_scale"), getattr(qkv, operand)
        fmt = storage_format(recipe, operand)
        assert scale.dtype == np.float32
        assert (scale >= np.float32(TINY)).all()
        assert np.isfinite(scale).all()
        assert codes.dtype == FORMATS[fmt].dtype
        assert np.abs(codes.astype(np.float64)).max() <= FORMATS[fmt].largest


@pytest.mark.parametrize("name", PRESETS)
def test_zeros_have_scale_one_and_code_zero(name: str) -> None:
    x = np.zeros((1, 2, 70, 16), np.float32)
    qkv = quantize_arrays(x, x, x, recipe=PRESETS[name])
    for operand in "qkv":
        assert (getattr(qkv, f"{operand}_scale") == 1).all()
        assert not getattr(qkv, operand).astype(np.float32).any()
    assert not qkv.q_mark.any()
    assert not qkv.kv_mark.any()


def test_one_zero_row_among_others() -> None:
    x = np.ones((1, 1, 3, 4), np.float32)
    x[0, 0, 1] = 0
    qkv = quantize_arrays(x, x, x, recipe=PRESETS["paper"])
    assert qkv.q_scale.tolist() == [[[np.float32(1 / 127), 1, np.float32(1 / 127)]]]
    assert qkv.q[0, 0, 1].tolist() == [0] * 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-37, 3e-39, 1e38, 3.4e38])
def test_extreme_sizes_keep_their_relative_error(size: float, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (1, 1, 9, 8)).astype(dtype_of(dtype))
    x[..., 0] = 1
    x *= x.dtype.type(size)
    qkv = quantize_arrays(x, x, x, recipe=PRESETS["paper"])
    step = max(size / 127, TINY)  # below 1e-36 the smallest normal scale leaves fewer levels
    for given_back in qkv.dequantize():
        assert np.isfinite(given_back).all()
        assert_within(given_back, x, 0.5 * step * (1 + 1e-6) + TINY)
    assert not qkv.q_mark.any()
    assert not qkv.kv_mark.any()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_marks_say_which_rows_are_poisoned(name: str, bad: float) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 9, 8))
    q[0, 1, 4, 3], k[1, 0, 5, 0], v[0, 0, 8, 7] = bad, bad, bad
    qkv = quantize_arrays(q, k, v, recipe=PRESETS[name])
    assert qkv.q_mark.dtype == qkv.kv_mark.dtype == np.float32
    assert np.argwhere(np.isnan(qkv.q_mark)).tolist() == [[0, 1, 4]]
    assert np.isnan(qkv.kv_mark).tolist() == [[True, False], [True, False]]
    assert (np.nan_to_num(qkv.q_mark) == 0).all()
    assert (np.nan_to_num(qkv.kv_mark) == 0).all()
    restored = dict(zip("qkv", qkv.dequantize(), strict=True))
    assert np.isnan(restored["q"]).all(axis=-1).sum() == 1
    assert (np.isnan(restored["k"]).all(axis=(-1, -2)) == [[True, False], [True, False]]).all()


def test_poison_does_not_spread_through_scales() -> None:
    """A maximum drops what is not finite: the other rows, and the other values of the row's block, keep their codes."""
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 1, 70, 8)).astype(np.float32)
    clean = quantize_arrays(q, k, v, recipe=get_recipe("paper", q_granularity="block", k_granularity="group"))
    q_bad, k_bad = q.copy(), k.copy()
    q_bad[0, 0, 3, 0], k_bad[0, 0, 3, 0] = np.nan, np.inf
    q[0, 0, 3, 0], k[0, 0, 3, 0] = 0, 0
    zeroed = quantize_arrays(q, k, v, recipe=clean.recipe)
    marked = quantize_arrays(q_bad, k_bad, v, recipe=clean.recipe)
    for name in ("q", "k", "q_scale", "k_scale"):
        assert getattr(marked, name).tobytes() == getattr(zeroed, name).tobytes()


@pytest.mark.parametrize("change", [{"smooth_k": True}, {"smooth_v": True}, {"rotate": True}])
def test_what_centring_or_rotating_overflows_is_marked(change: dict[str, bool]) -> None:
    x = np.full((1, 2, 200, 8), 1.0, np.float32)
    x[0, 1] = 3e38
    qkv = quantize_arrays(x, x, x, recipe=get_recipe("paper", **change))
    assert np.isnan(qkv.kv_mark).tolist() == [[False, True]]
    for operand in "qkv":
        assert np.isfinite(getattr(qkv, f"{operand}_scale")).all()


def test_four_bits_use_seven_levels_of_either_sign() -> None:
    x = np.linspace(-1, 1, 15, dtype=np.float32).reshape(1, 1, 1, 15)
    qkv = quantize_arrays(x, x, x, recipe=get_recipe("paper", qk_bits=4))
    assert qkv.q.ravel().tolist() == list(range(-7, 8))
    assert qkv.k.ravel().tolist() == list(range(-7, 8))
    assert qkv.v.ravel()[[0, -1]].tolist() == [-127, 127], "V keeps 8 bits"


def test_means_are_those_of_the_loaded_inputs() -> None:
    q, k, v = np.random.default_rng(2).standard_normal((3, 1, 2, 300, 8)).astype(np.float32) + np.float32(5)
    for name, smooth_k, smooth_v in (("paper", False, False), ("fast", True, True), ("half", True, False)):
        qkv = quantize_arrays(q, k, v, recipe=PRESETS[name])
        for mean, x, smooth in ((qkv.k_mean, k, smooth_k), (qkv.v_mean, v, smooth_v)):
            assert (mean is not None) == smooth
            if mean is not None:
                assert_within(mean, x.astype(np.float64).mean(axis=2), 11 * U * 6)


@given(presets)
def test_sizes_are_counted(name: str) -> None:
    x = np.ones((1, 1, 3, 4), np.float32)
    qkv = quantize_arrays(x, x, x, recipe=PRESETS[name])
    assert qkv.nbytes == sum(array.nbytes for array in arrays_of(qkv).values())
