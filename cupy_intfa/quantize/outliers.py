"""LLM.int8(): a few loud input channels in float16, all others in INT8.

Transformers have input channels whose values are tens of times larger than the others', always the same ones. With one
scale per token they leave the rest a few steps. Taking them out (arXiv 2208.07339, section 3.2) costs little: they are
few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.quantize.inputs import LinearInputs, check_layer
from cupy_intfa.quantize.tensor import QuantizedTensor

THRESHOLD = 6.0  # the paper's
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, eq=False)
class DecomposedWeight:
    """A weight in two parts; `cupy_intfa.linear.DecomposedLinear` multiplies by it.

    Parameters
    ----------
    weight : QuantizedTensor (N, K)
        INT8 with a scale per output; 0 in the columns of outliers.
    columns : array (C,), int64
        Which input channels are outliers.
    outliers : array (N, C), float16
        Their columns of the weight.
    """

    weight: QuantizedTensor
    columns: Array
    outliers: Array


def decompose(weight: Array, inputs: LinearInputs, *, threshold: float = THRESHOLD) -> DecomposedWeight:
    """Split the weight of a linear layer by the size of its inputs.

    Parameters
    ----------
    weight : array (N, K)
        Floats, outputs by inputs.
    inputs : LinearInputs
        Of the layer; K such that int32 cannot overflow, below 131 072.
    threshold : float
        Input channels that have reached this magnitude are outliers.

    Returns
    -------
    DecomposedWeight
        Its parts.

    Raises
    ------
    ValueError
        If weight and inputs do not fit, the weight is not finite, or beyond float16 where its inputs are outliers, or
        the threshold is not positive.

    Examples
    --------
    >>> from cupy_intfa.quantize.inputs import observe_inputs
    >>> inputs = observe_inputs(np.float32([[0.5, 7, -1], [1, -3, 6]]))
    >>> decompose(np.float32([[1, 2, 3]]), inputs).columns.tolist()
    [1, 2]
    """
    xp = namespace_of(weight)
    check_layer(weight, inputs)
    if not threshold > 0:
        raise ValueError(f"expected a threshold above 0, got {threshold}")
    columns = xp.flatnonzero(inputs.absmax >= threshold)
    quiet = weight.astype(np.float32)
    if bool((xp.abs(quiet[:, columns]) > _FLOAT16_MAX).any()):
        raise ValueError(f"expected weights of outlier channels within {_FLOAT16_MAX:.0f}, the largest float16")
    outliers = quiet[:, columns].astype(np.float16)
    quiet[:, columns] = 0
    return DecomposedWeight(quantize_symmetric(quiet, "int8", "row"), columns, outliers)
