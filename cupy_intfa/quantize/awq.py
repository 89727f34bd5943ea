"""AWQ: give the input channels that matter finer steps, and clip the rest.

Scaling column j of a weight up by d_j, and its inputs down, makes its rounding error smaller relative to it, as long as
the scale of its group does not grow. AWQ (arXiv 2306.00978) takes ``d_j = mean|x_j|^α`` and searches α; then, for each
row and group, how much of the largest weight to clip. Both searches measure the output error on the inputs seen, by
their second moments.
"""

from __future__ import annotations

import numpy as np

from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.formats import integers
from cupy_intfa.quantize.granularity import Granularity, namespace_of
from cupy_intfa.quantize.inputs import LinearInputs, check_layer
from cupy_intfa.quantize.smooth import ScaledWeight
from cupy_intfa.quantize.tensor import QuantizedTensor

_STRENGTHS = np.arange(20) / 20  # α that are tried
_SHARES = 1 - np.arange(1, 11) / 20  # of a group's largest weight: 0.95 to 0.5


def awq_quantize(
    weight: Array, inputs: LinearInputs, format: str = "int4", *, group: int = 128, clip: bool = True
) -> ScaledWeight:
    """Quantise the weight of a linear layer for the inputs that it sees.

    Parameters
    ----------
    weight : array (N, K)
        Floats, outputs by inputs.
    inputs : LinearInputs
        Of the layer.
    format : {"int8", "int4", "int2"}
        Signed integers, symmetric.
    group : int
        Neighbouring columns that share a scale.
    clip : bool
        Also search how much of the largest weights to clip.

    Returns
    -------
    ScaledWeight
        Of the α, 20 from 0 to 0.95, with the smallest output error; α = 0 is rounding to nearest.

    Raises
    ------
    ValueError
        If weight and inputs do not fit, the weight is not finite or the format is not signed.

    Examples
    --------
    >>> from cupy_intfa.quantize.inputs import observe_inputs
    >>> draw = np.random.default_rng(0)
    >>> x = draw.standard_normal((500, 32)) * np.float32([1] * 30 + [30, 50])  # two loud channels
    >>> weight, seen = draw.standard_normal((8, 32)).astype(np.float32), observe_inputs(x)
    >>> nearest = quantize_symmetric(weight, "int4", Granularity("group", 32))
    >>> better = awq_quantize(weight, seen, group=32)
    >>> seen.output_error(weight, better.dequantize()) < 0.5 * seen.output_error(weight, nearest.dequantize())
    True
    """
    xp, spec = namespace_of(weight), Granularity("group", group)
    check_layer(weight, inputs)
    if not integers(format).is_signed:
        raise ValueError(f"expected a signed format, got {format!r}")
    weight = weight.astype(np.float32)
    loudness = xp.where(inputs.mean_abs > 0, inputs.mean_abs, 1.0)

    def scaled(strength: float) -> ScaledWeight:
        """Scale the columns with one α and round to nearest."""
        divisor = loudness**strength
        divisor = (divisor / xp.sqrt(divisor.max() * divisor.min())).astype(np.float32)  # around 1
        return ScaledWeight(quantize_symmetric(weight * divisor, format, spec), divisor)

    tried = (scaled(float(strength)) for strength in _STRENGTHS)
    best = min(tried, key=lambda candidate: inputs.output_error(weight, candidate.dequantize()))
    return ScaledWeight(_clipped(weight * best.divisor, best, inputs), best.divisor) if clip else best


def _clipped(weight: Array, found: ScaledWeight, inputs: LinearInputs) -> QuantizedTensor:
    """Shrink the scale of each row and group where that lowers the error of the group's part of the output."""
    xp, whole = namespace_of(weight), found.weight
    group = whole.granularity.sizes[0]
    # Dividing the inputs divides their second moments by both channels' divisors.
    moment = inputs.moment / (found.divisor[:, None] * found.divisor)

    def errors(quantized: QuantizedTensor) -> Array:
        wrong = weight - quantized.dequantize().astype(np.float64)
        parts = []
        for start in range(0, weight.shape[1], group):
            part = wrong[:, start : start + group]
            parts.append(((part @ moment[start : start + group, start : start + group]) * part).sum(axis=1))
        return xp.stack(parts, axis=1)

    best_scale, best = whole.scale, errors(whole)
    for share in _SHARES.astype(np.float32):
        scale = whole.scale * share
        found_errors = errors(quantize_symmetric(weight, whole.format, whole.granularity, scale=scale))
        best_scale = xp.where(found_errors < best, scale, best_scale)
        best = xp.minimum(found_errors, best)
    return quantize_symmetric(weight, whole.format, whole.granularity, scale=best_scale)
