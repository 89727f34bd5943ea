"""Integer arithmetic: the worked product, exact products with zero points, and scaling without floats."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.requantize import integer_matmul, multiplier_of, requantize

RATIOS = st.floats(2.0**-31, 2.0**31)
ACCUMULATORS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20)


def test_the_worked_product() -> None:
    """42 · 38 with scales 1/2048 and 1/4096: 1596 / 2^23 = 0.00019."""
    a = quantize_symmetric(np.array([[42 / 2048]]), scale=np.array([[1 / 2048]], np.float32))
    b = quantize_symmetric(np.array([[38 / 4096]]), scale=np.array([[1 / 4096]], np.float32))
    assert (a.codes().item(), b.codes().item()) == (42, 38)
    accumulator, scale = integer_matmul(a, b)
    assert accumulator.dtype == np.int32
    assert accumulator.item() == 1596
    assert accumulator.item() * float(scale.item()) == 1596 / 2**23 == pytest.approx(0.00019, abs=5e-7)
    # To an output in steps of 2^-16 the accumulator is shifted by 7: 1596 / 128 = 12.47.
    multiplier, shift = multiplier_of(float(scale.item()) / 2**-16, bits=1)
    assert (multiplier, shift) == (1, 7)
    assert requantize(accumulator, multiplier, shift).item() == 12


@pytest.mark.parametrize("forms", ["symmetric", "asymmetric", "mixed"])
@given(m=st.integers(1, 5), n=st.integers(1, 5), k=st.integers(1, 300), seed=seeds)
def test_products_are_exact(forms: str, m: int, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((m, k)), rng.standard_normal((n, k)) + 1
    a = quantize_symmetric(x, "int8", "row") if forms != "asymmetric" else quantize_asymmetric(x, "uint8", "row")
    b = quantize_symmetric(y) if forms == "symmetric" else quantize_asymmetric(y, "int8")
    accumulator, scale = integer_matmul(a, b)
    zeros = [np.int64(0) if t.zero_point is None else t.zero_point.astype(np.int64) for t in (a, b)]
    expected = (a.codes().astype(np.int64) - zeros[0]) @ (b.codes().astype(np.int64) - zeros[1]).T
    assert (accumulator == expected).all()
    product = a.dequantize().astype(np.float64) @ b.dequantize().astype(np.float64).T
    # Every element of the right side was rounded to 2⁻²⁴ of itself, and so was the scale.
    slack = np.abs(a.dequantize()).astype(np.float64) @ np.abs(b.dequantize()).astype(np.float64).T * 4 * 2**-24
    assert (np.abs(accumulator * scale.astype(np.float64) - product) <= slack + 1e-30).all()


def test_products_that_cannot_be_are_refused() -> None:
    x = np.ones((2, 8), np.float32)
    row = quantize_symmetric(x, "int8", "row")
    for bad, message in (
        (quantize_symmetric(x, "int8", "channel"), "b: expected a matrix with one scale or one per row"),
        (quantize_symmetric(x, "int8", Granularity("group", 4)), "b: expected a matrix with one scale"),
        (quantize_asymmetric(x, form="minimum"), "b: expected integers with an integer zero point or none"),
        (quantize_symmetric(x[:, :4]), r"expected rows of one length, got \(2, 8\) and \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            integer_matmul(row, bad)
    wide = quantize_symmetric(np.ones((1, 140_000), np.float32))
    with pytest.raises(ValueError, match="rows of 140000 elements could overflow int32: split them"):
        integer_matmul(wide, wide)


@given(RATIOS, st.integers(2, 31))
def test_multiplier_has_its_bits_and_its_precision(ratio: float, bits: int) -> None:
    multiplier, shift = multiplier_of(ratio, bits)
    assert 2 ** (bits - 1) <= multiplier < 2**bits
    assert abs(Fraction(multiplier) / Fraction(2) ** shift / Fraction(ratio) - 1) <= Fraction(1, 2**bits)


@given(RATIOS)
def test_one_bit_is_the_power_of_two_below(ratio: float) -> None:
    multiplier, shift = multiplier_of(ratio, 1)
    assert multiplier == 1
    assert 2.0**-shift <= ratio < 2.0 ** (1 - shift)


@given(
    ACCUMULATORS, RATIOS, st.sampled_from((1, 8, 15, 31)), st.sampled_from((("int8", 0), ("uint8", 128), ("int4", 3)))
)
def test_requantised_is_the_exact_product_rounded_half_to_even(
    values: list[int], ratio: float, bits: int, target: tuple[str, int]
) -> None:
    """Python's round of exact fractions is half to even."""
    multiplier, shift = multiplier_of(ratio, bits)
    format, zero = target
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7)}[format]
    exact = [round(Fraction(value * multiplier) / Fraction(2) ** shift) + zero for value in values]
    found = requantize(np.array(values, np.int32), multiplier, shift, format, zero)
    assert found.tolist() == [max(low, min(high, value)) for value in exact]
    assert found.dtype == (np.uint8 if format == "uint8" else np.int8)


def test_ties_go_to_even() -> None:
    ties = np.array([8, 24, 40, -8, -24, -40], np.int32)  # 0.5, 1.5, 2.5 sixteenths
    assert requantize(ties, 1, 4).tolist() == [0, 2, 2, 0, -2, -2]
    assert requantize(ties, 2**30, 34).tolist() == [0, 2, 2, 0, -2, -2]


@given(seeds, st.floats(1e-4, 0.05))
def test_integer_requantisation_follows_the_float_one(seed: int, ratio: float) -> None:
    """A multiplier of 31 bits is off by 2⁻³¹, so the codes differ only next to a tie."""
    accumulator = np.random.default_rng(seed).integers(-(2**20), 2**20, 1000).astype(np.int32)
    codes = requantize(accumulator, *multiplier_of(ratio))
    exact = accumulator * ratio
    assert (np.abs(codes - np.clip(exact, -128, 127)) <= 0.5 + 2**20 * ratio * 2**-31).all()


def test_what_cannot_be_is_refused() -> None:
    for ratio in (0.0, -1.0, 2.0**-32, 2.0**32, float("nan")):
        with pytest.raises(ValueError, match=r"expected a ratio between 2\^-31 and 2\^31"):
            multiplier_of(ratio)
    with pytest.raises(ValueError, match="expected 1 to 31 bits, got 32"):
        multiplier_of(1.0, 32)
    with pytest.raises(TypeError, match="expected an accumulator of int32, got int64"):
        requantize(np.array([1]), 1, 0)
