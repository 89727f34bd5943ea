"""Shared memory: its bytes, where they are, and its shadow."""

from __future__ import annotations

import numpy as np

from cupy_intfa.ptxsim.errors import Fault
from cupy_intfa.ptxsim.knowledge import Knowledge
from cupy_intfa.ptxsim.lanes import Geometry, Index
from cupy_intfa.ptxsim.shadow import Shadow

BASE = 1024
"""Address of the first byte: a GPU keeps the first kilobyte of a block's shared memory to itself."""


class SharedMemory:
    """Shared memory of the blocks that run together.

    Parameters
    ----------
    geometry : Geometry
        The blocks.
    knowledge : Knowledge
        What orders accesses.
    size : int
        Bytes of a block.
    grain : int
        Bytes of the narrowest access of the kernel.
    """

    def __init__(self, geometry: Geometry, knowledge: Knowledge, size: int, grain: int) -> None:
        self.size = size
        self.pitch = -(-size // 16) * 16  # bytes from block to block
        self.bytes = np.full(geometry.blocks * self.pitch + 16, 0xA5, np.uint8)
        self.shadow = Shadow(geometry, knowledge, max(self.pitch, 16), grain)

    def locate(self, blocks: Index, addresses: Index, size: int) -> Index:
        """Turn addresses into places in `bytes`.

        Parameters
        ----------
        blocks, addresses : array (n,)
            Where, block by block.
        size : int
            Bytes of an access; its address must be a multiple of them.

        Returns
        -------
        array (n,)
            Places.

        Raises
        ------
        Fault
            Where an access has no bytes, or a crooked address.
        """
        start = addresses - BASE
        if int(start.min()) < 0 or int(start.max()) + size > self.size:
            at = int(np.flatnonzero((start < 0) | (start + size > self.size))[0])
            raise Fault(at, "bounds", f"{size} bytes at byte {start[at]} of shared memory, which has {self.size}")
        if np.bitwise_or.reduce(addresses) & (size - 1):
            at = int(np.flatnonzero(addresses & (size - 1))[0])
            raise Fault(at, "alignment", f"{size} bytes at byte {start[at]} of shared memory, no multiple of {size}")
        return blocks * self.pitch + start
