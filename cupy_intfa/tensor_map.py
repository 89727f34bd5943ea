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
def tensor_map(
    address: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> np.void:
    """Describe an array of which boxes are copied to shared memory, swizzled. The innermost axis comes first.

    Parameters
    ----------
    address : int
        Of the array in device memory, a multiple of 16.
    itemsize : int
        1 or 2 bytes per element.
    shape : tuple of int
        Of the array, 2 to 5 axes.
    strides : tuple of int
        Elements from one to the next along each axis: 1, then multiples of 16 bytes.
    box : tuple of int
        Shape of a box; 32, 64 or 128 bytes along the first axis, and swizzled over as many. What lies outside the array
        is filled with 0.

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
    u64, u32, rank = ctypes.c_uint64, ctypes.c_uint32, len(shape)
    status = _encode()(
        ctypes.addressof(raw) + start,
        _TYPES[itemsize],
        rank,
        address,
        (u64 * rank)(*shape),
        (u64 * (rank - 1))(*(stride * itemsize for stride in strides[1:])),
        (u32 * rank)(*box),
        (u32 * rank)(*[1] * rank),
        0,
        _SWIZZLES[box[0] * itemsize],
        _L2_PROMOTION_256,
        0,
    )
    if status:
        raise RuntimeError(
            f"cuTensorMapEncodeTiled has returned CUresult {status} for an array of shape {shape}, strides {strides}, "
            f"{itemsize} bytes an element at {address:#x}, and boxes of {box}"
        )
    packed = bytes(raw)[start : start + _MAP_BYTES]
    scalar: np.void = np.frombuffer(packed, np.dtype((np.void, _MAP_BYTES)))[0]
    return scalar
