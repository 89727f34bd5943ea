"""Affine quantisation: integers that stand for equally spaced numbers.

Symmetric: ``x ≈ q · scale`` with ``scale = absmax / 127``. Asymmetric, in two forms of one idea:

=============  ==============================  ================================================================
form           x ≈                             the grid
=============  ==============================  ================================================================
`zero_point`   ``(q − zero_point) · scale``    0 is exactly one of its points, and the range is widened to hold
                                               it: ONNX, PyTorch, TFLite, and what integer kernels want
`minimum`      ``(q − lowest) · scale + min``  its ends are exactly the minimum and the maximum: min-max scaling
=============  ==============================  ================================================================

All arithmetic is float32, each operation rounded once, so that NumPy and CuPy give the same bits. ``x / scale`` is
divided, as ONNX defines it, where the attention kernels multiply by the reciprocal: the reciprocal of a scale above
2^126 would be subnormal, which a GPU reads as 0. Rounding is half to even.
"""

from __future__ import annotations

import numpy as np

from cupy_intfa.quantize.arithmetic import FLOAT32_TINY, Array, Namespace, flush, read_finite, scale_from_absmax
from cupy_intfa.quantize.formats import Integers, integers
from cupy_intfa.quantize.granularity import (
    Granularity,
    as_granularity,
    namespace_of,
    reduce_groups,
    spread_groups,
)
from cupy_intfa.quantize.tensor import QuantizedTensor, pack_tensor

_FLOAT32_MAX = np.float32(np.finfo(np.float32).max)
FORMS = ("zero_point", "minimum")


def quantize_symmetric(
    x: Array, format: str = "int8", granularity: Granularity | str = "tensor", *, scale: Array | None = None
) -> QuantizedTensor:
    """Quantise with 0 at code 0.

    Codes of signed formats stay within ±127 (±7, ±1): with −128 the range would be lopsided, and the negative of a code
    not a code. Unsigned formats are for what is never negative; negative values become 0.

    Parameters
    ----------
    x : array
        float16, bfloat16, float32 or float64, read as float32; never written.
    format : {"int8", "int4", "int2", "uint8", "uint4", "uint2"}
        Integers to use.
    granularity : Granularity or str
        Which elements share a scale.
    scale : array, float32, optional
        Scales from calibration, of shape ``granularity.scale_shape(x.shape)``; values beyond the range are clipped. One
        below 2^-126, the smallest normal number, counts as NaN. Without them absmax / 127, never subnormal, 1 where
        all is 0.

    Returns
    -------
    QuantizedTensor
        A group with a NaN or an infinity comes back as NaN.

    Raises
    ------
    TypeError
        If x is not an array of floats.
    ValueError
        For an unknown format or granularity, or scales of another shape.

    Examples
    --------
    >>> quantize_symmetric(np.float32([0.5, 0.3, -0.5])).codes().tolist()
    [127, 76, -127]
    """
    xp, fmt, spec = namespace_of(x), integers(format), as_granularity(granularity)
    values, bad = read_finite(x, xp)
    if scale is None:
        magnitude = xp.abs(values) if fmt.is_signed else xp.maximum(values, np.float32(0))
        scale = scale_from_absmax(reduce_groups(magnitude, spec, "max", xp), fmt.high, xp)
    scale = _poisoned(_checked(scale, spec, x), bad, spec, xp)
    codes = _divide(values, scale, spec, xp)
    return pack_tensor(_clipped(codes, -fmt.high if fmt.is_signed else 0, fmt, xp), scale, format, spec)


def quantize_asymmetric(
    x: Array,
    format: str = "uint8",
    granularity: Granularity | str = "tensor",
    *,
    form: str = "zero_point",
    low: Array | None = None,
    high: Array | None = None,
) -> QuantizedTensor:
    """Quantise a range that need not lie around 0.

    Parameters
    ----------
    x : array
        float16, bfloat16, float32 or float64, read as float32; never written.
    format : {"int8", "int4", "int2", "uint8", "uint4", "uint2"}
        Integers to use, all of them: −128 too.
    granularity : Granularity or str
        Which elements share a scale.
    form : {"zero_point", "minimum"}
        Integer zero point or float minimum, see the module.
    low, high : array, float32, optional
        Ranges from calibration, both or none, of shape ``granularity.scale_shape(x.shape)``; values beyond are clipped.

    Returns
    -------
    QuantizedTensor
        A group with a NaN or an infinity, or with a range above 3.4e38, comes back as NaN.

    Raises
    ------
    TypeError
        If x is not an array of floats.
    ValueError
        For an unknown format, granularity or form, or ranges of another shape.

    Examples
    --------
    >>> x = np.float32([0.1, 0.3, 0.5])
    >>> quantize_asymmetric(x, form="minimum").codes().tolist()  # 0.3 is a tie at 127.5: 127 in float64
    [0, 128, 255]
    >>> quantize_asymmetric(x).codes().tolist()  # from 0 on
    [51, 153, 255]
    """
    xp, fmt, spec = namespace_of(x), integers(format), as_granularity(granularity)
    if (low is None) != (high is None):
        raise ValueError("expected both ends of the range, low and high, or none, got one")
    values, bad = read_finite(x, xp)
    if low is None or high is None:
        low, high = (reduce_groups(values, spec, end, xp) for end in ("min", "max"))
    low, high = _checked(low, spec, x), _checked(high, spec, x)
    scale, zero_point, minimum = affine_parameters(low, high, format, form)
    scale = _poisoned(scale, bad, spec, xp)
    if minimum is not None:
        with np.errstate(over="ignore"):
            steps = flush(values - spread_groups(minimum, spec, x.shape, xp), xp)
        # An infinity over the infinite step of a range beyond float32 would be NaN, and no code.
        steps = xp.clip(steps, -_FLOAT32_MAX, _FLOAT32_MAX)
        codes = _divide(steps, scale, spec, xp) + np.float32(fmt.low)
    else:
        codes = _divide(values, scale, spec, xp) + spread_groups(zero_point, spec, x.shape, xp).astype(np.float32)
    codes = _clipped(codes, fmt.low, fmt, xp)
    return pack_tensor(codes, scale, format, spec, zero_point=zero_point, minimum=minimum)


def affine_parameters(
    low: Array, high: Array, format: str, form: str = "zero_point"
) -> tuple[Array, Array | None, Array | None]:
    """Choose scale and zero point, or scale and minimum, for ranges.

    Parameters
    ----------
    low, high : array, float32
        Ends of the ranges.
    format : str
        An integer format.
    form : {"zero_point", "minimum"}
        Which of the two.

    Returns
    -------
    scale : array, float32
        Range over number of steps, never subnormal; 1 where the range is empty, NaN where it leaves float32.
    zero_point : array, int32, or None
        For ``zero_point``: round(lowest code − low / scale), within the codes; the range is widened to hold 0 first.
    minimum : array, float32, or None
        For ``minimum``: `low`.

    Raises
    ------
    ValueError
        For an unknown format or form.

    Examples
    --------
    >>> scale, zero_point, _ = affine_parameters(np.float32([-1]), np.float32([3]), "uint8")
    >>> float(scale[0]), int(zero_point[0])
    (0.015686275..., 64)
    """
    xp, fmt = namespace_of(low, high), integers(format)
    if form not in FORMS:
        raise ValueError(f"expected a form among {', '.join(FORMS)}, got {form!r}")
    if form == "zero_point":
        low, high = xp.minimum(low, np.float32(0)), xp.maximum(high, np.float32(0))
    with np.errstate(over="ignore", invalid="ignore"):
        spread = flush(high - low, xp)
        scale = scale_from_absmax(spread, fmt.high - fmt.low, xp)
    scale = xp.where(xp.isfinite(spread), scale, np.float32(np.nan))
    if form == "minimum":
        return scale, None, low
    zero = xp.rint(np.float32(fmt.low) - low / xp.where(xp.isfinite(spread), scale, np.float32(1)))
    return scale, xp.clip(zero, fmt.low, fmt.high).astype(np.int32), None


def minimum_of(scale: Array, zero_point: Array, format: str) -> Array:
    """Turn an integer zero point into the float minimum of the same grid: (lowest code − zero point) · scale."""
    return (np.int32(integers(format).low) - zero_point).astype(np.float32) * scale


def zero_point_of(scale: Array, minimum: Array, format: str) -> Array:
    """Turn a float minimum into the nearest integer zero point: the grid moves by half a step at most.

    Raises
    ------
    ValueError
        If 0 lies more than half a step outside the range: no code can stand for it.
    """
    xp, fmt = namespace_of(scale, minimum), integers(format)
    zero = xp.rint(np.float32(fmt.low) - minimum / scale)
    if bool(((zero < fmt.low) | (zero > fmt.high)).any()):
        raise ValueError("expected ranges that hold 0, which an integer zero point needs; widen them to 0 first")
    return zero.astype(np.int32)


def _checked(scale: Array, spec: Granularity, x: Array) -> Array:
    namespace_of(x, scale)  # refuses a mixture
    expected = spec.scale_shape(x.shape)
    if scale.shape != expected:
        raise ValueError(
            f"expected parameters of shape {expected} for {spec.kind!r} of an array of shape {x.shape}, "
            f"got {scale.shape}"
        )
    return scale.astype(np.float32)


def _poisoned(scale: Array, bad: Array, spec: Granularity, xp: Namespace) -> Array:
    """Make NaN the scales of groups that hold something not finite, and scales that are none."""
    bad = reduce_groups(bad, spec, "any", xp) | ~(scale >= FLOAT32_TINY)
    return xp.where(bad, np.float32(np.nan), scale)


def _divide(x: Array, scale: Array, spec: Granularity, xp: Namespace) -> Array:
    """Count steps, rounded half to even, as float32; 0 where the scale is NaN."""
    step = xp.where(scale >= FLOAT32_TINY, scale, np.float32(np.inf))
    with np.errstate(over="ignore"):
        return xp.rint(x / spread_groups(step, spec, x.shape, xp))


def _clipped(codes: Array, low: int, fmt: Integers, xp: Namespace) -> Array:
    return xp.clip(codes, low, fmt.high).astype(fmt.dtype)
