"""Tensor maps of the simulator: what a tensor copy needs to know of an array, in the 128 bytes of the driver's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Array, Index

BYTES = 128
_MAGIC = b"intfaTMA"
_FORMAT = struct.Struct("<8sQ4B5I5Q5I")


@dataclass(frozen=True)
class TensorMap:
    """An array in global memory, and the boxes of it that are copied. Innermost axis first.

    Parameters
    ----------
    address : int
        Of the array.
    itemsize : int
        Bytes of an element.
    sizes : tuple of int
        Elements along each axis, 1 to 5 of them.
    strides : tuple of int
        Bytes from element to element; the first is ``itemsize``.
    box : tuple of int
        Elements of a box along each axis.
    swizzle : {0, 32, 64, 128}
        Bytes over which the 16-byte units of a box's rows are exchanged.

    Examples
    --------
    >>> tensor_map = TensorMap(1 << 44, 1, (128, 64), (1, 128), (128, 8), 128)
    >>> TensorMap.decode(tensor_map.encode()) == tensor_map
    True
    """

    address: int
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    def encode(self) -> bytes:
        """Write 128 bytes: an argument that a kernel takes as ``__grid_constant__`` structure."""
        rank = len(self.sizes)
        pad = (0,) * (5 - rank)
        return _FORMAT.pack(
            _MAGIC,
            self.address,
            rank,
            self.itemsize,
            self.swizzle,
            0,
            *self.sizes,
            *pad,
            *self.strides,
            *pad,
            *self.box,
            *pad,
        ).ljust(BYTES, b"\0")

    @staticmethod
    def decode(content: bytes) -> TensorMap:
        """Read what `encode` has written; PtxError for anything else."""
        magic, address, rank, itemsize, swizzle, _, *rest = _FORMAT.unpack(content[: _FORMAT.size])
        if magic != _MAGIC:
            raise PtxError("the argument of a tensor copy is no TensorMap of the simulator")
        sizes, strides, box = rest[:rank], rest[5 : 5 + rank], rest[10 : 10 + rank]
        return TensorMap(address, itemsize, tuple(sizes), tuple(strides), tuple(box), swizzle)

    @property
    def box_bytes(self) -> int:
        """Bytes of a box, those outside of the array included."""
        return self.itemsize * int(np.prod(self.box))

    def elements(self, corner: tuple[int, ...]) -> tuple[Index, Array]:
        """Give the address of each element of a box, innermost axis fastest, and whether it is in the array."""
        address, inside = np.full(1, self.address), np.ones(1, np.bool_)
        for start, count, size, stride in zip(corner, self.box, self.sizes, self.strides, strict=True):
            at = start + np.arange(count)
            address = (at[:, None] * stride + address[None]).ravel()
            inside = (((at >= 0) & (at < size))[:, None] & inside[None]).ravel()
        return address, inside


def swizzled(addresses: Index, span: int) -> Index:
    """Exchange the 16-byte units of rows of ``span`` bytes: address bits 4… take in the bits from 7 on.

    Parameters
    ----------
    addresses : array
        In shared memory.
    span : {0, 16, 32, 64, 128}
        Bytes of a row; 0 and 16 exchange nothing.

    Returns
    -------
    array
        Addresses.

    Examples
    --------
    >>> swizzled(np.array([0, 128, 256 + 16]), 128).tolist()
    [0, 144, 304]
    """
    units = max(span, 16) // 16
    return addresses ^ ((addresses >> 7) & (units - 1)) << 4
