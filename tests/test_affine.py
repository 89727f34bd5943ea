"""Affine quantisation: worked numbers, bounds, ties, ranges, both forms of the zero, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_arrays import arrays, f32
from strategies import DTYPES, Array, dtype_of, seeds

from cupy_intfa.quantize.affine import (
    affine_parameters,
    minimum_of,
    quantize_asymmetric,
    quantize_symmetric,
    zero_point_of,
)
from cupy_intfa.quantize.formats import INTEGERS
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.tensor import QuantizedTensor

GRANULARITIES = st.sampled_from(
    (
        Granularity("tensor"),
        Granularity("row"),
        Granularity("channel"),
        Granularity("group", 5),
        Granularity("block", (2, 4)),
        Granularity("flat", 7),
    )
)
FORMATS = st.sampled_from(tuple(INTEGERS))
FORMS = ("zero_point", "minimum")
SIGNED = [name for name, fmt in INTEGERS.items() if fmt.is_signed]


def quantize(x: Array, form: str, format: str, granularity: Granularity | str = "tensor") -> QuantizedTensor:
    """Quantise in one of the three ways."""
    if form == "symmetric":
        return quantize_symmetric(x, format, granularity)
    return quantize_asymmetric(x, format, granularity, form=form)


def test_worked_numbers_of_symmetric_introductions() -> None:
    """Absmax 0.5: scale 0.003937, and 0.5 → 127, 0.3 → 76, −0.5 → −127."""
    x = np.array([0.5, 0.3, -0.5])
    quantized = quantize_symmetric(x)
    assert float(quantized.scales()[0]) == pytest.approx(0.003937, abs=5e-7)
    assert quantized.codes().tolist() == [127, 76, -127]
    given = quantize_symmetric(x, scale=np.array([0.003937], np.float32))
    assert given.codes().tolist() == [127, 76, -127]


def test_worked_numbers_of_asymmetric_introductions() -> None:
    """[0.1, 0.5] → 0 … 255; 0.3 lies exactly between 127 and 128, and the rounding of the dtype decides."""
    x = np.array([0.1, 0.3, 0.5])
    quantized = quantize_asymmetric(x, form="minimum")
    assert quantized.codes().tolist() == [0, 128, 255]
    assert quantized.codes().dtype == np.uint8
    in_float64 = np.rint((x - 0.1) / ((0.5 - 0.1) / 255))
    assert in_float64.tolist() == [0, 127, 255]


@pytest.mark.parametrize("name", SIGNED)
def test_symmetric_codes_use_both_ends_and_leave_the_lowest_out(name: str) -> None:
    high = INTEGERS[name].high
    codes = quantize_symmetric(np.linspace(-3, 3, 1001), name).codes()
    assert codes.dtype == np.int8
    assert (codes.min(), codes.max()) == (-high, high)
    assert len(np.unique(codes)) == 2 * high + 1


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("form", FORMS)
def test_asymmetric_codes_use_every_integer(name: str, form: str) -> None:
    codes = quantize_asymmetric(np.linspace(-1, 3, 5001), name, form=form).codes()
    assert (codes.min(), codes.max()) == (INTEGERS[name].low, INTEGERS[name].high)
    assert len(np.unique(codes)) == 1 << INTEGERS[name].bits


@given(arrays(), st.sampled_from(("symmetric", *FORMS)), FORMATS, GRANULARITIES)
def test_error_stays_within_the_bound(x: Array, form: str, format: str, granularity: Granularity) -> None:
    if granularity.kind == "block" and x.ndim == 1:
        granularity = Granularity("row")
    if form == "symmetric" and not INTEGERS[format].is_signed:
        x = np.abs(x)
    quantized = quantize(x, form, format, granularity)
    back = quantized.dequantize()
    assert back.shape == x.shape
    assert back.dtype == np.float32
    bound = np.broadcast_to(quantized.error_bound(), x.shape)
    assert (np.abs(back.astype(np.float64) - x) <= bound).all()
    # The bound is half a step and rounding: far from subnormal numbers and for ranges around 0 hardly more.
    if form != "minimum":
        assert (bound <= quantized.scales() * 0.5001 + 1e-37).all()


@given(arrays(), st.sampled_from(("symmetric", *FORMS)), FORMATS, st.sampled_from(("row", "tensor")))
def test_codes_do_not_change_when_they_are_quantised_again(x: Array, form: str, format: str, granularity: str) -> None:
    """With the same parameters: q · s / s is q within 3 · 2⁻²⁴ of it. A minimum of 1000 would cost digits: centred."""
    if form == "minimum":
        x = x - x.mean() if np.isfinite(x.sum()) else x
    if form == "symmetric":
        first = quantize_symmetric(x, format, granularity)
        scale = np.asarray(first.scales())
        again = quantize_symmetric(first.dequantize(), format, granularity, scale=scale)
    else:
        spec = Granularity(granularity)
        ends = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
        if granularity == "tensor":
            ends = (x.min(keepdims=True), x.max(keepdims=True))
        low, high = (end.reshape(spec.scale_shape(x.shape)) for end in ends)
        first = quantize_asymmetric(x, format, granularity, form=form, low=low, high=high)
        again = quantize_asymmetric(first.dequantize(), format, granularity, form=form, low=low, high=high)
    assert (again.codes() == first.codes()).all()


@given(arrays(), st.sampled_from(("symmetric", *FORMS)), FORMATS)
def test_larger_values_never_get_smaller_codes(x: Array, form: str, format: str) -> None:
    x = np.sort(x.ravel())
    quantized = quantize(x, form, format)
    assert (np.diff(quantized.codes().astype(int)) >= 0).all()
    assert (np.diff(quantized.dequantize()) >= 0).all()


@given(arrays(), FORMATS)
def test_zero_is_exact_where_it_has_a_code(x: Array, format: str) -> None:
    with_zero = np.append(x.ravel(), np.float32(0))
    for form in ("symmetric", "zero_point"):
        assert quantize(with_zero, form, format).dequantize()[-1] == 0


@given(seeds, st.sampled_from(SIGNED))
def test_the_negative_of_an_array_has_the_negative_codes(seed: int, format: str) -> None:
    x = np.random.default_rng(seed).standard_normal(50).astype(np.float32)
    assert (quantize_symmetric(-x, format).codes() == -quantize_symmetric(x, format).codes()).all()


def test_half_goes_to_even_codes() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.0], np.float32)
    assert quantize_symmetric(x).codes().tolist() == [0, 2, 2, 0, -2, -2, 126, 127]


@given(seeds)
def test_codes_are_the_rounded_quotient(seed: int) -> None:
    """Against exact arithmetic, also next to ties: fl(x / s), then half to even."""
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.uniform(0.5, 1))
    ties = ((rng.integers(-127, 127, 50) + 0.5) * scale).astype(np.float32)
    x = np.nextafter(ties, rng.choice([-np.inf, np.inf, 0], 50).astype(np.float32))
    expected = [round(float(np.float32(Fraction(float(a)) / Fraction(float(scale))))) for a in x]
    assert quantize_symmetric(x, scale=np.array([scale])).codes().tolist() == expected


def test_values_beyond_a_given_range_are_clipped() -> None:
    scale = np.array([0.01], np.float32)
    assert quantize_symmetric(f32([5, -5, 3e38]), scale=scale).dequantize() == pytest.approx([1.27, -1.27, 1.27])
    low, high = f32([-0.51]), f32([2.04])
    for form in FORMS:
        quantized = quantize_asymmetric(f32([9, -9, 2.04, -0.51, 0]), form=form, low=low, high=high)
        assert quantized.codes().tolist() == [255, 0, 255, 0, 51]


def test_a_value_whose_distance_leaves_float32_is_clipped_too() -> None:
    low, high = f32([-3e38]), f32([0])
    quantized = quantize_asymmetric(f32([3e38, -3e38]), form="minimum", low=low, high=high)
    assert quantized.codes().tolist() == [255, 0]


def test_unsigned_symmetric_maps_the_maximum_and_drops_the_negative() -> None:
    quantized = quantize_symmetric(f32([-3, 0, 0.25, 1]), "uint8")
    assert quantized.codes().tolist() == [0, 0, 64, 255]
    assert (quantize_symmetric(f32([-3, -1]), "uint4").dequantize() == 0).all()


@pytest.mark.parametrize("form", ["symmetric", *FORMS])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_group_with_something_not_finite_is_nan_and_no_other(form: str, value: float) -> None:
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    expected = quantize(x, form, "int8", "row").dequantize()
    x[1, 2] = value
    quantized = quantize(x, form, "int8", "row")
    back = quantized.dequantize()
    assert np.isnan(back[1]).all()
    assert (back[[0, 2, 3]] == expected[[0, 2, 3]]).all()
    assert np.isnan(quantized.scales()[1, 0])


@pytest.mark.parametrize("form", FORMS)
def test_a_range_beyond_float32_is_nan(form: str) -> None:
    assert np.isnan(quantize_asymmetric(f32([-3e38, 0, 3e38]), form=form).dequantize()).all()


@pytest.mark.parametrize("format", INTEGERS)
def test_the_largest_floats_come_back_finite(format: str) -> None:
    largest = np.finfo(np.float32).max
    for x in (f32([0, largest]), f32([largest, largest / 2])):
        for form in ("symmetric", *FORMS):
            quantized = quantize(x, form, format)
            assert np.isfinite(quantized.dequantize()).all()
            assert (np.abs(quantized.dequantize().astype(np.float64) - x) <= quantized.error_bound()).all()


@pytest.mark.parametrize("scale", [0, -1, 1e-40, np.nan])
def test_a_scale_that_is_none_is_nan(scale: float) -> None:
    assert np.isnan(quantize_symmetric(f32([1, 2]), scale=f32([scale])).dequantize()).all()


def test_zero_ranges() -> None:
    for form in ("symmetric", *FORMS):
        zeros = quantize(np.zeros((2, 3), np.float32), form, "int8", "row")
        assert (zeros.dequantize() == 0).all()
        assert (zeros.scales() == 1).all()
    same = quantize_asymmetric(np.full(4, -7.3, np.float32), form="minimum")
    assert (same.dequantize() == np.float32(-7.3)).all()
    assert (same.codes() == 0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("form", ["symmetric", *FORMS])
@pytest.mark.parametrize("format", ["int8", "uint4", "int2"])
def test_empty_arrays_stay_empty(shape: tuple[int, ...], form: str, format: str) -> None:
    quantized = quantize(np.zeros(shape, np.float32), form, format, "row")
    assert quantized.dequantize().shape == shape
    assert quantized.codes().shape == shape


@pytest.mark.parametrize("name", DTYPES)
def test_every_float_is_read_as_float32(name: str) -> None:
    x = np.random.default_rng(3).standard_normal((3, 40)).astype(dtype_of(name))
    x.flags.writeable = False
    for form in ("symmetric", *FORMS):
        one, other = quantize(x, form, "int8", "row"), quantize(x.astype(np.float32), form, "int8", "row")
        assert (one.codes() == other.codes()).all()
        assert (one.scales() == other.scales()).all()


def test_zero_points_follow_onnx() -> None:
    """DynamicQuantizeLinear of the ONNX specification, opset 11: its own examples."""
    for x, scale, zero_point, codes in (
        ([0, 2, -3, -2.5, 1.34, 0.5], 0.0196078438, 153, [153, 255, 0, 26, 221, 179]),
        ([-1.0, -2.1, -1.3, -2.5, -3.34, -4.0], 0.0156862754, 255, [191, 121, 172, 96, 42, 0]),
        ([1, 2.1, 1.3, 2.5, 3.34, 4.0, 1.5, 2.6, 3.9, 4.0, 3.0, 2.345], 0.0156862754, 0,
         [64, 134, 83, 159, 213, 255, 96, 166, 249, 255, 191, 149]),
    ):  # fmt: skip
        quantized = quantize_asymmetric(np.array(x, np.float32))
        assert quantized.zero_point is not None
        assert float(quantized.scales()[0]) == pytest.approx(scale, rel=1e-7)
        assert int(quantized.zero_point[0]) == zero_point
        assert quantized.codes().tolist() == codes


@given(seeds, FORMATS)
def test_the_two_forms_are_converted_into_each_other(seed: int, format: str) -> None:
    rng = np.random.default_rng(seed)
    low, high = -rng.uniform(0, 3, 20).astype(np.float32), rng.uniform(0.1, 3, 20).astype(np.float32)
    scale, zero_point, _ = affine_parameters(low, high, format)
    assert zero_point is not None
    minimum = minimum_of(scale, zero_point, format)
    assert (zero_point_of(scale, minimum, format) == zero_point).all()
    # The grid begins within half a step of the range, and the two grids coincide.
    assert (np.abs(minimum - low) <= scale * 0.5001).all()
    scale, _, minimum = affine_parameters(low, high, format, "minimum")
    assert minimum is not None
    moved = minimum_of(scale, zero_point_of(scale, minimum, format), format)
    assert (np.abs(moved - minimum) <= scale * 0.5001).all()


def test_a_minimum_far_from_zero_has_no_zero_point() -> None:
    scale, _, minimum = affine_parameters(f32([5]), f32([6]), "uint8", "minimum")
    assert minimum is not None
    with pytest.raises(ValueError, match="expected ranges that hold 0, which an integer zero point needs"):
        zero_point_of(scale, minimum, "uint8")


def test_what_cannot_be_is_refused() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected an integer format among int8, int4, .*, got 'nf4'"):
        quantize_symmetric(x, "nf4")
    with pytest.raises(ValueError, match="expected a form among zero_point, minimum, got 'max'"):
        quantize_asymmetric(x, form="max")
    with pytest.raises(ValueError, match=r"expected parameters of shape \(2, 1\) for 'row' of an array of shape"):
        quantize_symmetric(x, granularity="row", scale=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="expected both ends of the range, low and high, or none, got one"):
        quantize_asymmetric(x, low=np.zeros((1, 1), np.float32))
    with pytest.raises(TypeError, match="expected an array of float16, bfloat16, float32, float64, got int32"):
        quantize_symmetric(np.ones(3, np.int32))
    with pytest.raises(TypeError, match="expected NumPy arrays or CuPy arrays"):
        quantize_symmetric([1.0])
