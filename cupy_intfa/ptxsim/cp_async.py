"""``cp.async``: copies of a thread that land when it waits for their group, as late as the program allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cupy_intfa.ptxsim.bulk import build_arrival, build_bulk
from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.memory import WINDOW
from cupy_intfa.ptxsim.operands import Immediate
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Builder, Machine


@dataclass(frozen=True)
class _Copy:
    """One instruction's copies under way: who, to where, what, and in which of the thread's groups."""

    lanes: Index
    places: Index
    data: Array
    groups: Index
    pc: int

    def part(self, which: Array) -> _Copy:
        """Take some of the copies."""
        return _Copy(self.lanes[which], self.places[which], self.data[which], self.groups[which], self.pc)


class Copies:
    """The copies under way of the blocks that run together."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._under_way: list[_Copy] = []
        self._group = np.zeros(m.geometry.count, np.int64)  # the group that each lane's next copy joins

    def start(self, active: Active, places: Index, data: Array) -> None:
        """Start a copy of every active lane."""
        self._m.shared.shadow.write(active.lanes, places, data.shape[1], self._m.pc, in_flight=True)
        self._under_way.append(_Copy(active.lanes, places, data, self._group[active.lanes], self._m.pc))

    def commit(self, active: Active) -> None:
        """Close the lanes' open groups."""
        self._group[active.lanes] += 1

    def wait(self, active: Active, pending: int | None) -> None:
        """Let copies land: all but those of each lane's last ``pending`` closed groups; None for open ones too."""
        limit = np.zeros(len(self._group), np.int64)
        limit[active.lanes] = self._group[active.lanes] + (1 if pending is None else -pending)
        still = []
        for copy in self._under_way:
            lands = copy.groups < limit[copy.lanes]
            if lands.all():
                self._land(copy)
            elif lands.any():
                self._land(copy.part(lands))
                still.append(copy.part(~lands))
            else:
                still.append(copy)
        self._under_way = still

    def _land(self, copy: _Copy) -> None:
        shared, size = self._m.shared, copy.data.shape[1]
        shared.bytes[copy.places[:, None] + np.arange(size)] = copy.data
        shared.shadow.land(copy.lanes, copy.places, size)

    def take(self, lane: int) -> list[_Copy]:
        """Take a lane's copies out of its groups: an mbarrier waits for them."""
        mine, still = [], []
        for copy in self._under_way:
            own = copy.lanes == lane
            if own.any():
                mine.append(copy.part(own))
                copy = copy.part(~own)
            if len(copy.lanes):
                still.append(copy)
        self._under_way = still
        return mine

    def land_for(self, copies: list[_Copy], agent: int) -> None:
        """Let copies land for the agent of an mbarrier."""
        for copy in copies:
            self._land(copy)
            self._m.shared.shadow.land(copy.lanes, copy.places, copy.data.shape[1], agent)

    def check_exit(self, lanes: Index) -> None:
        """Refuse the end of threads whose copies nobody has waited for."""
        for copy in self._under_way:
            late = np.isin(copy.lanes, lanes)
            if late.any():
                raise Fault(
                    int(np.searchsorted(lanes, copy.lanes[late][0])),
                    "copy",
                    "the thread ends while a copy of it is under way, not committed or not waited for,",
                    copy.pc,
                )


def _start(m: Machine, ins: Instruction) -> Action:
    to, source = m.address(ins.operands[0]), m.address(ins.operands[1])
    if not isinstance(ins.operands[2], Immediate) or "mbarrier" in ins.parts:
        raise PtxError(f"not modelled: {ins}")
    size = ins.operands[2].bits
    used = m.read(ins.operands[3], "u32") if len(ins.operands) == 4 else None
    copies: Copies = m.part("copies")

    def run(active: Active) -> None:
        a, count = source(active), m.geometry.count
        length = np.full(len(a), size) if used is None else active.of(np.broadcast_to(used, count)).astype(np.int64)
        try:
            places = m.shared.locate(m.geometry.slot[active.lanes], to(active) & WINDOW, size)
            data = np.zeros((len(a), size), np.uint8)
            wrong = np.flatnonzero((length > size) | ((length > 0) & (a % size > 0)))
            if len(wrong):
                at = int(wrong[0])
                what = f"a copy of {length[at]} of {size} bytes from address {a[at]:#x}: expected a multiple of {size}"
                raise Fault(at, "alignment", what)
            for n in np.unique(length[length > 0]).tolist():
                rows = np.flatnonzero(length == n)
                start = m.memory.locate(a[rows], n, write=False)
                data[rows[:, None], np.arange(n)] = m.memory.bytes[start[:, None] + np.arange(n)]
            copies.start(active, places, data)
        except Fault as fault:
            raise m.blame(active, fault) from None
        m.trace.moved("copied to shared", size * len(a))
        m.trace.shared(m.pc, active.lanes, places, size, write=True)

    return run


def _cp(m: Machine, ins: Instruction) -> Action:
    copies: Copies = m.part("copies")
    match ins.parts[1:]:
        case ("async", "ca" | "cg", *_):
            return _start(m, ins)
        case ("async", "commit_group"):
            return copies.commit
        case ("async", "wait_group"):
            pending = int(m.read(ins.operands[0], "u32"))
            return lambda active: copies.wait(active, pending)
        case ("async", "wait_all"):
            return lambda active: copies.wait(active, None)
        case ("async", "bulk", *_):
            return build_bulk(m, ins)
        case ("async", "mbarrier", "arrive", *_):
            return build_arrival(m, ins)
    raise PtxError(f"not modelled: {ins.opcode}")


BUILDERS: Mapping[str, Builder] = {"cp": _cp}
"""Builders by the first part of the opcode."""
