"""Integers alone: products of codes, and how an accumulator becomes a code again without a float.

A product of two affine arrays is, with ``x ≈ (q − z)·s``, an integer times one float:

    Σ x·y ≈ s_x·s_y · Σ (q_x − z_x)(q_y − z_y) = s_x·s_y · (Σ q_x·q_y − z_y·Σ q_x − z_x·Σ q_y + n·z_x·z_y)

To store it with a scale s_out, the accumulator is multiplied by the real number s_x·s_y / s_out. Integer hardware has
it as ``multiplier · 2^-shift``; where the scales are powers of two, a shift alone does it.
"""

from __future__ import annotations

import math

import numpy as np

from cupy_intfa.quantize.arithmetic import Array, Namespace
from cupy_intfa.quantize.formats import INTEGERS, integers
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.quantize.tensor import QuantizedTensor


def integer_matmul(a: QuantizedTensor, b: QuantizedTensor) -> tuple[Array, Array]:
    """Multiply matrices of codes exactly.

    Parameters
    ----------
    a : QuantizedTensor (m, k)
        Integers, one scale for all or one per row, with or without zero point.
    b : QuantizedTensor (n, k)
        Likewise: rows of `b` are the columns of the product, as in a linear layer's weight.

    Returns
    -------
    accumulator : array (m, n), int32
        Σ (q_a − z_a)(q_b − z_b).
    scale : array (m or 1, n or 1), float32
        What one unit of it stands for.

    Raises
    ------
    ValueError
        If a granularity changes along k, a format is not of integers, an array has a float minimum, shapes do not
        agree, or k is so large that int32 could overflow.

    Examples
    --------
    >>> from cupy_intfa.quantize.affine import quantize_symmetric
    >>> a = quantize_symmetric(np.float32([[42 / 2048]]), scale=np.float32([[1 / 2048]]))
    >>> b = quantize_symmetric(np.float32([[38 / 4096]]), scale=np.float32([[1 / 4096]]))
    >>> accumulator, scale = integer_matmul(a, b)
    >>> int(accumulator[0, 0]), float(accumulator[0, 0] * scale[0, 0])
    (1596, 0.00019025...)
    """
    xp = namespace_of(a.values, b.values)
    for name, x in (("a", a), ("b", b)):
        if x.granularity.kind not in ("tensor", "row") or len(x.shape) != 2:
            raise ValueError(f"{name}: expected a matrix with one scale or one per row, got {x.granularity} {x.shape}")
        if x.format not in INTEGERS or x.minimum is not None:
            raise ValueError(f"{name}: expected integers with an integer zero point or none, got {x.format}")
    length = a.shape[1]
    if b.shape[1] != length:
        raise ValueError(f"expected rows of one length, got {a.shape} and {b.shape}")
    if length * _reach(a) * _reach(b) >= 2**31:
        raise ValueError(f"rows of {length} elements could overflow int32: split them")
    # float64 sums of integers below 2^53 are exact, and BLAS is fast.
    product = _centred(a, xp) @ _centred(b, xp).T
    return product.astype(np.int32), (a.scales() * b.scales().T).astype(np.float32)


def multiplier_of(ratio: float, bits: int = 31) -> tuple[int, int]:
    """Write a positive number as multiplier · 2^-shift.

    Parameters
    ----------
    ratio : float
        s_x·s_y / s_out, from 2^-31 up to 2^31.
    bits : int
        Bits of the multiplier, 1 to 31. One bit makes it a power of two, the one below.

    Returns
    -------
    multiplier : int
        In [2^(bits-1), 2^bits): relative error at most 2^-bits; of one bit 0 to 1/2.
    shift : int
        Negative to shift left.

    Raises
    ------
    ValueError
        If the ratio is out of range, or the bits.

    Examples
    --------
    >>> multiplier_of(0.75, 8), multiplier_of(1 / 2048, 1)
    ((192, 8), (1, 11))
    """
    if not 2.0**-31 <= ratio <= 2.0**31:
        raise ValueError(f"expected a ratio between 2^-31 and 2^31, got {ratio}")
    if not 1 <= bits <= 31:
        raise ValueError(f"expected 1 to 31 bits, got {bits}")
    fraction, exponent = math.frexp(ratio)
    if bits == 1:
        return 1, 1 - exponent
    multiplier = round(fraction * 2**bits)
    if multiplier == 2**bits:
        return multiplier // 2, bits - exponent - 1
    return multiplier, bits - exponent


def requantize(accumulator: Array, multiplier: int, shift: int, format: str = "int8", zero_point: int = 0) -> Array:
    """Scale integers by multiplier · 2^-shift, in integers.

    Parameters
    ----------
    accumulator : array, int32
        Sums of products.
    multiplier, shift : int
        From `multiplier_of`.
    format : str
        Integer format of the codes.
    zero_point : int
        Code of 0.

    Returns
    -------
    array, int8 or uint8
        Rounded half to even, then moved to the zero point, then clipped.

    Raises
    ------
    TypeError
        If the accumulator is not int32.
    ValueError
        For an unknown format.

    Examples
    --------
    >>> requantize(np.int32([1596, -20, 24, 99999]), 1, 4).tolist()
    [100, -1, 2, 127]
    """
    xp, fmt = namespace_of(accumulator), integers(format)
    if accumulator.dtype != np.int32:
        raise TypeError(f"expected an accumulator of int32, got {accumulator.dtype.name}")
    product = accumulator.astype(np.int64) * np.int64(multiplier)  # below 2^62
    if shift > 0:
        # Beyond 62 every bit is shifted out, and half of 2^62 is more than any product.
        places = min(shift, 62)
        whole = product >> np.int64(places)
        rest = product - (whole << np.int64(places))
        half = np.int64(1) << np.int64(places - 1)
        up = (rest > half) | ((rest == half) & ((whole & np.int64(1)) == 1))
        product = whole + up.astype(np.int64)
    elif shift < 0:
        limit = np.int64(2**40)  # far beyond any code, and shifting it by 22 does not overflow
        product = xp.clip(product, -limit, limit) << np.int64(min(-shift, 22))
    return xp.clip(product + np.int64(zero_point), fmt.low, fmt.high).astype(fmt.dtype)


def _centred(x: QuantizedTensor, xp: Namespace) -> Array:
    zero = np.int32(0) if x.zero_point is None else x.zero_point
    return (x.codes().astype(np.int32) - zero).astype(np.float64)


def _reach(x: QuantizedTensor) -> int:
    """Give the largest magnitude of code minus zero point."""
    fmt = INTEGERS[x.format]
    return fmt.high - fmt.low if x.zero_point is not None else max(-fmt.low, fmt.high)
