"""The machine: threads as lanes of arrays, run a basic block at a time, the lowest instruction first.

All lanes that stand at the lowest instruction run it together, as many blocks as were given. With a seed one warp,
drawn again at every turn, runs by itself instead: another order that a GPU could take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from cupy_intfa.ptxsim.barriers import Barriers
from cupy_intfa.ptxsim.bulk import Bulk
from cupy_intfa.ptxsim.convergence import BARRIER, COLLECTIVE, DONE, MBARRIER, RUN, Convergence
from cupy_intfa.ptxsim.cp_async import Copies
from cupy_intfa.ptxsim.decode import decode
from cupy_intfa.ptxsim.errors import Fault, PtxError, SimulationError
from cupy_intfa.ptxsim.fences import RegisterPool
from cupy_intfa.ptxsim.in_flight import InFlight
from cupy_intfa.ptxsim.knowledge import Knowledge
from cupy_intfa.ptxsim.lanes import Active, Array, Geometry, Index
from cupy_intfa.ptxsim.layout import grain_of, lay_out
from cupy_intfa.ptxsim.mbarrier import Mbarriers
from cupy_intfa.ptxsim.memory import PARAM, GlobalMemory
from cupy_intfa.ptxsim.operands import Address, Immediate, Operand, Register, Symbol
from cupy_intfa.ptxsim.options import Options
from cupy_intfa.ptxsim.parse import Entry
from cupy_intfa.ptxsim.registers import TYPES, Put, RegisterFile
from cupy_intfa.ptxsim.shared import BASE, SharedMemory
from cupy_intfa.ptxsim.step import Action, Arrival, Branch, Collective, Exit, Wait
from cupy_intfa.ptxsim.trace import Recorder, Trace

MOST_STEPS = 20_000_000


class Machine:
    """One run of some blocks of a launch.

    Parameters
    ----------
    entry : Entry
        The kernel.
    geometry : Geometry
        The blocks.
    memory : GlobalMemory
        Global memory.
    params : array of uint8
        Parameters, laid out.
    dynamic : int
        Bytes of dynamic shared memory.
    options : Options
        How to run.
    """

    def __init__(
        self, entry: Entry, geometry: Geometry, memory: GlobalMemory, params: Array, dynamic: int, options: Options
    ) -> None:
        self.entry, self.geometry, self.memory = entry, geometry, memory
        self.pc = self.steps = 0
        self.registers = RegisterFile(entry.registers, geometry.count, geometry.special())
        offsets, end = lay_out(entry.shared)
        self._symbols = {name: BASE + offset for name, offset in offsets.items()}
        if entry.dynamic:
            end = -(-end // entry.dynamic.align) * entry.dynamic.align
            self._symbols[entry.dynamic.name] = BASE + end
        local, local_size = lay_out(entry.local)
        local_size = -(-local_size // 16) * 16
        self._symbols |= local
        self._symbols |= {name: PARAM + at for name, at in lay_out(entry.parameters)[0].items()}
        self._constants = {variable.name: variable for variable in entry.constants}
        self._has_wgmma = any(ins.parts[0] == "wgmma" for ins in entry.code)
        proxies = self._has_wgmma or any("bulk" in ins.parts for ins in entry.code)
        self.knowledge = Knowledge(geometry.blocks, geometry.threads, proxies)
        self.shared = SharedMemory(geometry, self.knowledge, end + dynamic, grain_of(entry))
        self.trace = Recorder(geometry, options.detailed, np.zeros(len(entry.code), np.int64))
        self._lanes = Convergence(geometry)
        self._status, self._pcs = self._lanes.status, self._lanes.pcs
        self.alive = self._lanes.alive
        self._rng = None if options.seed is None else np.random.default_rng(options.seed)
        self._actions: list[Action | None] = [None] * len(entry.code)
        self._leads = np.zeros(len(entry.code) + 1, np.bool_)
        self._leads[list(entry.labels.values())] = True
        self._parts: dict[str, Any] = {
            "params": params,
            "local": np.zeros(geometry.count * local_size + 16, np.uint8),
            "local_size": local_size,
        }
        self._makers: dict[str, Callable[[Any], Any]] = {
            "copies": Copies,
            "barriers": Barriers,
            "bulk": Bulk,
            "mbarriers": Mbarriers,
            "wgmma": InFlight,
            "registers": RegisterPool,
        }

    # ---- what builders of instructions use

    def part(self, name: str) -> Any:
        """Give a part of the machine, made when it is first asked for."""
        if name not in self._parts:
            self._parts[name] = self._makers[name](self)
        return self._parts[name]

    def read(self, operand: Operand, kind: str) -> Array:
        """See an operand as an array over all lanes, or as a constant of no dimension."""
        dtype = TYPES[kind]
        if isinstance(operand, Register):
            return self.registers.view(operand.name, dtype)
        if isinstance(operand, Symbol):
            return np.array(self._value_of(operand.name), np.uint64).astype(dtype)
        if isinstance(operand, Immediate):
            if dtype.kind == "b":
                return np.array(operand.bits != 0)
            bits = np.array(operand.bits % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}")
            return bits.view(dtype)
        raise PtxError(f"operand {operand} where a value is expected")

    def _value_of(self, name: str) -> int:
        if name == "WARP_SZ":
            return 32
        if name in self._constants and name not in self._symbols:
            variable = self._constants[name]
            content = np.zeros(variable.size, np.uint8)
            content[: len(variable.content)] = np.frombuffer(variable.content, np.uint8)
            self._symbols[name] = self.memory.allocate(name, content)
        if name not in self._symbols:
            raise PtxError(f"unknown name {name}")
        return self._symbols[name]

    def put_all(self, operand: Operand, kind: str) -> Put:
        """Make what writes values of all lanes where they are active."""
        return self.registers.put_all(_register(operand), TYPES[kind])

    def put_some(self, operand: Operand, kind: str) -> Put:
        """Make what writes values of the active lanes."""
        return self.registers.put_some(_register(operand), TYPES[kind])

    def address(self, operand: Operand) -> Callable[[Active], Index]:
        """Make what gives the addresses that an operand means to the active lanes."""
        if not isinstance(operand, Address):
            raise PtxError(f"operand {operand} where an address is expected")
        offset, count = operand.offset, self.geometry.count
        if isinstance(operand.base, Register):
            width = 8 * self.registers.row(operand.base.name).itemsize
            base = self.read(operand.base, f"u{width}")
            if width == 64:
                base = base.view(np.int64)
            return lambda active: active.of(base).astype(np.int64) + offset
        value = np.full(count, int(self.read(operand.base, "u64")) + offset)
        return lambda active: value[active.lanes]

    def where(self, lane: int) -> str:
        """Say where a lane is, in the grid and in the source."""
        ins = self.entry.code[self.pc]
        return f"{self.geometry.name(lane)}: {ins}\n  {ins.line}"

    def fail(self, lane: int, check: str, what: str) -> NoReturn:
        """Raise a `SimulationError` for a lane at the current instruction."""
        raise SimulationError(check, what, self.where(lane))

    def blame(self, active: Active, fault: Fault) -> SimulationError:
        """Make a fault of some access the error of its lane."""
        what = fault.what
        if fault.pc >= 0:
            other = self.entry.code[fault.pc]
            what += f" at {other.line}: {other}"
        return SimulationError(fault.check, what, self.where(int(active.lanes[fault.index])))

    def wake(self, lanes: Index) -> None:
        """Let lanes run that have waited."""
        self._status[lanes] = RUN

    # ---- running

    def run(self) -> Trace:
        """Run to the end of all threads.

        Returns
        -------
        Trace
            What happened.

        Raises
        ------
        SimulationError
            For what a kernel must not do.
        PtxError
            For what is not modelled.
        """
        with np.errstate(all="ignore"):
            while (lanes := self._pick()) is not None:
                self._advance(lanes)
        if "mbarriers" in self._parts:
            self._parts["mbarriers"].check_end()
        return self.trace.finish(self.entry, self.steps)

    def _pick(self) -> Index | None:
        """Choose the lanes that run next: those at the lowest instruction, or of one warp there."""
        runnable = np.flatnonzero(self._status == RUN)
        while not len(runnable):
            if (self._status == DONE).all():
                return None
            if not ("bulk" in self._parts and self._parts["bulk"].deliver(self._rng)):
                self._stuck()
            runnable = np.flatnonzero(self._status == RUN)
        self._alone = False
        if self._rng is not None:
            if "bulk" in self._parts and self._rng.random() < 0.25:
                self._parts["bulk"].deliver(self._rng)
            warps = self.geometry.warp[runnable]
            runnable = runnable[warps == self._rng.choice(warps)]
        pcs = self._pcs[runnable]
        low = pcs.min()
        lanes: Index = runnable[pcs == low]
        self._alone = self._rng is None and len(lanes) == len(runnable)
        return lanes

    def _advance(self, lanes: Index) -> None:
        """Run lanes from their common instruction to the next place where others may join or matter."""
        active = Active(lanes, self.geometry.count)
        warps = len(np.unique(self.geometry.warp[lanes]))
        pc, code = int(self._pcs[lanes[0]]), self.entry.code
        while True:
            ins = code[pc]
            action = self._actions[pc]
            if action is None:
                action = decode(self, ins)
                if self._has_wgmma:
                    action = self.part("wgmma").watch(ins, action)
                self._actions[pc] = action
            self.pc = pc
            self.steps += 1
            self.trace.counts[pc] += warps
            if self.steps > MOST_STEPS:
                self.fail(int(lanes[0]), "deadlock", f"{MOST_STEPS} steps, and no end")
            part = self._guarded(active, ins.guard, ins.negated) if ins.guard else active
            if isinstance(action, Branch):
                if part is active:
                    pc = action.target
                else:
                    self._pcs[lanes] = pc + 1
                    if part is not None:
                        self._pcs[part.lanes] = action.target
                        return
                    pc += 1
            elif part is None:
                pc += 1
            elif callable(action):
                action(part)
                pc += 1
            else:
                self._pcs[lanes] = pc + 1
                if not self._special(part, action, pc):
                    return
                pc += 1
            if (not self._alone and self._leads[pc]) or (self._rng is not None and isinstance(action, Collective)):
                self._pcs[lanes] = pc
                return

    def _guarded(self, active: Active, guard: str, negated: bool) -> Active | None:
        """Give the lanes whose predicate holds: all of them as they are, or None."""
        chosen = active.of(self.registers.row(guard)) != negated
        if chosen.all():
            return active
        return Active(active.lanes[chosen], self.geometry.count) if chosen.any() else None

    def _special(self, part: Active, action: Action, pc: int) -> bool:
        """Run what is not each lane's own business; tells whether the lanes go straight on."""
        if isinstance(action, Exit):
            self._end(part)
            return False
        if isinstance(action, Wait):
            stays = action.run(part)
            if stays is None or not stays.any():
                return True
            self._pcs[part.lanes[stays]] = pc
            self._status[part.lanes[stays]] = MBARRIER
            return False
        size, members = (action.size, action.members) if isinstance(action, Collective) else (32, None)
        if self._lanes.complete(part, size, members) is part:
            return self._together(part, action)
        self._pcs[part.lanes] = pc
        self._status[part.lanes] = COLLECTIVE
        waiting = np.flatnonzero((self._status == COLLECTIVE) & (self._pcs == pc))
        ready = self._lanes.complete(Active(waiting, self.geometry.count), size, members)
        if ready is not None:
            self._status[ready.lanes] = RUN
            self._pcs[ready.lanes] = pc + 1
            self._together(ready, action)
        return False

    def _together(self, part: Active, action: Action) -> bool:
        """Run a collective for lanes that are complete; tells whether all go straight on."""
        if isinstance(action, Collective):
            if action.members is None and len(part.lanes) % action.size and self.geometry.threads % 32 == 0:
                self.fail(
                    int(part.lanes[0]), "divergence", f"some of the {action.size} threads that it needs have ended"
                )
            action.run(part)
            return True
        assert isinstance(action, Arrival)
        self._status[part.lanes] = BARRIER
        freed = 0
        for lanes in self.part("barriers").arrive(part, action):
            self._status[lanes] = RUN
            freed += len(lanes)
        return freed == len(part.lanes) and self._alone and bool((self._status[part.lanes] == RUN).all())

    def _end(self, part: Active) -> None:
        """End threads."""
        for name in ("copies", "wgmma"):
            if name in self._parts:
                try:
                    self._parts[name].check_exit(part.lanes)
                except Fault as fault:
                    raise self.blame(part, fault) from None
        self._lanes.end(part.lanes)
        if "barriers" in self._parts:
            for block in np.unique(self.geometry.slot[part.lanes]).tolist():
                for lanes in self._parts["barriers"].after_exit(block):
                    self._status[lanes] = RUN

    def _stuck(self) -> NoReturn:
        block = self._lanes.blocked()
        texts = [self._parts[name].describe(block) for name in ("barriers", "mbarriers") if name in self._parts]
        self._lanes.stuck(self.entry.code, "; ".join(text for text in texts if text))


def _register(operand: Operand) -> str:
    if not isinstance(operand, Register):
        raise PtxError(f"result {operand}: expected a register")
    return operand.name
