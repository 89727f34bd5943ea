"""Barriers of the block, ``bar.sync`` and ``bar.arrive``: 16 of them, each complete when its threads have arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.knowledge import Times
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Arrival, Builder, Machine
from cupy_intfa.ptxsim.warp import build_warp_barrier


@dataclass
class _Barrier:
    """One barrier of one block, under way."""

    expected: int | None  # threads; None for all of the block that have not ended
    times: Times
    arrived: int = 0
    waiting: list[Index] = field(default_factory=list)


class Barriers:
    """The barriers of the blocks that run together."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._open: dict[tuple[int, int], _Barrier] = {}

    def arrive(self, active: Active, arrival: Arrival) -> list[Index]:
        """Let whole warps arrive; returns the lanes that need not wait any more, and those that never had to.

        Lanes that are in none of the returned arrays wait.
        """
        g, m = self._m.geometry, self._m
        if active.full and arrival.waits and arrival.count is None and not arrival.number.ndim and not self._open:
            m.knowledge.join_all()
            return [active.lanes]
        count = g.count
        numbers = active.of(np.broadcast_to(arrival.number, count))
        counts = None if arrival.count is None else active.of(np.broadcast_to(arrival.count, count))
        free: list[Index] = []
        for block, number in sorted({*zip(g.slot[active.lanes].tolist(), numbers.tolist(), strict=True)}):
            here = (g.slot[active.lanes] == block) & (numbers == number)
            lanes = active.lanes[here]
            if not 0 <= number < 16:
                m.fail(int(lanes[0]), "barrier", f"barrier {number}: there are 16")
            expected = None if counts is None else int(counts[here][0])
            if expected is not None and (expected % 32 or expected > -(-g.threads // 32) * 32):
                m.fail(int(lanes[0]), "barrier", f"barrier for {expected} threads in a block of {g.threads}")
            barrier = self._open.setdefault((block, number), _Barrier(expected, m.knowledge.empty()))
            if barrier.expected != expected:
                m.fail(
                    int(lanes[0]), "barrier", f"barrier {number} for {expected} threads, for others {barrier.expected}"
                )
            m.knowledge.release(block, g.thread[lanes], barrier.times)
            barrier.arrived += len(lanes)
            if arrival.waits:
                barrier.waiting.append(lanes)
            else:
                free.append(lanes)
            free += self._complete(block, number, int(lanes[0]))
        return free

    def _complete(self, block: int, number: int, lane: int) -> list[Index]:
        barrier, m = self._open[block, number], self._m
        needed = m.alive(block) if barrier.expected is None else barrier.expected
        if barrier.arrived < needed:
            return []
        if barrier.arrived > needed:
            m.fail(lane, "barrier", f"{barrier.arrived} threads at barrier {number}, which is for {needed}")
        for lanes in barrier.waiting:
            m.knowledge.acquire(block, m.geometry.thread[lanes], barrier.times)
        del self._open[block, number]
        return barrier.waiting

    def after_exit(self, block: int) -> list[Index]:
        """Look at the barriers of all of a block again, some of whose threads have ended; returns who goes on."""
        free: list[Index] = []
        for at, number in list(self._open):
            if at == block and self._open[at, number].expected is None and self._m.alive(block):
                free += self._complete(at, number, int(self._open[at, number].waiting[0][0]))
        return free

    def describe(self, block: int) -> str:
        """Say what the open barriers of a block wait for."""
        return "; ".join(
            f"barrier {number} has {barrier.arrived} of {barrier.expected or 'all'} threads"
            for (at, number), barrier in self._open.items()
            if at == block
        )


def _bar(m: Machine, ins: Instruction) -> Action:
    parts = tuple(part for part in ins.parts[1:] if part not in ("cta", "aligned"))
    if parts[0] == "warp":
        return build_warp_barrier(m, ins)
    if parts not in (("sync",), ("arrive",)):
        raise PtxError(f"not modelled: {ins.opcode}")
    number: Array = m.read(ins.operands[0], "u32")
    count = m.read(ins.operands[1], "u32") if len(ins.operands) > 1 else None
    return Arrival(number, count, parts == ("sync",))


BUILDERS: Mapping[str, Builder] = {"bar": _bar, "barrier": _bar}
"""Builders by the first part of the opcode."""
