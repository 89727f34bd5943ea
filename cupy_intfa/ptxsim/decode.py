"""From instructions to actions: which module knows which opcode."""

from __future__ import annotations

from collections.abc import Mapping

from cupy_intfa.ptxsim import (
    access,
    arithmetic,
    barriers,
    bits,
    convert,
    cp_async,
    fences,
    mbarrier,
    mma,
    warp,
    wgmma,
    wmma,
)
from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.operands import Symbol
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Branch, Builder, Exit, Machine


def _bra(m: Machine, ins: Instruction) -> Action:
    target = ins.operands[0]
    if not isinstance(target, Symbol) or target.name not in m.entry.labels:
        raise PtxError(f"no label {ins.arguments!r}")
    return Branch(m.entry.labels[target.name])


def _trap(m: Machine, ins: Instruction) -> Action:
    return lambda active: m.fail(int(active.lanes[0]), "trap", "the kernel stops itself")


_CONTROL: Mapping[str, Builder] = {
    "bra": _bra,
    "ret": lambda m, ins: Exit(),
    "exit": lambda m, ins: Exit(),
    "trap": _trap,
}
BUILDERS: Mapping[str, Builder] = {
    **_CONTROL,
    **arithmetic.BUILDERS,
    **bits.BUILDERS,
    **convert.BUILDERS,
    **access.BUILDERS,
    **warp.BUILDERS,
    **mma.BUILDERS,
    **barriers.BUILDERS,
    **cp_async.BUILDERS,
    **fences.BUILDERS,
    **mbarrier.BUILDERS,
    **wgmma.BUILDERS,
    **wmma.BUILDERS,
}
"""Builders by the first part of the opcode."""


def decode(m: Machine, ins: Instruction) -> Action:
    """Make an action of an instruction.

    Parameters
    ----------
    m : Machine
        Whose registers and memories it works on.
    ins : Instruction
        What it says.

    Returns
    -------
    Action
        What it does.

    Raises
    ------
    PtxError
        For what is not modelled; the text has the instruction and its line.
    """
    builder = BUILDERS.get(ins.parts[0])
    if builder is None:
        raise PtxError(f"not modelled: {ins} ({ins.line})")
    try:
        return builder(m, ins)
    except PtxError as error:
        raise PtxError(f"{error}; in {ins} ({ins.line})") from None
    except (KeyError, IndexError, AttributeError) as error:
        raise PtxError(f"not modelled: {ins} ({ins.line}): {type(error).__name__} {error}") from error
