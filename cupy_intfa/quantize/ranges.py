"""From statistics to ranges: where to clip, so that what is inside gets finer steps.

Four of the five rules choose a threshold t for magnitudes; the range is then what was seen, cut at ±t. The histogram is
read on the host in float64, so that NumPy and CuPy statistics give the same ranges.

==================  ===================================================================================================
rule                range
==================  ===================================================================================================
`minmax`            everything seen
`moving_average`    the averaged extremes of batches (PyTorch's MovingAverageMinMaxObserver)
`percentile`        t is a percentile of the magnitudes
`entropy`           t where the magnitudes, quantised and spread out again, lose least information (Kullback-Leibler
                    divergence; S. Migacz, "8-bit inference with TensorRT", GTC 2017)
`mse`               the share of the whole range with the smallest squared error of quantised bins
==================  ===================================================================================================
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.formats import Integers, integers
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.quantize.observers import Statistics

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
_ENTROPY_STEP = 16  # bins between two thresholds that are tried: 0.8 % of 2048
_MSE_SHARES = np.arange(1, 101) / 100

Floats = NDArray[np.float64]


def choose_range(
    seen: Statistics,
    method: str = "minmax",
    *,
    format: str = "int8",
    symmetric: bool = True,
    percentile: float = 99.99,
) -> tuple[Array, Array]:
    """Choose a range for each channel.

    Parameters
    ----------
    seen : Statistics
        From `observe`.
    method : {"minmax", "moving_average", "percentile", "entropy", "mse"}
        Rule, see the module.
    format : str
        Integer format that the range is for: `entropy` and `mse` depend on it.
    symmetric : bool
        Whether the grid will be symmetric; `mse` depends on it.
    percentile : float
        Percentage of the magnitudes inside the range, above 0 and at most 100.

    Returns
    -------
    low : array (C,), float32
        Lower ends, of the statistics' library.
    high : array (C,), float32
        Upper ends. A symmetric scale is max(−low, high) / 127.

    Raises
    ------
    ValueError
        For an unknown method or format, or a percentile out of range.

    Examples
    --------
    >>> from cupy_intfa.quantize.observers import observe
    >>> seen = observe(np.linspace(-1, 3, 4001, dtype=np.float32))
    >>> [float(end[0]) for end in choose_range(seen)]
    [-1.0, 3.0]
    >>> [round(float(end[0]), 3) for end in choose_range(seen, "percentile", percentile=90)]
    [-1.0, 2.6...]
    """
    if method not in METHODS:
        raise ValueError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
    if not 0 < percentile <= 100:
        raise ValueError(f"expected a percentile above 0 and at most 100, got {percentile}")
    fmt = integers(format)
    if method == "minmax":
        return seen.low, seen.high
    if method == "moving_average":
        return seen.average_low, seen.average_high
    xp = namespace_of(seen.low)
    low, high, exponent, histogram = (
        x if isinstance(x, np.ndarray) else x.get() for x in (seen.low, seen.high, seen.exponent, seen.histogram)
    )
    limits = []
    for channel, counts in enumerate(histogram):
        width = 2.0 ** float(exponent[channel]) / seen.bins
        ends = float(low[channel]), float(high[channel])
        if method == "mse":
            limit = _mse_limit(counts, width, ends, fmt, symmetric)
        else:
            magnitudes = counts[seen.bins :] + counts[: seen.bins][::-1]
            used = int(np.flatnonzero(magnitudes)[-1]) + 1
            if method == "entropy":
                limit = width * _entropy_bins(magnitudes[:used], 2 ** (fmt.bits - 1))
            else:
                limit = width * _percentile_bins(magnitudes, percentile)
        limits.append(limit)
    limit32 = xp.asarray(np.array(limits, np.float32))
    return xp.maximum(seen.low, -limit32), xp.minimum(seen.high, limit32)


def _percentile_bins(magnitudes: NDArray[np.int64], percentile: float) -> float:
    """Count the bins that hold the percentage: their end is at most a bin above the percentile itself."""
    total = np.cumsum(magnitudes)
    return float(np.searchsorted(total, percentile / 100 * total[-1])) + 1


def _entropy_bins(magnitudes: NDArray[np.int64], levels: int) -> float:
    """Count the bins to keep: the number with the smallest divergence, the larger of equals."""
    best, kept = np.inf, len(magnitudes)
    for count in range(len(magnitudes), levels - 1, -_ENTROPY_STEP):
        divergence = _divergence(magnitudes, count, levels)
        if divergence < best:
            best, kept = divergence, count
    return float(kept)


def _divergence(magnitudes: NDArray[np.int64], count: int, levels: int) -> float:
    """Divergence of the first bins, with what lies beyond them in the last, from their quantised form.

    Quantised, the bins of a level share its count evenly among those that are not empty.
    """
    inside = magnitudes[:count].astype(np.float64)
    starts = np.arange(levels) * count // levels
    filled = inside > 0
    shares = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled, starts, dtype=np.int64), 1)
    quantised = np.repeat(shares, np.diff(np.append(starts, count))) * filled
    inside[-1] += magnitudes[count:].sum()
    kept = inside > 0
    if not quantised[kept].all() or not quantised.any():
        return np.inf  # a bin that occurs but has no quantised form
    p, q = inside[kept] / inside.sum(), quantised[kept] / quantised.sum()
    return float((p * np.log(p / q)).sum())


def _mse_limit(
    counts: NDArray[np.int64], width: float, ends: tuple[float, float], fmt: Integers, symmetric: bool
) -> float:
    """Try shares of the largest magnitude, for bins as if all of a bin were in its middle."""
    used = np.flatnonzero(counts)
    middle = (used - len(counts) // 2 + 0.5) * width
    weight, reach = counts[used].astype(np.float64), max(-ends[0], ends[1])
    if reach == 0:
        return 0.0
    errors = []
    for limit in _MSE_SHARES * reach:
        low, high = max(ends[0], -limit), min(ends[1], limit)
        if symmetric:
            step, low, high = limit / fmt.high, -limit if fmt.is_signed else 0.0, limit
        else:
            low, high = min(low, 0.0), max(high, 0.0)
            step = (high - low) / (2**fmt.bits - 1)
        # The zero point is an integer, so the grid is all whole multiples of the step.
        rounded = np.clip(np.rint(middle / step), np.rint(low / step), np.rint(high / step)) * step
        errors.append(float((weight * np.square(middle - rounded)).sum()))
    return float(_MSE_SHARES[int(np.argmin(errors))] * reach)
