"""Where variables and parameters lie, and how narrow the accesses of shared memory are."""

from __future__ import annotations

from cupy_intfa.ptxsim.parse import Entry, Variable
from cupy_intfa.ptxsim.registers import TYPES


def lay_out(variables: tuple[Variable, ...], start: int = 0) -> tuple[dict[str, int], int]:
    """Place variables one behind the other; their offsets and the end."""
    offsets = {}
    for variable in variables:
        start = -(-start // variable.align) * variable.align
        offsets[variable.name] = start
        start += variable.size
    return offsets, start


def grain_of(entry: Entry) -> int:
    """Give the bytes of the narrowest access that can be of shared memory, 4 at most."""
    widths = [4]
    for ins in entry.code:
        if ins.parts[0] in ("ld", "st", "atom", "red") and not {"global", "param", "local"} & set(ins.parts):
            widths.append(TYPES[ins.parts[-1]].itemsize)
    return min(widths)
