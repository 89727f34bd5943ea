"""SmoothQuant: move the outliers of activations into the weight, where they are cheap.

Dividing input channel j by d_j and multiplying column j of the weight by it changes nothing in floats. With
``d_j = max|x_j|^α / max|w_j|^(1−α)`` both sides share the difficulty (arXiv 2211.10438, equation 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import Granularity, namespace_of
from cupy_intfa.quantize.inputs import LinearInputs, check_layer
from cupy_intfa.quantize.tensor import QuantizedTensor


@dataclass(frozen=True, eq=False)
class ScaledWeight:
    """A quantised weight whose input channels were scaled: y ≈ (x / divisor) · weightᵀ.

    Parameters
    ----------
    weight : QuantizedTensor (N, K)
        Of the weight times the divisor.
    divisor : array (K,), float32
        What inputs are divided by; it can be folded into the layer before, often a normalisation.
    """

    weight: QuantizedTensor
    divisor: Array

    def dequantize(self) -> Array:
        """Give the weight that this stands for, (N, K) float32."""
        return self.weight.dequantize() / self.divisor


def smooth_quantize(
    weight: Array,
    inputs: LinearInputs,
    format: str = "int8",
    granularity: Granularity | str = "row",
    *,
    strength: float = 0.5,
) -> ScaledWeight:
    """Migrate difficulty from the inputs to the weight, and quantise the weight.

    Parameters
    ----------
    weight : array (N, K)
        Floats, outputs by inputs.
    inputs : LinearInputs
        Of the layer.
    format : str
        Integer format of the weight.
    granularity : Granularity or str
        Of its scales; one per output by default.
    strength : float
        α, from 0 (the weight gets even, the inputs keep what they have) to 1.

    Returns
    -------
    ScaledWeight
        The inputs, divided by its divisor, are quantised when they come.

    Raises
    ------
    ValueError
        If weight and inputs do not fit, the weight is not finite, or α is out of range.

    Examples
    --------
    >>> from cupy_intfa.quantize.inputs import observe_inputs
    >>> smooth_quantize(np.float32([[1, 4]]), observe_inputs(np.float32([[16, 1]]))).divisor.tolist()
    [4.0, 0.5]
    """
    xp = namespace_of(weight)
    check_layer(weight, inputs)
    if not 0 <= strength <= 1:
        raise ValueError(f"expected a strength from 0 to 1, got {strength}")
    heights = xp.abs(weight.astype(np.float64)).max(axis=0)
    divisor = xp.where(inputs.absmax > 0, inputs.absmax, 1) ** strength
    divisor = (divisor / xp.where(heights > 0, heights, 1) ** (1 - strength)).astype(np.float32)
    return ScaledWeight(quantize_symmetric(weight.astype(np.float32) * divisor, format, granularity), divisor)
