"""The shadow of shared memory: who has written and read each place, and when.

An access is a race when the last access of its place is by another agent and none of the synchronisations that
`Knowledge` has seen orders the two. Of the reads of a place the last by each warp is kept, and whether one lane's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim.errors import Fault
from cupy_intfa.ptxsim.knowledge import Knowledge
from cupy_intfa.ptxsim.lanes import Array, Geometry, Index

_IN_FLIGHT = np.int32(1 << 30)  # time of a copy that has not landed: nobody knows of it
_MANY = -1  # reader that is more than one lane of a warp


@dataclass(frozen=True)
class _Accesses:
    """Accesses grain by grain: places, blocks, threads, and how many grains one access has."""

    flat: Index
    blocks: Index
    threads: Index
    per: int


class Shadow:
    """The shadow of the blocks that run together.

    Parameters
    ----------
    geometry : Geometry
        The blocks.
    knowledge : Knowledge
        What orders accesses.
    size : int
        Bytes of a block, rounded to 16.
    grain : int
        Bytes that count as one place: no access of the kernel is narrower.
    """

    def __init__(self, geometry: Geometry, knowledge: Knowledge, size: int, grain: int) -> None:
        self._geometry = geometry
        self._knowledge = knowledge
        self._size = size
        self._grain = grain
        places = max(geometry.blocks * size // grain, 1)
        columns = geometry.warps + -(-geometry.warps // 4)  # readers: warps, and the wgmma of warpgroups
        self._writer, self._written, self._write_at = (np.zeros(places, np.int32) for _ in range(3))
        self._reader, self._read, self._read_at = (np.zeros((places, columns), np.int32) for _ in range(3))
        self._updated: npt.NDArray[np.int32] | None = None  # times of atomics, by warp
        self._update_at = -1

    def _grains(self, places: Index, size: int) -> Index:
        """Places of accesses in the shadow, (accesses, grains of one)."""
        first = places // self._grain
        return first[:, None] if size <= self._grain else first[:, None] + np.arange(size // self._grain)

    def _accesses(self, lanes: Index, places: Index, size: int) -> _Accesses:
        grains = self._grains(places, size)
        lanes = np.repeat(lanes, grains.shape[1])
        return _Accesses(grains.ravel(), self._geometry.slot[lanes], self._geometry.thread[lanes], grains.shape[1])

    def _knows(self, level: int, blocks: Index, threads: Index, agents: Array) -> Array:
        known: Array = self._knowledge.knows[level, blocks, threads, agents]
        return known

    def _knows_warp(self, blocks: Index, threads: Index, warps: Index) -> Array:
        """Up to when threads know the reads of all lanes of warps."""
        lanes = np.minimum(warps[:, None] * 32 + np.arange(32), self._knowledge.threads - 1)
        least: Array = self._knows(0, blocks[:, None], threads[:, None], lanes).min(axis=1)
        return least

    def _fault(self, accesses: _Accesses, at: int, check: str, before: str, after: str, pc: int) -> Fault:
        byte = int(accesses.flat[at]) * self._grain % self._size
        return Fault(at // accesses.per, check, f"{before} shared byte {byte}, {after}", pc)

    def read(self, lanes: Index, places: Index, size: int, pc: int, agent: int | None = None) -> None:
        """Check and remember reads of ``size`` bytes each, by lanes or by an agent of theirs.

        Parameters
        ----------
        lanes, places : array (n,)
            Who, and which bytes, all blocks counted.
        size : int
            Bytes of one access.
        pc : int
            The instruction.
        agent : int, optional
            The agent of the asynchronous proxy that reads for the lanes.
        """
        a = self._accesses(lanes, places, size)
        proxy = agent is not None
        self._check_updates(a, "read of")
        self._check_written(a, "read of")
        self._check_writer(a, "read of", proxy)
        if agent is None:
            self._note(a, a.threads, a.threads // 32, pc)
        else:
            columns = self._geometry.warps + a.threads // 128
            self._note(a, np.full_like(a.threads, agent), columns, pc)

    def write(
        self, lanes: Index, places: Index, size: int, pc: int, agent: int | None = None, *, in_flight: bool = False
    ) -> None:
        """Check and remember writes; ``in_flight`` those of a copy that has not landed. Parameters as of `read`."""
        a = self._accesses(lanes, places, size)
        self._check_writer(a, "write of", agent is not None)
        self._check_updates(a, "write of")
        self._check_readers(a)
        self._writer[a.flat] = a.threads if agent is None else agent
        self._written[a.flat] = _IN_FLIGHT if in_flight else self._knowledge.time[a.blocks]
        self._write_at[a.flat] = pc

    def update(self, lanes: Index, places: Index, size: int, pc: int) -> None:
        """Check and remember atomics: they are ordered among themselves, but not with plain accesses."""
        a = self._accesses(lanes, places, size)
        self._check_written(a, "atomic of")
        self._check_writer(a, "atomic of", False)
        self._check_readers(a)
        if self._updated is None:
            self._updated = np.zeros(self._read.shape, np.int32)
        self._updated[a.flat, a.threads // 32] = self._knowledge.time[a.blocks]
        self._update_at = pc

    def _check_updates(self, a: _Accesses, what: str) -> None:
        """Raise where a plain access is not ordered behind the atomics of its place."""
        if self._updated is None:
            return
        row, column = np.nonzero(self._updated[a.flat])
        late = self._updated[a.flat[row], column] > self._knows_warp(a.blocks[row], a.threads[row], column)
        if late.any():
            at = int(np.flatnonzero(late)[0])
            after = f"which an atomic of warp {column[at]} has changed, unordered,"
            raise self._fault(a, int(row[at]), "race", what, after, self._update_at)

    def land(self, lanes: Index, places: Index, size: int, agent: int | None = None) -> None:
        """Make copies that were under way their threads' own writes, now, or those of an agent."""
        flat = self._grains(places, size)
        self._written[flat] = self._knowledge.time[self._geometry.slot[lanes]][:, None]
        if agent is not None:
            self._writer[flat] = agent

    def _check_written(self, a: _Accesses, what: str) -> None:
        time = self._written[a.flat]
        if not time.all():
            at = int(np.flatnonzero(time == 0)[0])
            raise self._fault(a, at, "uninitialised", what, "which nobody has written", -1)

    def _check_writer(self, a: _Accesses, what: str, proxy: bool) -> None:
        time, writer = self._written[a.flat], self._writer[a.flat]
        good = time <= self._knows(0, a.blocks, a.threads, writer)
        good |= (writer == a.threads) & (time != _IN_FLIGHT)
        if not good.all():
            at = int(np.flatnonzero(~good)[0])
            who, pc = self._knowledge.names[int(writer[at])], int(self._write_at[a.flat[at]])
            if time[at] == _IN_FLIGHT:
                after = f"where a copy of {who} is under way, not committed or not waited for,"
                raise self._fault(a, at, "copy", what, after, pc)
            raise self._fault(a, at, "race", what, f"which {who} has written, unordered,", pc)
        if not proxy:
            return
        fenced = time <= self._knows(1, a.blocks, a.threads, writer)
        fenced |= (writer >= self._knowledge.threads) | (time == 0)
        if not fenced.all():
            at = int(np.flatnonzero(~fenced)[0])
            who, pc = self._knowledge.names[int(writer[at])], int(self._write_at[a.flat[at]])
            after = f"which {who} has written without a fence.proxy.async since,"
            raise self._fault(a, at, "proxy", f"the asynchronous proxy's {what}", after, pc)

    def _check_readers(self, a: _Accesses) -> None:
        time = self._read[a.flat]
        if not time.any():
            return
        reader, blocks, threads = self._reader[a.flat], a.blocks[:, None], a.threads[:, None]
        good = (time <= self._knows(0, blocks, threads, np.maximum(reader, 0))) | (reader == threads)
        row, column = np.nonzero(reader == _MANY)
        if len(row):
            good[row, column] = time[row, column] <= self._knows_warp(a.blocks[row], a.threads[row], column)
        good |= time == 0
        if not good.all():
            at, column_at = (int(i[0]) for i in np.nonzero(~good))
            agent = int(reader[at, column_at])
            who = f"warp {column_at}" if agent == _MANY else self._knowledge.names[agent]
            pc = int(self._read_at[a.flat[at], column_at])
            raise self._fault(a, at, "race", "write of", f"which {who} has read, unordered,", pc)

    def _note(self, a: _Accesses, agents: Index, columns: Index, pc: int) -> None:
        """Remember reads: one lane's, if it knows of the read that it replaces, else those of many."""
        old, time = self._reader[a.flat, columns], self._read[a.flat, columns]
        alone = (time == 0) | (old == agents)
        rest = np.flatnonzero(~alone & (time < self._knowledge.time[a.blocks]))  # nobody knows what happens now
        if len(rest):
            blocks, threads, before = a.blocks[rest], a.threads[rest], time[rest]
            known = self._knows(0, blocks, threads, np.maximum(old[rest], 0))
            many = np.flatnonzero(old[rest] == _MANY)
            known[many] = self._knows_warp(blocks[many], threads[many], columns[rest[many]])
            alone[rest] = before <= known
        self._reader[a.flat, columns] = np.where(alone, agents, _MANY)
        clash = self._reader[a.flat, columns] != agents  # several lanes of this instruction
        self._reader[a.flat[clash], columns[clash]] = _MANY
        self._read[a.flat, columns] = self._knowledge.time[a.blocks]
        self._read_at[a.flat, columns] = pc
