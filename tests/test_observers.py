"""Calibration: streaming statistics against NumPy on all the data, ranges against NumPy and SciPy, the pipeline."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from small_arrays import f32
from strategies import Array, seeds

from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.calibration import post_training
from cupy_intfa.quantize.formats import integers
from cupy_intfa.quantize.observers import Statistics, observe
from cupy_intfa.quantize.ranges import METHODS, _divergence, choose_range

FAMILIES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "outliers": lambda rng, n: rng.standard_t(3, n),
    "relu": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "shifted": lambda rng, n: rng.uniform(2, 3, n),
    "wide": lambda rng, n: np.sign(rng.standard_normal(n)) * 10.0 ** rng.uniform(-42, 37, n),
    "zeros": lambda rng, n: np.zeros(n),
}


def draw(family: str, seed: int, count: int) -> Array:
    return FAMILIES[family](np.random.default_rng(seed), count).astype(np.float32)


def seen_in(batches: list[Array], **options: Any) -> Statistics:
    seen = None
    for batch in batches:
        seen = observe(batch, seen, **options)
    assert seen is not None
    return seen


@given(st.sampled_from(sorted(FAMILIES)), seeds, st.integers(1, 6))
def test_statistics_do_not_depend_on_how_the_data_is_cut(family: str, seed: int, pieces: int) -> None:
    x = draw(family, seed, 400)
    whole, cut = observe(x), seen_in(np.array_split(x, pieces))
    assert cut.batches == pieces
    for name in ("low", "high", "exponent", "histogram"):
        assert (getattr(cut, name) == getattr(whole, name)).all()
    assert (whole.low[0], whole.high[0]) == (
        np.where(abs(x) < 1.2e-38, 0, x).min(),
        np.where(abs(x) < 1.2e-38, 0, x).max(),
    )


@given(st.sampled_from(sorted(FAMILIES)), seeds)
def test_histogram_is_numpys(family: str, seed: int) -> None:
    x = draw(family, seed, 500)
    seen = observe(x, bins=64)
    reach = 2.0 ** float(seen.exponent[0])
    # A bin is closed below; numpy closes the last one above too, where nothing lies. Subnormals are read as 0.
    normal = np.where(np.abs(x) < 2.0**-126, 0, x.astype(np.float64))
    expected, _ = np.histogram(normal, 2 * seen.bins, (-reach, reach))
    assert (seen.histogram[0] == expected).all()
    assert seen.histogram.shape == (1, 4 * 64)
    largest = np.abs(x).max()
    if largest > 2.0**-100:
        assert reach / 2 <= largest < reach, "fewer bins than promised are in use"


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channels_are_observed_by_themselves(axis: int) -> None:
    x = draw("outliers", 1, 600).reshape(10, 12, 5) * np.float32(10) ** np.arange(-2, 3, dtype=np.float32)
    seen = seen_in([x[:, :, :], 3 * x], axis=axis)
    rows = np.moveaxis(x, axis, 0)
    assert len(seen.low) == x.shape[axis]
    for channel, row in enumerate(rows):
        alone = seen_in([row, 3 * row])
        for name in ("low", "high", "average_low", "average_high", "exponent", "histogram"):
            assert (getattr(seen, name)[channel] == getattr(alone, name)[0]).all()


def test_moving_average_is_the_recursion() -> None:
    batches = [draw("normal", seed, 50) for seed in range(5)]
    seen = seen_in(batches, momentum=0.25)
    low = float(batches[0].min())
    for batch in batches[1:]:
        low = 0.75 * low + 0.25 * float(batch.min())
    assert float(seen.average_low[0]) == pytest.approx(low, rel=1e-6)
    assert choose_range(seen, "moving_average") == (seen.average_low, seen.average_high)


def test_minmax_is_everything() -> None:
    seen = seen_in([draw("normal", seed, 50) for seed in range(5)])
    assert choose_range(seen) == (seen.low, seen.high)


@given(st.sampled_from(("normal", "laplace", "outliers", "shifted")), seeds, st.sampled_from((50.0, 90.0, 99.0, 100.0)))
def test_percentile_is_numpys_within_a_bin(family: str, seed: int, percentage: float) -> None:
    x = draw(family, seed, 2000)
    seen = observe(x)
    low, high = choose_range(seen, "percentile", percentile=percentage)
    expected = float(np.quantile(np.abs(x), percentage / 100, method="inverted_cdf"))
    limit = float(max(-low[0], high[0]))
    width = 2.0 ** float(seen.exponent[0]) / seen.bins
    assert min(expected, np.abs(x).max()) <= limit <= expected + width
    assert low[0] == max(x.min(), -limit)


@given(st.sampled_from(("normal", "laplace", "outliers")), seeds, st.sampled_from((8, 128)))
def test_divergence_is_scipys(family: str, seed: int, levels: int) -> None:
    """Against a loop over the levels, and scipy.stats.entropy of what it gives."""
    x = np.abs(draw(family, seed, 5000))
    counts, _ = np.histogram(x, 512, (0, float(x.max())))
    for kept in (levels, 200, 512):
        p = counts[:kept].astype(float)
        q = np.zeros(kept)
        for level in range(levels):
            members = slice(level * kept // levels, (level + 1) * kept // levels)
            filled = p[members] > 0
            if filled.any():
                q[members][filled] = p[members].sum() / filled.sum()
        p[-1] += counts[kept:].sum()
        if (q[p > 0] == 0).any():
            assert _divergence(counts, kept, levels) == np.inf
        else:
            assert _divergence(counts, kept, levels) == pytest.approx(float(entropy(p, q)), abs=1e-12)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_entropy_takes_the_smallest_divergence(format: str) -> None:
    seen = observe(draw("laplace", 5, 200_000))
    levels = 128 if format == "int8" else 8
    _, high = choose_range(seen, "entropy", format=format)
    magnitudes = seen.histogram[0, seen.bins :] + seen.histogram[0, : seen.bins][::-1]
    used = int(np.flatnonzero(magnitudes)[-1]) + 1
    width = 2.0 ** float(seen.exponent[0]) / seen.bins
    tried = range(used, levels - 1, -16)
    divergences = [_divergence(magnitudes, count, levels) for count in tried]
    assert float(high[0]) == pytest.approx(min(width * tried[int(np.argmin(divergences))], float(seen.high[0])))
    assert float(high[0]) < 0.9 * float(seen.high[0]), "nothing was clipped of a long tail"


@pytest.mark.parametrize("family", ["normal", "laplace", "outliers", "relu", "shifted"])
@pytest.mark.parametrize("format", ["int8", "int4", "uint8", "uint4"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_near_the_best_of_a_search_on_the_data(family: str, format: str, symmetric: bool) -> None:
    """The histogram knows values to half a bin; its choice is at most 5 % worse than the best of 100 on the data."""
    x = draw(family, 8, 20_000)
    seen = observe(x)

    def error(share: float) -> float:
        limit = np.float32(share) * np.abs(x).max()
        low, high = np.maximum(x.min(keepdims=True), -limit), np.minimum(x.max(keepdims=True), limit)
        if symmetric:
            scale = np.maximum(-low, high) / np.float32(integers(format).high)
            back = quantize_symmetric(x, format, scale=scale).dequantize()
        else:
            back = quantize_asymmetric(x, format, low=low, high=high).dequantize()
        return float(np.square(back - x).sum())

    low, high = choose_range(seen, "mse", format=format, symmetric=symmetric)
    chosen = float(max(-low[0], high[0])) / float(np.abs(x).max())
    assert error(chosen) <= 1.05 * min(error(share) for share in np.arange(1, 101) / 100)
    assert error(chosen) <= 1.001 * error(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_have_an_empty_range(method: str) -> None:
    low, high = choose_range(observe(np.zeros(10, np.float32)), method)
    assert (low[0], high[0]) == (0, pytest.approx(0, abs=1e-30))


@pytest.mark.parametrize("method", METHODS)
def test_ranges_stay_inside_what_was_seen(method: str) -> None:
    x = draw("outliers", 2, 5000) + np.float32(1)
    seen = seen_in(np.array_split(x, 5))
    low, high = choose_range(seen, method, format="int4", percentile=99)
    assert x.min() <= low[0] < high[0] <= x.max()
    assert low.dtype == high.dtype == np.float32


def test_what_cannot_be_observed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a batch that is not empty, got shape \(0, 3\)"):
        observe(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="expected finite values, got NaN or infinity"):
        observe(f32([1, np.nan]))
    seen = observe(np.ones((2, 3), np.float32), axis=1)
    with pytest.raises(ValueError, match="expected 3 channels along axis 1 as before, got 4"):
        observe(np.ones((2, 4), np.float32), seen)
    with pytest.raises(ValueError, match=r"expected a method among minmax, .*, got 'max'"):
        choose_range(seen, "max")
    with pytest.raises(ValueError, match="expected a percentile above 0 and at most 100, got 0"):
        choose_range(seen, "percentile", percentile=0)
    with pytest.raises(ValueError, match="expected an integer format"):
        choose_range(seen, "mse", format="nf4")


def test_the_pipeline_reports_its_four_steps() -> None:
    batches = [draw("outliers", seed, 4000).reshape(-1, 8) for seed in range(6)]
    reports = {method: post_training(iter(batches[:5]), batches[5], method=method, format="int4") for method in METHODS}
    best = reports["mse"]
    assert best.statistics.batches == 5
    assert best.quantized.format == "int4"
    assert best.comparison.relative_rmse < 0.6 * reports["minmax"].comparison.relative_rmse  # 0.39 measured
    assert best.clipped == pytest.approx(float((np.abs(batches[5]) > best.high[0]).mean()))
    assert reports["minmax"].clipped <= 1e-3
    assert str(best).startswith("mse: 5 batches from ")
    assert "clipped" in str(best)
    assert (best.quantized.shape, best.method) == (batches[5].shape, "mse")


def test_the_pipeline_with_channels_and_zero_points() -> None:
    scales = np.float32(10) ** np.arange(-2, 2, dtype=np.float32)
    batches = [(draw("shifted", seed, 400).reshape(-1, 4)) * scales for seed in range(3)]
    by_channel = post_training(batches[:2], batches[2], granularity="channel", symmetric=False)
    by_tensor = post_training(batches[:2], batches[2], symmetric=False)
    assert by_channel.quantized.scales().shape == (1, 4)
    relative = [np.abs(r.quantized.dequantize() / batches[2] - 1).max() for r in (by_channel, by_tensor)]
    assert relative[0] < 0.01 < 0.5 < relative[1]
    unsigned = post_training(batches[:2], batches[2], format="uint8")
    assert unsigned.comparison.relative_rmse < 0.02


def test_the_pipeline_refuses_nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="expected a batch or more to calibrate on, got none"):
        post_training([], np.ones(3, np.float32))
    with pytest.raises(ValueError, match="expected a granularity among tensor, channel, got 'row'"):
        post_training([np.ones(3)], np.ones(3, np.float32), granularity="row")
