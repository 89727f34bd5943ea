"""Floating-point operations with PTX's rounding: all directions, fused, subnormals flushed where ``.ftz`` says so.

Sums and products are made in float64 with their exact remainder, so that one rounding to float32 is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MODES = ("rn", "rz", "rm", "rp")
_NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)


def flush(x: Array) -> Array:
    """Replace float32 subnormals by zeros of their sign."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    subnormal = ((bits & np.uint32(0x7FFFFFFF)) - np.uint32(1)) < np.uint32(0x7FFFFF)
    if not subnormal.any():
        return x
    return np.where(subnormal, bits & np.uint32(0x80000000), bits).view(np.float32)


def canonical(x: Array) -> Array:
    """Replace every float32 NaN by the one that GPUs make, 0x7FFFFFFF."""
    return np.where(np.isnan(x), _NAN, x) if np.isnan(x).any() else x


def settle(x: Array) -> Array:
    """Make a float32 result what ``.ftz`` leaves of it: zeros for subnormals, one NaN for all."""
    magnitude = np.asarray(x, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
    odd = (magnitude - np.uint32(0x800000) > np.uint32(0x7F000000)) & (magnitude != 0)
    return canonical(flush(x)) if odd.any() else x


def _odd(total: Array, rest: Array) -> Array:
    """Round total + rest to odd in float64: rounding that once more to a narrower type is rounding the exact sum."""
    bits = np.ascontiguousarray(total).view(np.int64)
    inexact = (rest != 0) & (bits & 1 == 0) & np.isfinite(total)
    if not inexact.any():
        return total
    towards = np.where(rest > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, towards), total)


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """Add in float64: the rounded sum and its remainder, exactly."""
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def narrow(total: Array, rest: Array, mode: str, dtype: type[np.floating[Any]] = np.float32) -> Array:
    """Round an exact sum of two float64 to a narrower type.

    Parameters
    ----------
    total, rest : array
        What is rounded: total is their sum in float64.
    mode : {"rn", "rz", "rm", "rp"}
        To nearest even, towards zero, down, up.
    dtype : type
        float32 or float16.

    Returns
    -------
    array
        Of that type.

    Examples
    --------
    >>> narrow(np.array([1.0]), np.array([1e-30]), "rp")
    array([1.0000001], dtype=float32)
    """
    nearest = _odd(total, rest).astype(dtype)
    if mode == "rn":
        return nearest
    gap = (total - nearest.astype(np.float64)) + rest  # exact minus rounded: its sign is exact
    down, up = gap < 0, gap > 0
    if mode == "rz":
        down, up = down & (nearest > 0), up & (nearest < 0)
    low, high = np.nextafter(nearest, dtype(-np.inf)), np.nextafter(nearest, dtype(np.inf))
    if mode in ("rm", "rz"):
        nearest = np.where(down & np.isfinite(total), low, nearest)
    if mode in ("rp", "rz"):
        nearest = np.where(up & np.isfinite(total), high, nearest)
    return nearest


def add(x: Array, y: Array, mode: str) -> Array:
    """Add float32 with a rounding mode."""
    if mode == "rn":
        return np.add(x, y)
    return narrow(*_two_sum(x.astype(np.float64), y.astype(np.float64)), mode)


def multiply(x: Array, y: Array, mode: str) -> Array:
    """Multiply float32 with a rounding mode."""
    if mode == "rn":
        return np.multiply(x, y)
    product = x.astype(np.float64) * y.astype(np.float64)  # 48 bits: exact
    return narrow(product, np.zeros_like(product), mode)


def fused(x: Array, y: Array, z: Array, mode: str = "rn") -> Array:
    """Multiply and add float32 or float16 with one rounding."""
    product = x.astype(np.float64) * y.astype(np.float64)
    return narrow(*_two_sum(product, z.astype(np.float64)), mode, x.dtype.type)


def divide(x: Array, y: Array, mode: str) -> Array:
    """Divide float32; correctly rounded to nearest, other modes through the remainder."""
    if mode == "rn":
        return np.divide(x, y)
    quotient = x.astype(np.float64) / y.astype(np.float64)
    rest = x.astype(np.float64) - quotient * y.astype(np.float64)
    return narrow(quotient, np.sign(rest) * np.sign(y) * np.abs(quotient) * 2.0**-60, mode)


_ROUND: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integral(x: Array, mode: str) -> Array:
    """Round floats to integral values: ``rni``, ``rzi``, ``rmi``, ``rpi``."""
    return _ROUND[mode](x)
