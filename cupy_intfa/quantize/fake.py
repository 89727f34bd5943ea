"""Fake quantisation: floats that take only the values of a grid, with a gradient to train through it.

Rounding has the derivative 0 almost everywhere. The straight-through estimator takes it for 1 inside the range and 0
outside (arXiv 1308.3432); learned step size quantisation (LSQ, arXiv 1902.08153) also gives the scale a gradient:

    y = s · clip(round(x/s), low, high)      dy/dx = 1 inside, 0 outside
    dy/ds = round(x/s) − x/s inside, low or high outside, times 1 / √(number of elements · high)
"""

from __future__ import annotations

import math

import numpy as np

from cupy_intfa.quantize.arithmetic import FLOAT32_TINY, Array, Namespace, flush
from cupy_intfa.quantize.formats import Integers, integers
from cupy_intfa.quantize.granularity import Granularity, as_granularity, namespace_of, reduce_groups, spread_groups


def fake_quantize(x: Array, scale: Array, format: str = "int8", granularity: Granularity | str = "tensor") -> Array:
    """Round to the grid of a symmetric quantiser and come back.

    Parameters
    ----------
    x : array, float32
        Any shape.
    scale : array, float32
        Positive, of shape ``granularity.scale_shape(x.shape)``.
    format : str
        An integer format; signed ones without their most negative code.
    granularity : Granularity or str
        Which elements share a scale.

    Returns
    -------
    array, float32
        Bit for bit what `quantize_symmetric` with these scales gives back, below 1e38.

    Raises
    ------
    TypeError
        If an array is not float32.
    ValueError
        For an unknown format or granularity, or scales of another shape.

    Examples
    --------
    >>> fake_quantize(np.float32([0.26, -9, 3]), np.float32([0.5]), "int4").tolist()
    [0.5, -3.5, 3.0]
    """
    xp, fmt, spec = _prepared(x, scale, format, granularity)
    low, high = _ends(fmt)
    step = spread_groups(scale, spec, x.shape, xp)
    return flush(xp.clip(xp.rint(flush(x, xp) / step), low, high) * step, xp) + np.float32(0)


def fake_gradients(
    gradient: Array, x: Array, scale: Array, format: str = "int8", granularity: Granularity | str = "tensor"
) -> tuple[Array, Array]:
    """Pass a gradient through `fake_quantize`, to its input and to its scales.

    Parameters
    ----------
    gradient : array, float32
        With respect to the output.
    x : array, float32
        As `fake_quantize` had it.
    scale : array, float32
        Likewise.
    format : str
        Likewise.
    granularity : Granularity or str
        Likewise.

    Returns
    -------
    for_input : array, float32
        Straight through: the gradient where x / scale lies between the lowest and the highest code, 0 elsewhere.
    for_scale : array (scale.shape), float32
        LSQ: summed over each group and divided by √(elements of a full group · highest code), which makes the steps of
        scales and of weights comparable. The order of the sum is the library's.

    Raises
    ------
    TypeError
        If an array is not float32.
    ValueError
        For an unknown format or granularity, or scales of another shape.

    Examples
    --------
    >>> x, scale = np.float32([0.25, -9, 3]), np.float32([1])
    >>> for_input, for_scale = fake_gradients(np.float32([1, 2, 3]), x, scale, "int4")
    >>> for_input.tolist(), for_scale.tolist()
    ([1.0, 0.0, 3.0], [-3.1096...])
    """
    xp, fmt, spec = _prepared(x, scale, format, granularity)
    low, high = _ends(fmt)
    steps = x / spread_groups(scale, spec, x.shape, xp)
    inside = (steps >= low) & (steps <= high)
    slope = xp.where(inside, xp.rint(steps) - steps, xp.clip(steps, low, high))
    members = math.prod(spec.spans(x.shape))
    for_scale = reduce_groups(gradient * slope, spec, "sum", xp) * np.float32(1 / math.sqrt(members * fmt.high))
    return xp.where(inside, gradient, np.float32(0)), for_scale


def initial_scale(x: Array, format: str = "int8", granularity: Granularity | str = "tensor") -> Array:
    """Start the scales of LSQ: 2 · mean|x| / √highest code, never subnormal."""
    xp, fmt, spec = namespace_of(x), integers(format), as_granularity(granularity)
    members = reduce_groups(xp.ones_like(x), spec, "sum", xp)
    mean = reduce_groups(xp.abs(x), spec, "sum", xp) / members
    return xp.maximum(mean * np.float32(2 / math.sqrt(fmt.high)), FLOAT32_TINY)


def _ends(fmt: Integers) -> tuple[np.float32, np.float32]:
    return np.float32(-fmt.high if fmt.is_signed else 0), np.float32(fmt.high)


def _prepared(
    x: Array, scale: Array, format: str, granularity: Granularity | str
) -> tuple[Namespace, Integers, Granularity]:
    xp, fmt, spec = namespace_of(x, scale), integers(format), as_granularity(granularity)
    if x.dtype != np.float32 or scale.dtype != np.float32:
        raise TypeError(f"expected float32 arrays, got {x.dtype.name} with scales of {scale.dtype.name}")
    if scale.shape != spec.scale_shape(x.shape):
        raise ValueError(f"expected scales of shape {spec.scale_shape(x.shape)}, got {scale.shape}")
    return xp, fmt, spec
