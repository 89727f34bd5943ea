"""What calibration remembers of the batches it has seen: extremes, their moving average, and a histogram.

The histogram needs no second pass and does not depend on how the data was cut into batches. Its bins have a width that
is a power of two, ``2^exponent / bins``, and ends at ±2^exponent; when a batch goes beyond, neighbours are merged
until it fits. Merging pairs of bins is exact, because ⌊⌊x⌋ / 2⌋ = ⌊x / 2⌋.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.quantize.arithmetic import Array, Namespace, read_finite
from cupy_intfa.quantize.granularity import namespace_of

BINS = 2048
MOMENTUM = 0.01  # PyTorch's averaging constant
_SMALLEST_EXPONENT = -100  # bins / 2^exponent is then a normal float32


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen, for each of C channels (C is 1 per tensor).

    Parameters
    ----------
    low, high : array (C,), float32
        Extremes of everything seen.
    average_low, average_high : array (C,), float32
        Extremes of batches, averaged with exponentially falling weights.
    exponent : array (C,), int32
        The histogram ends at ±2^exponent, the first power of two above what was seen.
    histogram : array (C, 4 · bins), int64
        Counts. Of these, at least `bins` lie between 0 and the largest magnitude seen.
    axis : int or None
        Axis of the channels, None per tensor.
    batches : int
        How many were seen.
    """

    low: Array
    high: Array
    average_low: Array
    average_high: Array
    exponent: Array
    histogram: Array
    axis: int | None
    batches: int

    @property
    def bins(self) -> int:
        """Bins between 0 and 2^exponent: twice what was asked for, as half of them may lie beyond what was seen."""
        return int(self.histogram.shape[-1]) // 2


def observe(
    x: Array,
    seen: Statistics | None = None,
    *,
    axis: int | None = None,
    bins: int = BINS,
    momentum: float = MOMENTUM,
) -> Statistics:
    """Add a batch to the statistics; the batch is not kept.

    Parameters
    ----------
    x : array
        float16, bfloat16, float32 or float64, finite and not empty; NumPy or CuPy.
    seen : Statistics, optional
        Of the batches before.
    axis : int, optional
        Axis with one range per index; without it the tensor has one range. Of the first batch: later ones keep it.
    bins : int
        Least number of bins between 0 and the largest magnitude. Memory is 32 bytes times this per channel. Of the
        first batch.
    momentum : float
        Weight of a new batch in the moving average; the first batch has weight 1.

    Returns
    -------
    Statistics
        New ones; `seen` is unchanged.

    Raises
    ------
    TypeError
        If x is not an array of floats.
    ValueError
        If x is empty, not finite, or has another number of channels than before.

    Examples
    --------
    >>> seen = None
    >>> for batch in (np.float32([0.5, -1]), np.float32([3, 0])):
    ...     seen = observe(batch, seen)
    >>> seen.low.tolist(), seen.high.tolist(), seen.exponent.tolist(), int(seen.histogram.sum())
    ([-1.0], [3.0], [2], 4)
    """
    xp = namespace_of(x)
    if x.size == 0:
        raise ValueError(f"expected a batch that is not empty, got shape {x.shape}")
    values, bad = read_finite(x, xp)
    if bool(bad.any()):
        raise ValueError("expected finite values, got NaN or infinity: a range cannot be chosen for them")
    axis, bins = (axis, 2 * bins) if seen is None else (seen.axis, seen.bins)
    rows = values.reshape(1, -1) if axis is None else xp.moveaxis(values, axis, 0).reshape(x.shape[axis], -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    exponent = xp.maximum(xp.frexp(xp.maximum(-low, high))[1], _SMALLEST_EXPONENT).astype(np.int32)
    if seen is None:
        return Statistics(low, high, low, high, exponent, _count(rows, exponent, bins, xp), axis, 1)
    if len(low) != len(seen.low):
        raise ValueError(f"expected {len(seen.low)} channels along axis {axis} as before, got {len(low)}")
    exponent = xp.maximum(exponent, seen.exponent)
    weight = np.float32(momentum)
    return Statistics(
        low=xp.minimum(low, seen.low),
        high=xp.maximum(high, seen.high),
        average_low=seen.average_low + weight * (low - seen.average_low),
        average_high=seen.average_high + weight * (high - seen.average_high),
        exponent=exponent,
        histogram=_widen(seen.histogram, exponent - seen.exponent, xp) + _count(rows, exponent, bins, xp),
        axis=axis,
        batches=seen.batches + 1,
    )


def _count(rows: Array, exponent: Array, bins: int, xp: Namespace) -> Array:
    """Count the values of each row in 2 · bins bins between ±2^exponent; multiplying by a power of two is exact."""
    per_unit = xp.ldexp(xp.full(exponent.shape, bins, np.float32), -exponent)
    place = xp.floor(rows * per_unit[:, None]).astype(np.int64)
    # A negative product that a GPU flushes to 0 belongs below it, as on a CPU.
    place = xp.where((rows < 0) & (place == 0), -1, place) + bins
    place += 2 * bins * xp.arange(len(rows))[:, None]
    return xp.bincount(place.ravel(), minlength=2 * bins * len(rows)).reshape(len(rows), 2 * bins)


def _widen(histogram: Array, doublings: Array, xp: Namespace) -> Array:
    """Merge 2^doublings neighbours of each row, around its middle."""
    channels, width = histogram.shape
    place = (xp.arange(width)[None, :] - width // 2) >> xp.minimum(doublings, 62).astype(np.int64)[:, None]
    place += width // 2 + width * xp.arange(channels)[:, None]
    # Sums of counts are float64 there, exact up to 2^53.
    merged = xp.bincount(place.ravel(), weights=histogram.ravel(), minlength=channels * width)
    return merged.reshape(channels, width).astype(np.int64)
