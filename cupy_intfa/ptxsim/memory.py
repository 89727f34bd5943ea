"""Global memory: arrays in one arena with gaps between them, so that an address tells its array."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cupy_intfa.ptxsim.errors import Fault
from cupy_intfa.ptxsim.lanes import Array, Index

GLOBAL = 1 << 44
"""Address of the first global byte."""
SHARED, LOCAL, PARAM = 1 << 40, 2 << 40, 3 << 40
"""Windows of generic addresses."""
WINDOW = (1 << 40) - 1
_GAP = 4096  # bytes between allocations that belong to nobody


@dataclass(frozen=True)
class Span:
    """A named range of addresses."""

    name: str
    start: int
    size: int
    writable: bool


class GlobalMemory:
    """What kernels of one device share.

    Examples
    --------
    >>> memory = GlobalMemory()
    >>> q = memory.allocate("q", np.arange(4, dtype=np.int32), writable=False)
    >>> memory.read(q + 4, 8).view(np.int32)
    array([1, 2], dtype=int32)
    """

    def __init__(self) -> None:
        self.bytes = np.zeros(1 << 16, np.uint8)
        self._spans: list[Span] = []
        self._starts: list[int] = []
        self._wholes: dict[int, Span] = {}
        self._end = _GAP

    def allocate(self, name: str, content: Array | int, *, writable: bool = True, fill: int = 0) -> int:
        """Make an array.

        Parameters
        ----------
        name : str
            What errors call it.
        content : array or int
            What it holds, or its size in bytes.
        writable : bool
            Whether kernels may write it.
        fill : int
            Byte that an array without content is full of.

        Returns
        -------
        int
            Its address, a multiple of 256.
        """
        size = content if isinstance(content, int) else content.nbytes
        offset = -(-self._end // 256) * 256
        self._end = offset + size + _GAP
        if self._end > len(self.bytes):
            grown = np.zeros(2 * self._end, np.uint8)
            grown[: len(self.bytes)] = self.bytes
            self.bytes = grown
        if isinstance(content, int):
            self.bytes[offset : offset + size] = fill
        else:
            self.bytes[offset : offset + size] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        self._wholes[GLOBAL + offset] = Span(name, GLOBAL + offset, size, writable)
        self._add(self._wholes[GLOBAL + offset])
        return GLOBAL + offset

    def divide(self, address: int, parts: Mapping[str, tuple[int, int]]) -> None:
        """Name parts of an allocation, each (offset, bytes): what lies between them is out of bounds from now on."""
        whole = self._wholes[address]
        kept = [span for span in self._spans if not whole.start <= span.start < whole.start + whole.size]
        kept += [Span(f"{name} of {whole.name}", address + at, n, whole.writable) for name, (at, n) in parts.items()]
        self._spans = sorted(kept, key=lambda span: span.start)
        self._starts = [span.start for span in self._spans]

    def _add(self, span: Span) -> None:
        at = bisect_right(self._starts, span.start)
        self._starts.insert(at, span.start)
        self._spans.insert(at, span)

    def read(self, address: int, size: int) -> Array:
        """Copy bytes."""
        return self.bytes[address - GLOBAL : address - GLOBAL + size].copy()

    def _span_of(self, address: int) -> Span | None:
        at = bisect_right(self._starts, address) - 1
        return self._spans[at] if at >= 0 else None

    def locate(self, addresses: Index, size: int, *, write: bool) -> Index:
        """Turn addresses into places in `bytes`; Fault where an access of ``size`` bytes has none."""
        low, high = int(addresses.min()), int(addresses.max())
        span = self._span_of(low)
        if span is None or high + size > span.start + span.size or (write and not span.writable):
            for i, address in enumerate(addresses.tolist()):
                self._check(i, address, size, write)
        if np.bitwise_or.reduce(addresses) & (size - 1):
            at = int(np.flatnonzero(addresses & (size - 1))[0])
            raise Fault(at, "alignment", f"{self._say(int(addresses[at]), size)}, no multiple of {size}")
        return addresses - GLOBAL

    def _check(self, index: int, address: int, size: int, write: bool) -> None:
        span = self._span_of(address)
        if span is None or address + size > span.start + span.size:
            raise Fault(index, "bounds", f"{'write' if write else 'read'} of {self._say(address, size)}")
        if write and not span.writable:
            raise Fault(index, "bounds", f"write of {self._say(address, size)}, which kernels only read")

    def _say(self, address: int, size: int) -> str:
        span = self._span_of(address)
        if span is None:
            return f"{size} bytes at {address:#x}, where there is no array"
        return f"{size} bytes at byte {address - span.start} of {span.name}, which has {span.size}"
