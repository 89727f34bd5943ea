"""Launch the format kernels on CuPy arrays: pack and unpack codes, quantise to a codebook of 4 bits and come back."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from cupy_intfa.kernels import load_kernel
from cupy_intfa.launch import OUT_DTYPES, by_value
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.formats import codebook

GROUP = 64  # kGroup and kBuckets in kernels_cu/intfa/formats_table.cuh
_BUCKETS = 34
_ENCODINGS = {"twos_complement": 0, "offset": 1, "unsigned": 2}  # enum Encoding in kernels_cu/intfa/formats_config.cuh
_THREADS = 256


def pack(codes: Array, bits: int, encoding: str) -> Array:
    """Pack codes of 4 or 2 bits along the last axis, as `pack_codes` does."""
    import cupy

    *lead, length = codes.shape
    packed = cupy.empty((*lead, -(-length * bits // 8)), np.uint8)
    _recode("formats_pack", cupy.ascontiguousarray(codes), packed, length, bits, encoding, packed.size)
    return packed


def unpack(packed: Array, bits: int, length: int, encoding: str) -> Array:
    """Unpack codes of 4 or 2 bits along the last axis, as `unpack_codes` does."""
    import cupy

    codes = cupy.empty((*packed.shape[:-1], length), np.uint8 if encoding == "unsigned" else np.int8)
    _recode("formats_unpack", cupy.ascontiguousarray(packed), codes, length, bits, encoding, codes.size)
    return codes


def _recode(source: str, given: Array, made: Array, length: int, bits: int, encoding: str, singles: int) -> None:
    if not made.size:
        return
    vector = length % 16 == 0 and given.data.ptr % 16 == 0
    rows = given.size // given.shape[-1]
    units = -(-rows * length // 64) if vector else singles
    defines = (f"BITS={bits}", f"ENCODING={_ENCODINGS[encoding]}", f"VECTOR={int(vector)}")
    kernel = load_kernel(source, defines, given.device.id)
    kernel((-(-units // _THREADS),), (_THREADS,), (given, made, np.int64(rows), np.int64(length)))


def encode(x: Array, format: str) -> tuple[Array, Array]:
    """Quantise to a codebook of 4 bits in blocks of 64.

    Parameters
    ----------
    x : cupy.ndarray
        float16, bfloat16, float32 or float64, any shape.
    format : {"nf4"}
        The codebook.

    Returns
    -------
    packed : cupy.ndarray (ceil(x.size / 2),), uint8
        Codes in C order, the first in the lower half of a byte.
    scale : cupy.ndarray (ceil(x.size / 64),), float32
        As `quantize_blockwise` makes them.
    """
    import cupy

    x = x.astype(np.float32) if x.dtype == np.float64 else x
    flat = _aligned(cupy.ascontiguousarray(x).reshape(-1))
    packed = cupy.empty(-(-x.size // 2), np.uint8)
    scale = cupy.empty(-(-x.size // GROUP), np.float32)
    _convert("formats_encode", format, flat.dtype, x.size, flat, packed, scale)
    return packed, scale


def decode(packed: Array, scale: Array, format: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Give levels times scales, rounded to a dtype.

    Parameters
    ----------
    packed, scale : cupy.ndarray
        From `encode`.
    format : {"nf4"}
        The codebook.
    shape : tuple of int
        Of the array.
    dtype : dtype
        float16, bfloat16 or float32.

    Returns
    -------
    cupy.ndarray (shape)
        Of that dtype.
    """
    import cupy

    x = cupy.empty(shape, dtype)
    _convert("formats_decode", format, x.dtype, x.size, _aligned(packed), cupy.ascontiguousarray(scale), x)
    return x


def _convert(source: str, format: str, dtype: Any, count: int, *arrays: Array) -> None:
    if count:
        kernel = load_kernel(source, (f"DTYPE={OUT_DTYPES[dtype.name]}",), arrays[0].device.id)
        per_thread = 32 if source == "formats_encode" and dtype.itemsize == 2 else 16
        grid = -(-count // (per_thread * _THREADS))
        kernel((grid,), (_THREADS,), (*arrays, by_value(_table(format)), np.int64(count)))


def _aligned(x: Array) -> Array:
    """Copy what does not begin at a multiple of 16 bytes."""
    return x if x.data.ptr % 16 == 0 else x.copy()


@cache
def _table(format: str) -> bytes:
    """Make the bytes of Table in kernels_cu/intfa/formats_table.cuh."""
    book = codebook(format)
    edges = np.arange(_BUCKETS + 1, dtype=np.float64) / 16 - 17 / 16
    below = np.searchsorted(book.cuts, edges)  # cuts below each edge, one at it not counted
    cuts = np.empty(_BUCKETS, np.float32)
    for bucket, (first, last) in enumerate(pairwise(below)):
        cuts[bucket] = book.cuts[first] if last > first else np.inf
    zeros = book.encode(np.zeros(1, np.float32), np).astype(np.uint32) * np.uint32(0x11111111)
    fields = (cuts, below[:-1].astype(np.uint32), book.levels, zeros)
    return b"".join(field.tobytes() for field in fields)
