"""Matrix descriptors of wgmma: where a tile lies in shared memory, unit by unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.ptxsim.errors import Fault
from cupy_intfa.ptxsim.lanes import Index
from cupy_intfa.ptxsim.tensor_map import swizzled

_SPANS = {0: 16, 1: 128, 2: 64, 3: 32}  # swizzle field of a descriptor → bytes of a row


@dataclass(frozen=True)
class Descriptor:
    """A tile in shared memory: start, leading and stride offsets in bytes, bytes of a swizzled row."""

    start: int
    leading: int
    stride: int
    span: int

    @staticmethod
    def decode(bits: int) -> Descriptor:
        """Read the 64 bits of a matrix descriptor.

        Parameters
        ----------
        bits : int
            Start in bits 0-13, leading offset in 16-29, stride in 32-45, each in units of 16 bytes; base offset in
            49-51; swizzle in 62-63.

        Returns
        -------
        Descriptor
            Decoded.

        Raises
        ------
        Fault
            For a start in the middle of a swizzle pattern, or a base offset, which would say so and is not modelled.

        Examples
        --------
        >>> Descriptor.decode(1 << 62 | 64 << 32 | 1 << 16 | 0x80)
        Descriptor(start=2048, leading=16, stride=1024, span=128)
        """
        start, leading, stride = (16 * (bits >> at & 0x3FFF) for at in (0, 16, 32))
        span = _SPANS[bits >> 62 & 3]
        if bits >> 49 & 7 or (span > 16 and start % (8 * span) >= span):
            what = f"a tile of wgmma at address {start} starts inside of a swizzle pattern of {8 * span} bytes"
            raise Fault(0, "alignment", what)
        return Descriptor(start, leading, stride, span)

    def units(self, rows: int, depth: int, *, transposed: bool) -> Index:
        """Give the address of each 16 bytes of a tile.

        Parameters
        ----------
        rows, depth : int
            Rows, and bytes of a row; ``transposed``: bytes of a row, and rows, of the tile as it is stored.
        transposed : bool
            Whether the other dimension than the depth is contiguous.

        Returns
        -------
        array (rows, units) or (depth, units)
            Addresses, row by row as stored.
        """
        if transposed:  # depth rows of `rows` bytes, cut into columns as wide as the span
            row, byte = np.arange(depth)[:, None], 16 * np.arange(rows // 16)[None]
            if self.span == 16:
                at = self.start + row % 8 * 16 + row // 8 * self.leading + byte // 16 * self.stride
            else:
                at = self.start + row % 8 * self.span + row // 8 * self.stride
                at = at + byte // self.span * self.leading + byte % self.span
        else:
            row, byte = np.arange(rows)[:, None], 16 * np.arange(depth // 16)[None]
            step = byte // 16 * self.leading if self.span == 16 else byte
            at = self.start + row // 8 * self.stride + row % 8 * self.span + step
        return swizzled(at, self.span)
