"""Fences, and registers that move between warpgroups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Active
from cupy_intfa.ptxsim.mbarrier import Mbarriers
from cupy_intfa.ptxsim.operands import Immediate
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Builder, Collective, Machine

_REGISTERS = 65536  # of a multiprocessor


def _fence(m: Machine, ins: Instruction) -> Action:
    """Fences for the asynchronous proxy are modelled; barriers have to order what those between threads do anyway."""
    g = m.geometry
    if "mbarrier_init" in ins.parts:
        mbarriers: Mbarriers = m.part("mbarriers")
        return lambda active: mbarriers.fence(active.lanes)
    if not any(part.startswith("async") for part in ins.parts):
        return lambda active: None

    def run(active: Active) -> None:
        for block in np.unique(g.slot[active.lanes]).tolist():
            m.knowledge.fence(block, g.thread[active.lanes[g.slot[active.lanes] == block]])

    return run


class RegisterPool:
    """Registers per thread that warpgroups have asked for."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self._asked: dict[tuple[int, int], int] = {}

    def set(self, active: Active, count: int) -> None:
        """Set the registers of warpgroups; all that are known must fit together."""
        g = self._m.geometry
        for block, group in sorted(
            {*zip(g.slot[active.lanes].tolist(), (g.thread[active.lanes] // 128).tolist(), strict=True)}
        ):
            self._asked[block, group] = count
            total = 128 * sum(n for (at, _), n in self._asked.items() if at == block)
            if total > _REGISTERS:
                what = f"warpgroups ask for {total} registers together, a multiprocessor has {_REGISTERS}"
                self._m.fail(int(active.lanes[0]), "registers", what)


def _setmaxnreg(m: Machine, ins: Instruction) -> Action:
    operand = ins.operands[0]
    if not isinstance(operand, Immediate) or operand.bits % 8 or not 24 <= operand.bits <= 256:
        raise PtxError(f"{ins}: expected a multiple of 8 from 24 to 256")
    pool: RegisterPool = m.part("registers")
    return Collective(lambda active: pool.set(active, operand.bits), size=128)


BUILDERS: Mapping[str, Builder] = {"fence": _fence, "membar": _fence, "setmaxnreg": _setmaxnreg}
"""Builders by the first part of the opcode."""
