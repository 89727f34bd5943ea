"""Which products of wgmma are under way, and which registers they still use.

A result is in its registers at once, but until ``wgmma.wait_group`` has retired its group nothing may touch them:
reading or writing one is an error. Moves are no touch: the compiler renames registers by them, and a renamed one is as
far behind as the one before. A product on registers that were touched since the last ``wgmma.fence`` is an error too,
but not where a fence is there and only the touch has slid behind it: compilers move it, and ptxas sees to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import WARPGROUP, Active, Index
from cupy_intfa.ptxsim.operands import Address, Operand, Register, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Collective, Machine


@dataclass
class _Group:
    """The products that a warpgroup has issued: number of the last, of the last of each commit, of the last retired."""

    agent: int
    issued: int = 0
    committed: list[int] = field(default_factory=list)
    retired: int = 0
    uncommitted: bool = False
    fenced: bool = False  # since the last commit
    times: dict[int, int] = field(default_factory=dict)
    lines: dict[int, int] = field(default_factory=dict)


class InFlight:
    """The products under way of the blocks that run together."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._per_block = -(-m.geometry.threads // WARPGROUP)
        agents = [m.knowledge.add_agent(f"a wgmma of warpgroup {i}") for i in range(self._per_block)]
        self._groups = [_Group(agents[i % self._per_block]) for i in range(self._per_block * m.geometry.blocks)]
        watched = _watched(m)
        self._busy = {name: np.zeros(len(self._groups), np.int64) for name in watched}  # number of the last product
        self._dirty = {name: np.zeros(len(self._groups), np.bool_) for name in watched}

    def group_of(self, lanes: Index) -> Index:
        """Give the warpgroup of each lane, all blocks counted."""
        g = self._m.geometry
        return g.slot[lanes] * self._per_block + g.thread[lanes] // WARPGROUP

    def agent_of(self, lane: int) -> int:
        """Give the agent that reads shared memory for the products of a lane's warpgroup."""
        return self._groups[int(self.group_of(np.array([lane]))[0])].agent

    # ---- registers

    def watch(self, ins: Instruction, action: Action) -> Action:
        """Add the checks of registers that wgmma uses to an instruction."""
        if ins.parts[0] == "wgmma" or (not callable(action) and not isinstance(action, Collective)):
            return action
        written, read = names_of(ins.operands[:1]) & self._busy.keys(), names_of(ins.operands[1:]) & self._busy.keys()
        if ins.parts[0] in ("st", "red"):
            written, read = set(), written | read
        if ins.guard and ins.guard in self._busy:
            read |= {ins.guard}
        if not written and not read:
            return action
        if (
            ins.parts[0] == "mov"
            and not isinstance(ins.operands[1], Vector)
            and not isinstance(ins.operands[0], Vector)
        ):
            return self._renaming(ins, action)
        inner = action.run if isinstance(action, Collective) else action

        def run(active: Active) -> None:
            """Run the instruction on registers that no product is under way for."""
            groups = np.unique(self.group_of(active.lanes))
            for name in read | written:
                self._check_idle(active, name, groups, "reads" if name in read else "writes")
            inner(active)
            for name in written | read:
                self._dirty[name][groups] = True
            for name in written:
                self._busy[name][groups] = 0

        return replace(action, run=run) if isinstance(action, Collective) else run

    def _renaming(self, ins: Instruction, action: Action) -> Action:
        target, source = ins.operands
        if not isinstance(target, Register) or isinstance(action, Collective) or not callable(action):
            raise PtxError(f"not modelled: {ins}")
        from_name = source.name if isinstance(source, Register) else ""
        move = action

        def run(active: Active) -> None:
            move(active)
            if target.name in self._busy:
                groups = np.unique(self.group_of(active.lanes))
                known = from_name in self._busy
                self._busy[target.name][groups] = self._busy[from_name][groups] if known else 0
                self._dirty[target.name][groups] = self._dirty[from_name][groups] if known else True

        return run

    def _check_idle(self, active: Active, name: str, groups: Index, what: str) -> None:
        for group in groups.tolist():
            busy = int(self._busy[name][group])
            if busy > self._groups[group].retired:
                fault = Fault(
                    int(np.flatnonzero(self.group_of(active.lanes) == group)[0]),
                    "wgmma",
                    f"the instruction {what} {name} before wgmma.wait_group has retired the product",
                    self._groups[group].lines[busy],
                )
                raise self._m.blame(active, fault)

    # ---- products

    def issue(self, active: Active, accumulators: set[str], fragments: set[str]) -> None:
        """Note one product of every active warpgroup, and check its registers."""
        for number in np.unique(self.group_of(active.lanes)).tolist():
            group = self._groups[number]
            for name in sorted(accumulators | fragments):
                if self._dirty[name][number] and not group.fenced:
                    lane = int(active.lanes[np.flatnonzero(self.group_of(active.lanes) == number)[0]])
                    self._m.fail(lane, "wgmma", f"{name} was used since the last wgmma.fence")
                if name not in accumulators:
                    self._check_idle(active, name, np.array([number]), "reads")
            group.issued += 1
            group.uncommitted = True
            group.lines[group.issued] = self._m.pc
            group.times[group.issued] = int(self._m.knowledge.time[number // self._per_block])
            for name in accumulators:
                self._busy[name][number] = group.issued

    def fence(self, active: Active) -> None:
        """Let the products that follow see what was written to registers."""
        groups = np.unique(self.group_of(active.lanes))
        for dirty in self._dirty.values():
            dirty[groups] = False
        for number in groups.tolist():
            self._groups[number].fenced = True

    def commit(self, active: Active) -> None:
        """Close the groups of products."""
        for number in np.unique(self.group_of(active.lanes)).tolist():
            group = self._groups[number]
            group.committed.append(group.issued)
            group.uncommitted = group.fenced = False
            self._m.knowledge.time[number // self._per_block] += 1

    def wait(self, active: Active, pending: int) -> None:
        """Retire all groups but the last some."""
        g, knows = self._m.geometry, self._m.knowledge.knows
        for number in np.unique(self.group_of(active.lanes)).tolist():
            group = self._groups[number]
            if len(group.committed) > pending:
                group.retired = max(group.retired, group.committed[-1 - pending])
                del group.committed[: len(group.committed) - pending]
            if group.retired:
                block = number // self._per_block
                threads = g.thread[active.lanes[self.group_of(active.lanes) == number]]
                knows[:, block, threads, group.agent] = group.times[group.retired]

    def check_exit(self, lanes: Index) -> None:
        """Refuse the end of threads whose products nobody has waited for."""
        for number in np.unique(self.group_of(lanes)).tolist():
            group = self._groups[number]
            if group.issued > group.retired:
                what = "not committed" if group.uncommitted else "not waited for"
                at = int(np.flatnonzero(self.group_of(lanes) == number)[0])
                raise Fault(
                    at, "wgmma", f"the thread ends while a product is under way, {what},", group.lines[group.issued]
                )


def names_of(operands: tuple[Operand, ...]) -> set[str]:
    """List the registers in operands."""
    found: set[str] = set()
    for operand in operands:
        if isinstance(operand, Vector):
            found |= names_of(operand.items)
        elif isinstance(operand, Register):
            found.add(operand.name)
        elif isinstance(operand, Address):
            found |= names_of((operand.base,))
    return found


def _watched(m: Machine) -> frozenset[str]:
    """List the registers that wgmma uses, and those that moves rename them to."""
    found: set[str] = set()
    moves = []
    for ins in m.entry.code:
        if ins.opcode.startswith("wgmma.mma_async"):
            found |= names_of(ins.operands[:2])
        elif ins.parts[0] == "mov" and all(isinstance(operand, Register) for operand in ins.operands):
            moves.append(tuple(operand.name for operand in ins.operands if isinstance(operand, Register)))
    size = -1
    while size != len(found):
        size = len(found)
        found |= {target for target, source in moves if source in found}
        found |= {source for target, source in moves if target in found}
    return frozenset(name for name in found if not name.startswith("%tid"))
