"""Float32 arithmetic that gives the same bits in NumPy, in CuPy and in the CUDA kernels.

CUDA sources are compiled with ``-ftz=true``, so a subnormal result is zero there; here `flush` says so. Sums follow
one written tree (`mean_over_tokens`), products are never contracted to an FMA, and division is correctly rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # a NumPy or a CuPy array
Namespace = Any  # the module numpy or the module cupy

FLOAT32_TINY = np.float32(np.finfo(np.float32).tiny)
_FLOATS = ("float16", "bfloat16", "float32", "float64")
SUM_CHUNK = 128  # tokens folded in halves before the chunks are added up


def flush(x: Array, xp: Namespace) -> Array:
    """Replace float32 subnormals by zero, as ``-ftz=true`` does on a GPU."""
    return xp.where(xp.abs(x) < FLOAT32_TINY, np.float32(0), x)


def check_floats(x: Array) -> None:
    """Refuse what is not float16, bfloat16, float32 or float64.

    Raises
    ------
    TypeError
        If the dtype is another.
    """
    if x.dtype.name not in _FLOATS:
        raise TypeError(f"expected an array of {', '.join(_FLOATS)}, got {x.dtype.name}: convert it with .astype")


def read_finite(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Read floats as float32: values with 0 for what is not finite there (and for subnormals), and where that was.

    Raises
    ------
    TypeError
        If the dtype is another than those of `check_floats`.
    """
    check_floats(x)
    with np.errstate(over="ignore"):
        values = x.astype(np.float32)
    finite = xp.isfinite(values)
    return flush(xp.where(finite, values, np.float32(0)), xp), ~finite


def load_float32(x: Array, xp: Namespace) -> tuple[Array, Array]:
    """Read floats as `read_finite` does, and mark the rows (...) of x (..., D) that held something not finite."""
    values, bad = read_finite(x, xp)
    return values, bad.any(axis=-1)


def _fold(x: Array, xp: Namespace) -> Array:
    """Sum over axis -2, a power of two long, by adding its second half to its first until one is left."""
    while x.shape[-2] > 1:
        half = x.shape[-2] // 2
        x = flush(x[..., :half, :] + x[..., half:, :], xp)
    return x[..., 0, :]


def _pad_tokens(x: Array, length: int, xp: Namespace) -> Array:
    missing = length - x.shape[-2]
    return xp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)]) if missing else x


def mean_over_tokens(x: Array, xp: Namespace) -> Array:
    """Mean over the sequence by the written summation tree.

    Chunks of 128 tokens, the last one padded with zeros, are each folded in halves (token i + token i + 64, then
    + 32, …); the chunk sums, padded with zeros to a power of two, are folded in the same way; the total is divided
    by the length.

    Parameters
    ----------
    x : array (B, H, S, D), float32
        Finite values.
    xp : module
        numpy or cupy.

    Returns
    -------
    array (B, H, D), float32
        The mean; it may overflow to infinity, which the caller marks.
    """
    *lead, length, width = x.shape
    chunks = -(-length // SUM_CHUNK)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = _fold(_pad_tokens(x, chunks * SUM_CHUNK, xp).reshape(*lead, chunks, SUM_CHUNK, width), xp)
        total = _fold(_pad_tokens(sums, 1 << (chunks - 1).bit_length(), xp), xp)
        return flush(total / np.float32(length), xp)


def scale_from_absmax(absmax: Array, largest: float, xp: Namespace) -> Array:
    """Turn absolute maxima into scales: absmax / largest, never subnormal, 1 where the maximum is 0."""
    scale = xp.maximum(absmax / np.float32(largest), FLOAT32_TINY)
    return xp.where(absmax == 0, np.float32(1), scale)


def round_to_codes(x: Array, scale: Array, largest: int, xp: Namespace) -> Array:
    """Quantise symmetrically: x · (1 / scale), half to even, clipped to ±largest, as int8."""
    codes = xp.rint(x * (np.float32(1) / scale))
    return xp.clip(codes, -largest, largest).astype(np.int8)


def power_of_two_scale(absmax: Array, xp: Namespace) -> Array:
    """Scale 2^(e - 14) for a maximum of binary exponent e: scaled values fill float16 and lose no bit."""
    exponent = xp.frexp(absmax)[1] - 1
    scale = xp.ldexp(xp.ones_like(absmax), xp.maximum(exponent - 14, -126))
    return xp.where(absmax == 0, np.float32(1), scale)


def dot_in_pairs(x: Array, y: Array, xp: Namespace) -> Array:
    """Sum x · y over the channels, neighbours first: as a warp's lanes add, so that the kernels get the same bits."""
    *lead, width = x.shape
    terms = xp.zeros((*lead, 1 << (width - 1).bit_length()), np.float32)
    terms[..., :width] = flush(x * y, xp)
    while terms.shape[-1] > 1:
        terms = flush(terms[..., ::2] + terms[..., 1::2], xp)
    return terms[..., 0]
