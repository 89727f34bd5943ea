"""Float32 arithmetic of the quantisers: loading, the written summation tree, scales, codes."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Array, dtype_of, seeds
from transcription import TINY, U

from cupy_intfa.quantize.arithmetic import (
    flush,
    load_float32,
    mean_over_tokens,
    power_of_two_scale,
    read_finite,
    round_to_codes,
    scale_from_absmax,
)

SUBNORMAL = np.float32(1e-39)
SMALLEST_NORMAL = np.float32(TINY)


def wide_range(seed: int, *shape: int) -> Array:
    """Draw float32 of either sign with exponents from far below the subnormal border to 10²⁰."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-42, 20, shape)).astype(np.float32)


def test_flush_keeps_normals_and_drops_subnormals() -> None:
    x = np.array([0.0, -0.0, SUBNORMAL, -SUBNORMAL, TINY, -TINY, 1.0, np.inf, -np.inf], np.float32)
    assert flush(x, np).tolist() == [0, 0, 0, 0, TINY, -TINY, 1, np.inf, -np.inf]
    assert np.isnan(flush(np.array([np.nan], np.float32), np)).all(), "a NaN must survive to be marked"


@pytest.mark.parametrize("name", DTYPES)
def test_load_reads_exactly_and_marks_rows(name: str) -> None:
    x = np.arange(24).reshape(2, 3, 4).astype(dtype_of(name))
    x[0, 1, 2], x[1, 0, 3], x[1, 2, 0] = np.nan, np.inf, -np.inf
    values, bad = load_float32(x, np)
    assert values.dtype == np.float32
    assert bad.tolist() == [[False, True, False], [True, False, True]]
    expected = np.where(np.isfinite(x.astype(np.float64)), x.astype(np.float64), 0.0)
    assert (values == expected).all()


def test_load_marks_what_float32_cannot_hold_and_flushes() -> None:
    values, bad = load_float32(np.array([[1e300, 1.0], [1e39, 1.0], [3e38, 1.0], [1e-300, 1e-39]]), np)
    assert bad.tolist() == [True, True, False, False]
    assert values.tolist() == [[0, 1], [0, 1], [np.float32(3e38), 1], [0, 0]]


def test_reading_marks_what_is_not_finite_in_float32() -> None:
    values, bad = read_finite(np.array([1.5, np.nan, np.inf, -np.inf, 1e39, 1e-40, -1e-40]), np)
    assert values.dtype == np.float32
    assert values.tolist() == [1.5, 0, 0, 0, 0, 0, 0]
    assert bad.tolist() == [False, True, True, True, True, False, False]
    for wrong in (np.array([1], np.int8), np.array([1j]), np.array([True])):
        with pytest.raises(TypeError, match=f"got {wrong.dtype.name}: convert it with .astype"):
            read_finite(wrong, np)


def tree_mean(x: Array) -> np.float32:
    """Mean of a sequence by the written tree, from the root down: token i joins i + step, step = 1, 2, 4, …, 64."""

    def add(a: np.float32, b: np.float32) -> np.float32:
        total = np.float32(a + b)
        return total if abs(total) >= SMALLEST_NORMAL else np.float32(0)

    def node(leaves: Array, first: int, step: int) -> np.float32:
        if step == len(leaves):
            return np.float32(leaves[first])
        return add(node(leaves, first, 2 * step), node(leaves, first + step, 2 * step))

    chunks = [x[start : start + 128] for start in range(0, len(x), 128)]
    sums = [node(np.concatenate([chunk, np.zeros(128 - len(chunk), np.float32)]), 0, 1) for chunk in chunks]
    padded = sums + [np.float32(0)] * ((1 << (len(sums) - 1).bit_length()) - len(sums))
    mean = np.float32(node(np.array(padded), 0, 1) / np.float32(len(x)))
    return mean if abs(mean) >= SMALLEST_NORMAL else np.float32(0)


@given(st.sampled_from((1, 2, 63, 64, 65, 127, 128, 129, 257, 640, 1025)), seeds)
def test_mean_follows_the_tree_bit_for_bit(length: int, seed: int) -> None:
    x = wide_range(seed, length, 2)
    mean = mean_over_tokens(x[None, None], np)
    expected = np.array([tree_mean(x[:, channel]) for channel in range(2)])
    assert mean.shape == (1, 1, 2)
    assert (mean[0, 0].view(np.uint32) & 0x7FFFFFFF == expected.view(np.uint32) & 0x7FFFFFFF).all()
    assert (mean[0, 0] == expected).all()


@given(st.integers(1, 3000), seeds)
def test_mean_is_close_to_the_exact_mean(length: int, seed: int) -> None:
    """A sum passes through log₂ 128 + log₂ chunks additions and a division, each off by u; padding adds none."""
    x = np.random.default_rng(seed).standard_normal((1, 2, length, 3)).astype(np.float32) + np.float32(3)
    mean = mean_over_tokens(x, np)
    roundings = 7 + math.ceil(math.log2(-(-length // 128))) + 1
    exact = x.astype(np.float64).mean(axis=2)
    assert (np.abs(mean - exact) <= 1.01 * roundings * U * np.abs(x.astype(np.float64)).mean(axis=2)).all()


def test_mean_may_overflow_without_a_warning() -> None:
    x = np.full((1, 1, 200, 1), 3e38, np.float32)
    assert np.isinf(mean_over_tokens(x, np)).all()


@given(st.sampled_from((127.0, 7.0, 448.0, 57344.0)), seeds)
def test_scale_is_absmax_over_largest_and_never_subnormal(largest: float, seed: int) -> None:
    absmax = np.abs(wide_range(seed, 200))
    absmax[::7] = 0
    absmax = flush(absmax, np)
    scale = scale_from_absmax(absmax, largest, np)
    for a, s in zip(absmax.tolist(), scale.tolist(), strict=True):
        if a == 0:
            assert s == 1
        else:
            assert s == max(TINY, float(np.float32(a / largest)))  # a / largest in float64 rounds to the same float32
    assert (scale >= SMALLEST_NORMAL).all()


@given(seeds)
def test_power_of_two_scale_fills_float16(seed: int) -> None:
    absmax = flush(np.abs(wide_range(seed, 200)), np)
    scale = power_of_two_scale(absmax, np)
    assert scale.dtype == np.float32
    assert (np.frexp(scale)[0] == 0.5).all(), "not powers of two"
    assert (scale >= SMALLEST_NORMAL).all()
    assert (scale[absmax == 0] == 1).all()
    free = absmax >= 2.0 ** (-126 + 14)  # below it the scale stays the smallest normal
    assert ((absmax / scale)[free] < 2.0**15).all()
    assert ((absmax / scale)[free & (absmax > 0)] >= 2.0**14).all()


def test_codes_round_half_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.49999997, 0.50000006], np.float32)
    codes = round_to_codes(x, np.float32(1), 127, np)
    assert codes.dtype == np.int8
    assert codes.tolist() == [0, 2, 2, 4, 0, -2, -2, 126, -126, 0, 1]


@pytest.mark.parametrize("largest", [127, 7])
def test_codes_never_pass_the_largest(largest: int) -> None:
    """The maximum over its own scale may round to a little more than the largest code; −128 is never used."""
    absmax = np.abs(wide_range(5, 20000))
    absmax = absmax[absmax >= SMALLEST_NORMAL]
    scale = scale_from_absmax(absmax, largest, np)
    full = absmax / np.float32(largest) >= SMALLEST_NORMAL
    assert (round_to_codes(absmax, scale, largest, np)[full] == largest).all()
    assert (round_to_codes(-absmax, scale, largest, np)[full] == -largest).all()
    assert round_to_codes(np.array([1e9, -1e9], np.float32), np.float32(1), largest, np).tolist() == [largest, -largest]


@given(st.sampled_from((127, 7)), seeds)
def test_codes_are_the_rounded_product_with_the_reciprocal(largest: int, seed: int) -> None:
    """Against exact rational arithmetic: fl(x · fl(1/s)), then Python's half to even.

    For x as near as can be to ties, where x/s, one rounding instead of two, would give other codes.
    """
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.uniform(0.5, 1))
    ties = (rng.integers(-largest, largest, 50) + 0.5) * scale
    x = np.nextafter(ties.astype(np.float32), rng.choice([-np.inf, np.inf, 0], 50).astype(np.float32))
    inverse = np.float32(1 / Fraction(float(scale)))
    expected = [round(float(np.float32(float(Fraction(float(a)) * Fraction(float(inverse)))))) for a in x]
    assert round_to_codes(x, scale, largest, np).tolist() == [max(-largest, min(largest, code)) for code in expected]


def test_bfloat16_subnormals_are_flushed() -> None:
    x = np.array([[1e-39, 1e-3]], ml_dtypes.bfloat16)
    assert x[0, 0] != 0
    assert load_float32(x, np)[0].tolist() == [[0, float(x[0, 1])]]
