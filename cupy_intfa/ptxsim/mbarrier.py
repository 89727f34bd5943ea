"""Barriers in shared memory whose arrival and wait are apart: phases, announced bytes, what who waits then knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim.errors import Fault, PtxError, SimulationError
from cupy_intfa.ptxsim.knowledge import Times
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.memory import WINDOW
from cupy_intfa.ptxsim.operands import Register
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.shared import BASE
from cupy_intfa.ptxsim.step import Action, Builder, Machine, Wait

_MOST = (1 << 20) - 1  # arrivals, and bytes under way, that an mbarrier counts


@dataclass
class Barrier:
    """One mbarrier of one block.

    Parameters
    ----------
    count, pending : int
        Arrivals of a phase, and those that are missing.
    bytes : int
        Announced and not yet there.
    phase : int
        Phases that have ended.
    maker, made, made_at : int
        Thread that initialised it, when, and by which instruction.
    agent : int
        The copies that complete on it, as `Knowledge` counts them.
    gathered, given : array
        What the arrivals of this phase bring, and what those of all that have ended brought.
    used : array (threads,)
        When each thread has last used it.
    fenced : int
        When its maker has told copies of it by ``fence.mbarrier_init``; 0 where it has not.
    waiting : list of int
        Lanes.
    """

    count: int
    pending: int
    maker: int
    made: int
    made_at: int
    agent: int
    gathered: Times
    given: Times
    used: Times
    bytes: int = 0
    phase: int = 0
    fenced: int = 0
    waiting: list[int] = field(default_factory=list)


class Mbarriers:
    """The mbarriers of the blocks that run together."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._all: dict[tuple[int, int], Barrier] = {}
        self._agents: dict[int, int] = {}  # by address
        self._asked = np.zeros(m.geometry.count, np.bool_)  # lanes that were told "not yet" once

    def init(self, lane: int, address: int, count: int) -> None:
        """Make a barrier, by a lane."""
        m, block, thread = self._m, int(self._m.geometry.slot[lane]), int(self._m.geometry.thread[lane])
        if not 1 <= count <= _MOST:
            m.fail(lane, "mbarrier", f"an mbarrier for {count} arrivals: expected 1 to {_MOST}")
        if (block, address) in self._all:
            m.fail(lane, "mbarrier", f"{self._name(block, address)} is there: expected mbarrier.inval before another")
        self._write(lane, address)
        if address not in self._agents:
            self._agents[address] = m.knowledge.add_agent(f"a copy for the mbarrier at byte {address - BASE}")
        made, agent = int(m.knowledge.time[block]), self._agents[address]
        gathered, given, used = m.knowledge.empty(), m.knowledge.empty(), np.zeros(m.geometry.threads, np.int32)
        self._all[block, address] = Barrier(count, count, thread, made, m.pc, agent, gathered, given, used)

    def _write(self, lane: int, address: int) -> None:
        place = self._m.shared.locate(self._m.geometry.slot[[lane]], np.array([address]), 8)
        self._m.shared.shadow.write(np.array([lane]), place, 8, self._m.pc)

    def _name(self, block: int, address: int) -> str:
        line = self._m.entry.code[self._all[block, address].made_at].line
        return f"the mbarrier at byte {address - BASE} (initialised at {line})"

    def forget(self, lane: int, address: int) -> None:
        """Let a lane end the life of a barrier, after which its bytes are memory like any other."""
        m, block, thread = self._m, int(self._m.geometry.slot[lane]), int(self._m.geometry.thread[lane])
        barrier = self.find(lane, address)
        if barrier.bytes:
            self._fail(lane, address, f"{barrier.bytes} bytes under way at the end of")
        late = barrier.used > m.knowledge.knows[0, block, thread, : m.geometry.threads]
        late[thread] = False
        if late.any():
            who = m.knowledge.names[int(late.argmax())]
            m.fail(lane, "race", f"{self._name(block, address)} ends, and {who} has used it, unordered")
        self._write(lane, address)
        del self._all[block, address]

    def fence(self, lanes: Index) -> None:
        """Tell copies of the barriers that lanes have initialised, and of nothing else: ``fence.mbarrier_init``."""
        m, g = self._m, self._m.geometry
        makers = {*zip(g.slot[lanes].tolist(), g.thread[lanes].tolist(), strict=True)}
        for (block, _), barrier in self._all.items():
            if (block, barrier.maker) in makers and not barrier.fenced:
                barrier.fenced = int(m.knowledge.time[block])

    def find(self, lane: int, address: int, *, proxy: bool = False) -> Barrier:
        """Look a barrier up for a lane, or for the copy that it issues; both must know that it was initialised."""
        m, g = self._m, self._m.geometry
        block, thread = int(g.slot[lane]), int(g.thread[lane])
        barrier = self._all.get((block, address))
        if barrier is None:
            m.fail(lane, "mbarrier", f"no mbarrier was initialised at byte {address - BASE} of shared memory")
        knows, own = m.knowledge.knows[:, block, thread, barrier.maker], thread == barrier.maker
        if not own and knows[0] < barrier.made:
            m.fail(lane, "race", f"{self._name(block, address)} is of thread {barrier.maker}, unordered")
        told = barrier.fenced and (own or knows[0] >= barrier.fenced)
        if proxy and m.knowledge.levels > 1 and not told and knows[1] < barrier.made:
            m.fail(lane, "proxy", f"{self._name(block, address)} had no fence.mbarrier_init since")
        barrier.used[thread] = m.knowledge.time[block]
        return barrier

    def arrive(self, lane: int, address: int, count: int, announced: int = 0) -> int:
        """Let a lane arrive, and announce bytes; returns the phase that it arrived in."""
        m, g = self._m, self._m.geometry
        barrier, block = self.find(lane, address), int(g.slot[lane])
        phase = barrier.phase
        m.knowledge.release(block, g.thread[[lane]], barrier.gathered)
        self.change(lane, address, barrier, -count, announced)
        return phase

    def change(self, lane: int, address: int, barrier: Barrier, arrivals: int, size: int) -> None:
        """Change the missing arrivals and bytes, and end the phase if none is missing."""
        barrier.pending += arrivals
        barrier.bytes += size
        if barrier.pending < 0:
            self._fail(lane, address, f"more than {barrier.count} arrivals at")
        if abs(barrier.bytes) > _MOST:
            self._fail(lane, address, f"{barrier.bytes} bytes under way at")
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.count
            np.maximum(barrier.given, barrier.gathered, out=barrier.given)
            self._m.wake(np.array(barrier.waiting, np.int64))
            barrier.waiting.clear()

    def _fail(self, lane: int, address: int, what: str) -> NoReturn:
        self._m.fail(lane, "mbarrier", f"{what} {self._name(int(self._m.geometry.slot[lane]), address)}")

    def wait(self, lane: int, address: int, state: int, *, parity: bool) -> bool | None:
        """Ask for a lane whether a phase has ended; None where it has to wait. A first question may be answered no."""
        m, g = self._m, self._m.geometry
        barrier = self.find(lane, address)
        ended = barrier.phase & 1 != state & 1 if parity else barrier.phase > state
        if ended:
            m.knowledge.acquire(int(g.slot[lane]), g.thread[[lane]], barrier.given)
            self._asked[lane] = False
            return True
        if not self._asked[lane]:
            self._asked[lane] = True
            return False
        barrier.waiting.append(lane)
        return None

    def check_end(self) -> None:
        """Refuse the end of blocks in the middle of a phase: someone has arrived too often or not often enough."""
        for (block, address), b in self._all.items():
            if b.pending != b.count or b.bytes:
                what = f"block {block + self._m.geometry.first} ends while {self._state(block, address)}"
                raise SimulationError("mbarrier", what)

    def describe(self, block: int) -> str:
        """Say what the mbarriers of a block wait for."""
        return "; ".join(
            self._state(at, address) for (at, address), b in self._all.items() if at == block and b.waiting
        )

    def _state(self, block: int, address: int) -> str:
        b = self._all[block, address]
        missing = f"{b.pending} of {b.count} arrivals and {b.bytes} bytes missing"
        return f"{self._name(block, address)} is in phase {b.phase}, with {missing}"


def _values(active: Active, x: Array, count: int) -> list[int]:
    found: list[int] = active.of(np.broadcast_to(x, count)).tolist()
    return found


def _init(m: Machine, ins: Instruction) -> Action:
    address, count = m.address(ins.operands[0]), m.read(ins.operands[1], "u32")
    barriers: Mbarriers = m.part("mbarriers")

    def run(active: Active) -> None:
        try:
            for lane, at, n in zip(
                active.lanes.tolist(),
                (address(active) & WINDOW).tolist(),
                _values(active, count, m.geometry.count),
                strict=True,
            ):
                barriers.init(lane, at, n)
        except Fault as fault:
            raise m.blame(active, fault) from None

    return run


def _inval(m: Machine, ins: Instruction) -> Action:
    address = m.address(ins.operands[0])
    barriers: Mbarriers = m.part("mbarriers")

    def run(active: Active) -> None:
        for lane, at in zip(active.lanes.tolist(), (address(active) & WINDOW).tolist(), strict=True):
            try:
                barriers.forget(lane, at)
            except Fault as fault:
                raise m.blame(Active(np.array([lane]), m.geometry.count), fault) from None

    return run


def _arrive(m: Machine, ins: Instruction) -> Action:
    has_state = isinstance(ins.operands[0], Register)
    operands = ins.operands[1:] if has_state else ins.operands
    expects, only = "expect_tx" in ins.parts, ins.parts[1] == "expect_tx"
    if "noComplete" in ins.parts or "drop" in ins.opcode or "cluster" in ins.opcode.replace(".cluster.shared::cta", ""):
        raise PtxError(f"not modelled: {ins.opcode}")
    address = m.address(operands[0])
    number = m.read(operands[1], "u32") if len(operands) > 1 else np.array(0 if expects else 1)
    put = m.put_some(ins.operands[0], "b64") if has_state else None
    barriers: Mbarriers = m.part("mbarriers")

    def run(active: Active) -> None:
        phases = []
        for lane, at, n in zip(
            active.lanes.tolist(),
            (address(active) & WINDOW).tolist(),
            _values(active, number, m.geometry.count),
            strict=True,
        ):
            if only:
                barriers.change(lane, at, barriers.find(lane, at), 0, n)
            else:
                phases.append(barriers.arrive(lane, at, 1 if expects else n, n if expects else 0))
        if put is not None:
            put(active, np.array(phases, np.uint64))

    return run


def _wait(m: Machine, ins: Instruction) -> Action:
    parity = "parity" in ins.parts
    address = m.address(ins.operands[1])
    state, put = m.read(ins.operands[2], "u32" if parity else "b64"), m.put_some(ins.operands[0], "pred")
    barriers: Mbarriers = m.part("mbarriers")

    def run(active: Active) -> npt.NDArray[np.bool_] | None:
        answers = [
            barriers.wait(lane, at, n, parity=parity)
            for lane, at, n in zip(
                active.lanes.tolist(),
                (address(active) & WINDOW).tolist(),
                _values(active, state, m.geometry.count),
                strict=True,
            )
        ]
        put(active, np.array([answer is True for answer in answers]))
        return np.array([answer is None for answer in answers])

    return Wait(run)


def _mbarrier(m: Machine, ins: Instruction) -> Action:
    match ins.parts[1]:
        case "init":
            return _init(m, ins)
        case "arrive" | "expect_tx":
            return _arrive(m, ins)
        case "try_wait" | "test_wait":
            return _wait(m, ins)
        case "inval":
            return _inval(m, ins)
    raise PtxError(f"not modelled: {ins.opcode}")


BUILDERS: Mapping[str, Builder] = {"mbarrier": _mbarrier}
"""Builders by the first part of the opcode."""
