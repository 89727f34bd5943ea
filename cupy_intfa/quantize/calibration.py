"""Post-training quantisation in four steps: calibrate, choose parameters, quantise, evaluate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cupy_intfa.metrics import Comparison, compare
from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array, scale_from_absmax
from cupy_intfa.quantize.formats import integers
from cupy_intfa.quantize.granularity import Granularity, namespace_of
from cupy_intfa.quantize.observers import Statistics, observe
from cupy_intfa.quantize.ranges import choose_range
from cupy_intfa.quantize.tensor import QuantizedTensor

_AXES = {"tensor": None, "channel": -1}


@dataclass(frozen=True, eq=False)
class Report:
    """What the four steps gave.

    Attributes
    ----------
    statistics : Statistics
        1. Calibrate: what was seen.
    low, high : array (C,), float32
        2. Choose parameters: the ranges.
    quantized : QuantizedTensor
        3. Quantise: the held-out batch.
    comparison : Comparison
        4. Evaluate: what comes back of it, against the batch.
    clipped : float
        Share of the batch that lies outside the ranges.
    method : str
        How the ranges were chosen.
    """

    statistics: Statistics
    low: Array
    high: Array
    quantized: QuantizedTensor
    comparison: Comparison
    clipped: float
    method: str

    def __str__(self) -> str:
        """Give the report in three lines."""
        seen, low, high = self.statistics, float(self.low.min()), float(self.high.max())
        return (
            f"{self.method}: {seen.batches} batches from {float(seen.low.min()):.4g} to {float(seen.high.max()):.4g}; "
            f"{self.quantized.format} from {low:.4g} to {high:.4g}, {self.clipped:.3%} clipped\n{self.comparison}"
        )


def post_training(
    batches: Iterable[Array],
    held_out: Array,
    *,
    method: str = "minmax",
    format: str = "int8",
    granularity: str = "tensor",
    symmetric: bool = True,
    percentile: float = 99.99,
) -> Report:
    """Calibrate on batches, and quantise another one with what was learned.

    Parameters
    ----------
    batches : iterable of array
        Read once, one at a time; floats, all with the last axis of `held_out`.
    held_out : array
        What is quantised and evaluated.
    method : str
        How ranges are chosen, one of `cupy_intfa.quantize.ranges.METHODS`.
    format : str
        An integer format.
    granularity : {"tensor", "channel"}
        One range, or one for each index of the last axis.
    symmetric : bool
        Scale alone, or scale and integer zero point.
    percentile : float
        For that method.

    Returns
    -------
    Report
        Prints well.

    Raises
    ------
    ValueError
        Without a batch, for one that is empty or not finite, or an unknown choice.

    Examples
    --------
    >>> import numpy as np
    >>> draw = np.random.default_rng(0)
    >>> batches = (draw.standard_normal(1000, dtype=np.float32) for _ in range(10))
    >>> report = post_training(batches, draw.standard_normal(1000, dtype=np.float32), method="mse")
    >>> report.statistics.batches, report.quantized.format
    (10, 'int8')
    """
    xp, fmt = namespace_of(held_out), integers(format)
    if granularity not in _AXES:
        raise ValueError(f"expected a granularity among {', '.join(_AXES)}, got {granularity!r}")
    seen = None
    for batch in batches:
        seen = observe(batch, seen, axis=_AXES[granularity])
    if seen is None:
        raise ValueError("expected a batch or more to calibrate on, got none")
    low, high = choose_range(seen, method, format=format, symmetric=symmetric, percentile=percentile)
    shape = Granularity(granularity).scale_shape(held_out.shape)
    ends = low.reshape(shape), high.reshape(shape)
    if symmetric:
        absmax = xp.maximum(-ends[0], ends[1]) if fmt.is_signed else xp.maximum(ends[1], 0)
        scale = scale_from_absmax(absmax, fmt.high, xp)
        quantized = quantize_symmetric(held_out, format, granularity, scale=scale)
        ends = (-absmax if fmt.is_signed else 0 * absmax), absmax
    else:
        quantized = quantize_asymmetric(held_out, format, granularity, low=ends[0], high=ends[1])
    outside = (held_out < ends[0]) | (held_out > ends[1])
    return Report(
        statistics=seen,
        low=low,
        high=high,
        quantized=quantized,
        comparison=compare(quantized.dequantize(), held_out),
        clipped=float(outside.mean()),
        method=method,
    )
