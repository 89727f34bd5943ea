"""Threads as lanes of arrays: where each belongs, and which of them take part in an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
WARP = 32
WARPGROUP = 128


@dataclass(frozen=True)
class Geometry:
    """The threads of some blocks of a launch, side by side: lane = block · threads + thread.

    Parameters
    ----------
    grid, block : tuple of int
        Blocks of the whole grid and threads of a block, three numbers each.
    first, blocks : int
        First of the blocks that run together, and how many do.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    first: int
    blocks: int

    @cached_property
    def threads(self) -> int:
        """Threads of a block."""
        return prod(self.block)

    @cached_property
    def count(self) -> int:
        """Lanes."""
        return self.threads * self.blocks

    @cached_property
    def thread(self) -> Index:
        """Thread of each lane in its block."""
        return np.tile(np.arange(self.threads), self.blocks)

    @cached_property
    def slot(self) -> Index:
        """Which of the blocks that run together each lane is of."""
        return np.repeat(np.arange(self.blocks), self.threads)

    @cached_property
    def warp(self) -> Index:
        """Warp of each lane, all blocks counted."""
        return self.slot * self.warps + self.thread // WARP

    @cached_property
    def warps(self) -> int:
        """Warps of a block."""
        return -(-self.threads // WARP)

    def special(self) -> dict[str, Array]:
        """Give the special registers by name."""
        block, (x, y, _) = self.slot + self.first, self.grid
        places = {
            "tid": _split(self.thread, self.block),
            "ctaid": (block % x, block // x % y, block // (x * y)),
            "ntid": tuple(np.full(self.count, n) for n in self.block),
            "nctaid": tuple(np.full(self.count, n) for n in self.grid),
        }
        found = {
            f"%{name}.{axis}": value for name, three in places.items() for axis, value in zip("xyz", three, strict=True)
        }
        lane = self.thread % WARP
        found |= {"%laneid": lane, "%warpid": self.thread // WARP, "%nwarpid": np.full(self.count, self.warps)}
        one = np.ones(self.count, np.uint64)
        found |= {"%lanemask_eq": one << lane.astype(np.uint64), "%lanemask_lt": (one << lane.astype(np.uint64)) - one}
        return {name: value.astype(np.uint32) for name, value in found.items()}

    def name(self, lane: int) -> str:
        """Say where a lane is."""
        block, thread = int(self.slot[lane]) + self.first, int(self.thread[lane])
        return f"block {block}, thread {thread} (warp {thread // WARP}, lane {thread % WARP})"


def _split(number: Index, sizes: tuple[int, int, int]) -> tuple[Index, Index, Index]:
    return number % sizes[0], number // sizes[0] % sizes[1], number // (sizes[0] * sizes[1])


class Active:
    """The lanes that take part in an instruction.

    Parameters
    ----------
    lanes : array (n,)
        Their numbers, in order.
    count : int
        All lanes that there are.
    """

    __slots__ = ("full", "lanes", "mask")

    def __init__(self, lanes: Index, count: int) -> None:
        self.lanes = lanes
        self.full = len(lanes) == count
        self.mask: npt.NDArray[np.bool_] | None = None
        if not self.full:
            self.mask = np.zeros(count, np.bool_)
            self.mask[lanes] = True

    def of(self, values: Array) -> Array:
        """Take these lanes' part of values of all lanes."""
        return values if self.full else values[self.lanes]
