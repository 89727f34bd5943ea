"""What lands by itself: bulk and tensor copies that complete on an mbarrier, and arrivals behind ``cp.async``.

Nothing lands before every thread waits, or, with a seed, before a draw says so: as late as the program allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import Active, Index
from cupy_intfa.ptxsim.mbarrier import Mbarriers
from cupy_intfa.ptxsim.memory import PARAM, WINDOW
from cupy_intfa.ptxsim.operands import Address
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Machine
from cupy_intfa.ptxsim.tensor_map import BYTES, TensorMap, swizzled

_UNIT = 16  # bytes that a copy moves as one


@dataclass(frozen=True)
class _Event:
    """Something that happens to a block behind the program: by which lane, and what."""

    lane: int
    pc: int
    happen: Callable[[], None]


class Bulk:
    """The copies under way of the blocks that run together."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._events: list[_Event] = []

    def expect(self, lane: int, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        self._events.append(_Event(lane, self._m.pc, happen))

    def deliver(self, rng: np.random.Generator | None) -> bool:
        """Let one thing happen, the oldest or any; tells whether there was one."""
        if not self._events:
            return False
        event = self._events.pop(0 if rng is None else int(rng.integers(len(self._events))))
        before, self._m.pc = self._m.pc, event.pc
        event.happen()
        self._m.pc = before
        return True

    def start(self, lane: int, places: Index, source: Callable[[], Any], mbarrier: int) -> None:
        """Start a copy of 16-byte units by a lane; ``source`` gives its bytes when it lands."""
        m = self._m
        block, size = int(m.geometry.slot[lane]), _UNIT * len(places)
        mbarriers: Mbarriers = m.part("mbarriers")
        barrier = mbarriers.find(lane, mbarrier, proxy=True)
        m.shared.shadow.write(np.full(len(places), lane), places, _UNIT, m.pc, barrier.agent)
        time = int(m.knowledge.time[block])
        m.knowledge.time[block] += 1
        m.trace.moved("copied to shared", size)

        def land() -> None:
            """Write the bytes, and count them off."""
            m.shared.bytes[places[:, None] + np.arange(_UNIT)] = source()
            barrier.gathered[:, barrier.agent] = np.maximum(barrier.gathered[:, barrier.agent], time)
            mbarriers.change(lane, mbarrier, barrier, 0, -size)

        self.expect(lane, land)


def _one_by_one(m: Machine, active: Active, start: Callable[[int], None]) -> None:
    for lane in active.lanes.tolist():
        try:
            start(lane)
        except Fault as fault:
            raise m.blame(
                Active(np.array([lane]), m.geometry.count), Fault(0, fault.check, fault.what, fault.pc)
            ) from None


def _line(m: Machine, ins: Instruction) -> Action:
    """Make ``cp.async.bulk``: some bytes in a row."""
    to, source, mbarrier = (m.address(ins.operands[i]) for i in (0, 1, 3))
    length = m.read(ins.operands[2], "u32")
    bulk: Bulk = m.part("bulk")

    def run(active: Active) -> None:
        def start(lane: int) -> None:
            one = Active(np.array([lane]), m.geometry.count)
            size = int(one.of(np.broadcast_to(length, m.geometry.count))[0])
            if size % _UNIT or not size:
                m.fail(lane, "alignment", f"a bulk copy of {size} bytes: expected a multiple of 16")
            first = int(source(one)[0])
            if first % _UNIT:
                m.fail(lane, "alignment", f"a bulk copy from address {first:#x}: expected a multiple of 16")
            block = np.full(size // _UNIT, m.geometry.slot[lane])
            units = _UNIT * np.arange(size // _UNIT)
            places = m.shared.locate(block, (int(to(one)[0]) & WINDOW) + units, _UNIT)
            begin = m.memory.locate(first + units, _UNIT, write=False)
            bulk.start(
                lane, places, lambda: m.memory.bytes[begin[:, None] + np.arange(_UNIT)], int(mbarrier(one)[0]) & WINDOW
            )

        _one_by_one(m, active, start)

    return run


def _tensor(m: Machine, ins: Instruction) -> Action:
    """Make ``cp.async.bulk.tensor``: a box of an array, zeros where it reaches beyond."""
    operand = ins.operands[1]
    if not isinstance(operand, Address) or "im2col" in ins.parts or "multicast::cluster" in ins.parts:
        raise PtxError(f"not modelled: {ins.opcode}")
    to, mbarrier, at = m.address(ins.operands[0]), m.address(ins.operands[2]), m.address(Address(operand.base))
    corner = [m.read(one, "s32") for one in operand.coordinates]
    bulk: Bulk = m.part("bulk")

    def run(active: Active) -> None:
        def start(lane: int) -> None:
            one = Active(np.array([lane]), m.geometry.count)
            tensor = _find_map(m, int(at(one)[0]))
            if len(tensor.box) != len(corner):
                m.fail(lane, "bounds", f"{len(corner)} coordinates for a tensor map of {len(tensor.box)} axes")
            places = tuple(int(one.of(np.broadcast_to(x, m.geometry.count))[0]) for x in corner)
            address, inside = tensor.elements(places)
            used = address[inside]
            if len(used):
                m.memory.locate(used, tensor.itemsize, write=False)
            units = _UNIT * np.arange(tensor.box_bytes // _UNIT)
            first = int(to(one)[0]) & WINDOW
            if first % 128:
                m.fail(
                    lane,
                    "alignment",
                    f"a tensor copy to byte address {first} of shared memory: expected a multiple of 128",
                )
            block = np.full(len(units), m.geometry.slot[lane])
            to_places = m.shared.locate(block, swizzled(first + units, tensor.swizzle), _UNIT)

            def content() -> Any:
                data = np.zeros((len(address), tensor.itemsize), np.uint8)
                begin = m.memory.locate(used, tensor.itemsize, write=False) if len(used) else used
                data[inside] = m.memory.bytes[begin[:, None] + np.arange(tensor.itemsize)]
                return data.reshape(-1, _UNIT)

            bulk.start(lane, to_places, content, int(mbarrier(one)[0]) & WINDOW)

        _one_by_one(m, active, start)

    return run


def _find_map(m: Machine, address: int) -> TensorMap:
    if address >> 40 == PARAM >> 40:
        start = address & WINDOW
        return TensorMap.decode(bytes(m.part("params")[start : start + BYTES]))
    return TensorMap.decode(bytes(m.memory.read(address, BYTES)))


def build_bulk(m: Machine, ins: Instruction) -> Action:
    """Make a copy to shared memory; the other directions are not modelled."""
    to = next((part for part in ins.parts if part in ("shared::cluster", "shared::cta", "global")), "")
    if "prefetch" in ins.parts:
        return lambda active: None
    if to == "global" or "mbarrier::complete_tx::bytes" not in ins.opcode:
        raise PtxError(f"not modelled: {ins.opcode}")
    return _tensor(m, ins) if "tensor" in ins.parts else _line(m, ins)


def build_arrival(m: Machine, ins: Instruction) -> Action:
    """Make ``cp.async.mbarrier.arrive``: an arrival when the thread's copies so far have landed."""
    counted = "noinc" not in ins.parts
    address = m.address(ins.operands[0])
    copies, bulk, mbarriers = m.part("copies"), m.part("bulk"), m.part("mbarriers")

    def run(active: Active) -> None:
        """Let every lane's copies so far bring its arrival."""
        for lane, at in zip(active.lanes.tolist(), (address(active) & WINDOW).tolist(), strict=True):
            barrier = mbarriers.find(lane, at)
            block = int(m.geometry.slot[lane])
            if counted:
                mbarriers.change(lane, at, barrier, 1, 0)
            known = m.knowledge.empty()
            m.knowledge.release(block, m.geometry.thread[[lane]], known)
            mine = copies.take(lane)

            def land(
                lane: int = lane, at: int = at, barrier: Any = barrier, known: Any = known, mine: Any = mine
            ) -> None:
                np.maximum(barrier.gathered, known, out=barrier.gathered)
                copies.land_for(mine, barrier.agent)
                time = m.knowledge.time[m.geometry.slot[lane]]
                barrier.gathered[:, barrier.agent] = np.maximum(barrier.gathered[:, barrier.agent], time)
                m.knowledge.time[m.geometry.slot[lane]] += 1
                mbarriers.change(lane, at, barrier, -1, 0)

            bulk.expect(lane, land)

    return run
