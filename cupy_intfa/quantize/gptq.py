"""GPTQ: quantise a weight column by column, and let the columns to come make up for each one's error.

For a layer y = x·Wᵀ and H = the mean of xᵀx, the squared output error of a row w is (w − ŵ)·H·(w − ŵ)ᵀ. Once some
columns are fixed, the best values of the others are known in closed form. GPTQ (arXiv 2210.17323, algorithm 1) walks
through the columns, rounds one, and moves those behind it to their best values. All it needs of H is U, the upper
triangular factor of H⁻¹ = Uᵀ·U: after column j, with e = (w_j − ŵ_j) / U_jj, each later column k changes by −e·U_jk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array, Namespace
from cupy_intfa.quantize.formats import integers
from cupy_intfa.quantize.granularity import Granularity, namespace_of, spread_groups
from cupy_intfa.quantize.inputs import LinearInputs, check_layer
from cupy_intfa.quantize.tensor import QuantizedTensor, pack_tensor

_BLOCK = 128  # columns whose effect on all later ones is applied at once, as one matrix product


def gptq_quantize(
    weight: Array,
    inputs: LinearInputs,
    format: str = "int4",
    *,
    group: int = 128,
    act_order: bool = False,
    damping: float = 0.01,
) -> QuantizedTensor:
    """Quantise the weight of a linear layer for the inputs that it sees.

    Parameters
    ----------
    weight : array (N, K)
        Floats, outputs by inputs.
    inputs : LinearInputs
        Of the layer, over some thousands of rows.
    format : {"int8", "int4", "int2"}
        Signed integers, symmetric.
    group : int
        Neighbouring columns that share a scale.
    act_order : bool
        Walk through the columns by falling second moment of their input, not from left to right. The scales are then
        those of the weight as it was given; otherwise of what a group has become when it is reached.
    damping : float
        Share of the mean of H's diagonal that is added to it: inputs that hardly occur must not move much.

    Returns
    -------
    QuantizedTensor
        With scales per row and group. Codes depend on the linear algebra library where a value is near a tie.

    Raises
    ------
    ValueError
        If weight and inputs do not fit, the weight is not finite, the format is not signed, or the damping is not
        positive.

    Examples
    --------
    >>> from cupy_intfa.quantize.inputs import observe_inputs
    >>> draw = np.random.default_rng(0)
    >>> x = draw.standard_normal((500, 32)) @ draw.standard_normal((32, 32))  # correlated channels
    >>> weight, seen = draw.standard_normal((8, 32)), observe_inputs(x)
    >>> nearest = quantize_symmetric(weight, "int4", Granularity("group", 32))
    >>> better = gptq_quantize(weight, seen, group=32)
    >>> seen.output_error(weight, better.dequantize()) < 0.75 * seen.output_error(weight, nearest.dequantize())
    True
    """
    xp, fmt, spec = namespace_of(weight), integers(format), Granularity("group", group)
    check_layer(weight, inputs)
    if not fmt.is_signed:
        raise ValueError(f"expected a signed format, got {format!r}")
    if not damping > 0:
        raise ValueError(f"expected a damping above 0, got {damping}")
    columns = weight.shape[1]
    order = xp.argsort(-xp.diagonal(inputs.moment), kind="stable") if act_order else xp.arange(columns)
    rest = weight.astype(np.float64)[:, order]  # what is still to be quantised, in the order of the walk
    factor = _inverse_factor(inputs.moment[order][:, order], damping, xp)
    scale: Array = quantize_symmetric(weight, format, spec).scale
    steps = xp.broadcast_to(spread_groups(scale, spec, weight.shape, xp), weight.shape)[:, order].astype(np.float64)
    codes = xp.empty(weight.shape, np.int8)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = xp.empty((len(weight), stop - start))
        for j in range(start, stop):
            if not act_order and j % group == 0:
                now = _current(rest, errors, factor, start, j, min(j + group, columns), xp)
                scale[:, j // group] = quantize_symmetric(now, format, "row").scales()[:, 0]
                steps[:, j : j + group] = scale[:, j // group, None]
            code = xp.clip(xp.rint(rest[:, j] / steps[:, j]), -fmt.high, fmt.high)
            error = (rest[:, j] - code * steps[:, j]) / factor[j, j]
            rest[:, j + 1 : stop] -= error[:, None] * factor[j, j + 1 : stop]
            codes[:, j], errors[:, j - start] = code.astype(np.int8), error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    walked = xp.empty_like(codes)
    walked[:, order] = codes
    return pack_tensor(walked, scale, format, spec)


def _current(rest: Array, errors: Array, factor: Array, start: int, first: int, last: int, xp: Namespace) -> Array:
    """Give columns of `rest` as they are after the errors so far, also those behind the current block."""
    stop = start + errors.shape[1]
    inside = rest[:, first : min(last, stop)]
    if last <= stop:
        return inside
    behind = rest[:, stop:last] - errors[:, : first - start] @ factor[start:first, stop:last]
    return xp.concatenate((inside, behind), axis=1)


def _inverse_factor(moment: Array, damping: float, xp: Namespace) -> Array:
    """Find the upper triangular U with Uᵀ·U = H⁻¹, H damped.

    Backwards, H is L·Lᵀ; forwards again, L is an upper triangular R with H = R·Rᵀ, and U is its inverse. So H itself
    is never inverted. Channels that are always 0 get a diagonal of 1: their weights round to nearest.
    """
    damped = moment.copy()
    diagonal = xp.arange(len(moment))
    silent = xp.diagonal(moment) == 0
    damped[diagonal, diagonal] += damping * xp.diagonal(moment).mean() + silent
    backwards = xp.linalg.cholesky(damped[::-1, ::-1])
    return _linalg(xp).solve_triangular(backwards[::-1, ::-1], xp.eye(len(moment)), lower=False)


def _linalg(xp: Namespace) -> Any:
    if xp is np:
        import scipy.linalg  # a tenth of a second, which those who never come here need not wait

        return scipy.linalg
    import cupyx.scipy.linalg

    return cupyx.scipy.linalg
