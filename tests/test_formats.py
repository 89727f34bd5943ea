"""Codebooks: the published tables, nearest levels, ties, and formats in blocks."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from small_arrays import arrays
from strategies import DTYPES, Array, dtype_of, seeds

from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.blockwise import quantize_blockwise, quantize_scales
from cupy_intfa.quantize.formats import (
    CODEBOOKS,
    INTEGERS,
    KERNEL_FORMATS,
    bits_of,
    codebook,
    dynamic_levels,
    integers,
    make_codebook,
)
from cupy_intfa.quantize.granularity import Granularity

ROUNDED_TO_EVEN = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
BLOCKS = st.sampled_from((Granularity("flat", 64), Granularity("flat", 5), Granularity("row"), Granularity("tensor")))


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_formats_are_what_their_names_say(name: str) -> None:
    fmt, bits = integers(name), int(name.lstrip("uint"))
    assert bits_of(name) == bits
    expected = (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (fmt.low, fmt.high) == expected


def test_nf4_levels_are_normal_quantiles() -> None:
    """QLoRA, appendix E: quantiles at equal steps of probability, for each sign apart, over the largest.

    Its authors' outermost probability is 0.9677083; their table was computed in float32, off by less than 2e-6.
    """
    outermost = 0.9677083
    positive = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])[::-1]
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    expected = np.concatenate((negative, [0], positive)) / norm.ppf(outermost)
    assert codebook("nf4").levels == pytest.approx(expected, abs=2e-6)
    assert (np.diff(codebook("nf4").levels) > 0).all()


def test_fp4_levels() -> None:
    e2m1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert (codebook("fp4_e2m1").levels == e2m1).all()
    bnb = codebook("fp4_bnb").levels
    assert bnb[:8] * 12 == pytest.approx([0, 0.0625, 8, 12, 4, 6, 2, 3])
    assert (bnb[8:] == -bnb[:8]).all()


def test_dynamic_levels_have_a_step_for_each_decade() -> None:
    """Decade e from 10^(e - 7) to 10^(e - 6) in 2^e (unsigned 2^(e+1)) parts: 127 · 2 levels, 0 and 1."""
    for signed in (True, False):
        levels = dynamic_levels(signed)
        assert len(np.unique(levels)) == 256
        assert (np.diff(levels) > 0).all()
        positive = levels[levels > 0]
        for decade in range(7):
            inside = (positive > 10.0 ** (decade - 7)) & (positive < 10.0 ** (decade - 6) * (decade < 6 or 0.9999))
            assert inside.sum() == 2 ** (decade + (not signed))
        assert levels[-1] == 1
        assert (levels >= 0).all() == (not signed)
    signed_levels = dynamic_levels(True)
    assert (np.sort(-signed_levels[:-1]) == signed_levels[:-1]).all()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_encoding_finds_the_nearest_level(name: str) -> None:
    """Against a search through all levels in float64, for values at random, at the levels, and around every cut."""
    book = codebook(name)
    levels = book.levels[np.isfinite(book.levels)].astype(np.float64)
    rng = np.random.default_rng(7)
    near = np.concatenate([np.nextafter(book.cuts, np.float32(way)) for way in (-9e9, 9e9)])
    x = np.concatenate((rng.uniform(-1.2, 1.2, 2000) * book.largest, book.levels[book.order], near, book.cuts))
    x = x.astype(np.float32)
    codes = book.encode(x, np)
    found = book.decode(codes, np).astype(np.float64)
    nearest = np.abs(levels[None, :] - x[:, None].astype(np.float64)).min(axis=1)
    assert (np.abs(found - x) == nearest).all()
    assert (book.encode(book.levels[book.order], np) == book.order).all()


@pytest.mark.parametrize("name", ROUNDED_TO_EVEN)
def test_float_formats_round_as_their_cast(name: str) -> None:
    """Every float32 of a dense grid, ties included, to the value that ml_dtypes rounds it to."""
    book, dtype = codebook(name), np.dtype(ROUNDED_TO_EVEN[name])
    levels = book.levels[book.order].astype(np.float64)
    ties = (levels[1:] + levels[:-1]) / 2
    x = np.concatenate((normal(3, 5000) * book.largest / 4, ties, levels)).astype(np.float32)
    x = x[np.abs(x) <= book.largest]
    assert (book.decode(book.encode(x, np), np) == x.astype(dtype).astype(np.float32)).all()


def test_ties_go_down_unless_to_even() -> None:
    levels = np.array([0, 1, 2, 3], np.float32)
    ties = np.array([0.5, 1.5, 2.5], np.float32)
    assert make_codebook(levels).encode(ties, np).tolist() == [0, 1, 2]
    assert make_codebook(levels, ties_to_even=True).encode(ties, np).tolist() == [0, 2, 2]


@pytest.mark.parametrize("name", KERNEL_FORMATS)
def test_kernel_formats_have_one_cut_in_a_sixteenth(name: str) -> None:
    book = codebook(name)
    assert book.bits == 4
    assert np.abs(book.levels).max() == 1
    assert (np.diff(book.levels) > 0).all()
    assert len(np.unique(np.floor(book.cuts * 16))) == len(book.cuts) == 15


@given(st.sampled_from(CODEBOOKS), BLOCKS, st.sampled_from(((1,), (64,), (130,), (3, 50))), seeds)
def test_error_stays_within_the_bound(name: str, granularity: Granularity, shape: tuple[int, ...], seed: int) -> None:
    x = normal(seed, *shape) * np.float32(10.0 ** (seed % 50 - 25))
    x = np.abs(x) if name == "dynamic8_unsigned" else x
    quantized = quantize_blockwise(x, name, granularity)
    error = np.abs(quantized.dequantize().astype(np.float64) - x)
    assert (error <= quantized.error_bound()).all()
    if name == "dynamic8":
        return  # its lowest level is -0.993: what had the maximum becomes smaller, and with it the scale
    again = quantize_blockwise(quantized.dequantize(), name, granularity)
    assert (np.abs(again.dequantize() - quantized.dequantize()) <= 3e-7 * np.abs(quantized.dequantize())).all()


@given(st.sampled_from(CODEBOOKS), BLOCKS, arrays())
def test_values_of_every_size_stay_within_the_bound(name: str, granularity: Granularity, x: Array) -> None:
    """Zeros, constants, and exponents from subnormal to 10³⁷ beside each other."""
    x = np.abs(x) if name == "dynamic8_unsigned" else x
    quantized = quantize_blockwise(x, name, granularity)
    back = quantized.dequantize()
    assert (np.abs(back.astype(np.float64) - x) <= quantized.error_bound()).all()
    assert (back[x == 0] == 0).all()


@given(st.sampled_from(CODEBOOKS), seeds)
def test_larger_values_never_come_back_smaller(name: str, seed: int) -> None:
    x = np.sort(normal(seed, 300))
    assert (np.diff(quantize_blockwise(x, name, "tensor").dequantize()) >= 0).all()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_the_absolute_maximum_and_zero_are_exact(name: str) -> None:
    """Up to one rounding of the scale and one of the product: 2⁻²³ of the maximum."""
    x = np.array([0, 0.3, 7.7], np.float32)
    back = quantize_blockwise(x, name).dequantize()
    assert back[0] == 0
    assert back[2] == pytest.approx(7.7, rel=2**-22)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_blocks_run_through_the_array_in_c_order(name: str) -> None:
    x = np.abs(normal(0, 7, 50))
    flat = quantize_blockwise(x.ravel(), name)
    whole = quantize_blockwise(x, name)
    assert whole.shape == (7, 50)
    assert whole.scales().shape == (7, 50)
    assert (whole.values.ravel() == flat.values.ravel()).all()
    assert (whole.dequantize().ravel() == flat.dequantize()).all()
    lone = quantize_blockwise(x.ravel()[64:128], name)
    assert (lone.dequantize() == flat.dequantize()[64:128]).all()


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, 3e38])
def test_a_block_with_something_not_finite_is_nan_and_no_other(name: str, value: float) -> None:
    x = np.ones(200)
    x[70] = value
    back = quantize_blockwise(x, name).dequantize()
    limit = 2.0**126 * codebook(name).largest  # a larger maximum would have a scale without a reciprocal
    is_bad = not abs(value) <= min(limit, 3.4e38)
    assert np.isnan(back[64:128]).all() == is_bad
    assert np.isfinite(back[:64]).all()
    assert np.isfinite(back[128:]).all()


@pytest.mark.parametrize("name", CODEBOOKS)
def test_tiny_blocks_and_zeros(name: str) -> None:
    x = np.concatenate((np.zeros(64), np.full(64, 1e-40), np.full(64, 3e-38))).astype(np.float32)
    quantized = quantize_blockwise(x, name)
    assert (quantized.dequantize()[:128] == 0).all()
    assert (np.abs(quantized.dequantize() - x) <= quantized.error_bound()).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize(("name", "double"), [*((name, False) for name in CODEBOOKS), ("nf4", True)])
def test_empty_arrays_stay_empty(shape: tuple[int, ...], name: str, double: bool) -> None:
    quantized = quantize_blockwise(np.zeros(shape, np.float32), name, double=double)
    assert quantized.dequantize().shape == shape
    assert np.isnan(quantized.bits_per_element)


@pytest.mark.parametrize("name", DTYPES)
def test_every_float_is_read_as_float32(name: str) -> None:
    x = np.random.default_rng(3).standard_normal(300).astype(dtype_of(name))
    x.flags.writeable = False
    one, other = quantize_blockwise(x), quantize_blockwise(x.astype(np.float32))
    assert (one.values == other.values).all()
    assert (one.scales() == other.scales()).all()


def test_double_quantisation_costs_little_and_saves_a_third_of_a_bit() -> None:
    """QLoRA: 32/64 = 0.5 bits of scales become 8/64 + 32/(64 · 256) = 0.127."""
    x = normal(1, 256, 64 * 8)
    single, double = quantize_blockwise(x), quantize_blockwise(x, double=True)
    assert single.bits_per_element == 4.5
    # And the mean, 32 bits for all.
    assert double.bits_per_element == 4 + 8 / 64 + 32 / (64 * 256) + 32 / x.size
    assert (double.values == single.values).all()
    error = np.abs(double.dequantize().astype(np.float64) - x)
    assert (error <= double.error_bound()).all()
    ratio = np.linalg.norm(double.dequantize() - x) / np.linalg.norm(single.dequantize() - x)
    assert ratio == pytest.approx(1, abs=0.01)  # 1.0003 measured


@given(seeds, st.integers(1, 700))
def test_quantised_scales_come_back_within_their_bound(seed: int, count: int) -> None:
    scale = np.abs(normal(seed, count)) + np.float32(0.01)
    quantized = quantize_scales(scale, np)
    assert (np.abs(quantized.dequantize().astype(np.float64) - scale) <= quantized.error_bound()).all()


def test_double_quantisation_marks_what_shares_the_scale_of_a_scale() -> None:
    x = normal(2, 64 * 600)
    x[64 * 300] = np.nan  # scale 300, in the second block of 256 scales
    marked = np.isnan(quantize_blockwise(x, double=True).dequantize()).reshape(600, 64).all(axis=1)
    assert marked.tolist() == [False] * 256 + [True] * 256 + [False] * 88


def test_nf4_beats_linear_int4_on_normal_weights() -> None:
    """The same blocks, the same bits. Of 20 seeds: 0.851 to 0.860 of the error in blocks of 64, 0.812 to 0.819 of 128.

    INT4 with a zero point has the same 16 levels as NF4 and 4 to 32 bits more a block: level with it at 64.
    """
    for size, low, high in ((64, 0.84, 0.87), (128, 0.80, 0.83)):
        weights, block = normal(size, 512, 512), Granularity("flat", size)
        nf4, linear = quantize_blockwise(weights, "nf4", block), quantize_symmetric(weights, "int4", block)
        assert nf4.bits_per_element == linear.bits_per_element
        ratio = np.linalg.norm(nf4.dequantize() - weights) / np.linalg.norm(linear.dequantize() - weights)
        assert low < ratio < high


def test_optimiser_state_keeps_small_values() -> None:
    """A state that spans five decades: dynamic8 keeps each within 10 %, linear INT8 loses what is below its step."""
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-5, 0, 2560)).astype(np.float32)
    block = Granularity("flat", 256)
    back = quantize_blockwise(x, "dynamic8_unsigned", block).dequantize()
    linear = quantize_symmetric(x, "int8", block).dequantize()
    far = x > 1e-3
    # In the decade from 10⁻³ on, 2⁴⁺¹ steps of 0.9 · 10⁻² / 32: half a step over the value is at most 14 %.
    assert (np.abs(back - x)[far] <= 0.15 * x[far]).all()
    assert (linear[x < 1 / 260] == 0).mean() > 0.9
    assert np.median(np.abs(back - x) / x) < 0.05


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a codebook among nf4, fp4_e2m1, .*, got 'int4'"):
        quantize_blockwise(np.ones(3), "int4")
    with pytest.raises(TypeError, match="got int64: convert it"):
        quantize_blockwise(np.ones(3, np.int64))
    with pytest.raises(ValueError, match=r"expected an integer format among int8, .*, got 'int3'"):
        integers("int3")
