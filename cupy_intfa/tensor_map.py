"""Tensor maps: what the tensor memory accelerator of Hopper needs to know of an array, made by the driver.

One call into libcuda by ctypes: `cuda.bindings` would be another dependency, and its objects are not aligned as the
driver asks.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import numpy as np

_TYPES = {1: 0, 2: 6}  # bytes per element → CUtensorMapDataType: UINT8 (there is no signed one), FLOAT16
_SWIZZLES = {32: 1, 64: 2, 128: 3}  # bytes of a row of the box → CUtensorMapSwizzle
_L2_PROMOTION_256 = 3
_MAP_BYTES = 128
_MAP_ALIGNMENT = 64  # cuda.h, cuTensorMapEncodeTiled


@cache
def _encode() -> Any:
    function = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
    function.argtypes = [pointer, ctypes.c_int, u32, *[pointer] * 5, *[ctypes.c_int] * 4]
    function.restype = ctypes.c_int
    return function


@lru_cache(maxsize=4096)
def tensor_map(address: int, itemsize: int, rows: int, columns: int, box_rows: int, box_columns: int) -> np.void:
    """Describe a matrix of which boxes are copied to shared memory, swizzled.

    Parameters
    ----------
    address : int
        Of the matrix in device memory, row-major without gaps, a multiple of 16.
    itemsize : int
        1 or 2 bytes per element.
    rows, columns : int
        Of the matrix; a row is a multiple of 16 bytes.
    box_rows, box_columns : int
        Of a box; 32, 64 or 128 bytes wide, and swizzled over as many. What lies outside the matrix is filled with 0.

    Returns
    -------
    numpy.void
        128 bytes, which CuPy passes to a kernel by value.

    Raises
    ------
    RuntimeError
        Where the driver refuses the map.
    """
    raw = (ctypes.c_uint8 * (_MAP_BYTES + _MAP_ALIGNMENT))()
    start = -ctypes.addressof(raw) % _MAP_ALIGNMENT
    u64, u32 = ctypes.c_uint64, ctypes.c_uint32
    status = _encode()(
        ctypes.addressof(raw) + start,
        _TYPES[itemsize],
        2,
        address,
        (u64 * 2)(columns, rows),
        (u64 * 1)(columns * itemsize),
        (u32 * 2)(box_columns, box_rows),
        (u32 * 2)(1, 1),
        0,
        _SWIZZLES[box_columns * itemsize],
        _L2_PROMOTION_256,
        0,
    )
    if status:
        raise RuntimeError(
            f"cuTensorMapEncodeTiled has returned CUresult {status} for a matrix of {rows} x {columns} elements of "
            f"{itemsize} bytes at {address:#x} and boxes of {box_rows} x {box_columns}"
        )
    packed = bytes(raw)[start : start + _MAP_BYTES]
    scalar: np.void = np.frombuffer(packed, np.dtype((np.void, _MAP_BYTES)))[0]
    return scalar
