"""Loads, stores and atomics: which memory an address means, and the checks on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.memory import LOCAL, PARAM, SHARED, WINDOW
from cupy_intfa.ptxsim.operands import Address, Operand, Symbol, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.registers import TYPES
from cupy_intfa.ptxsim.step import Builder, Machine, Run

_SPACES = ("global", "shared", "local", "param", "const")
_WINDOWS = {SHARED >> 40: "shared", LOCAL >> 40: "local", PARAM >> 40: "param"}


def _space(ins: Instruction) -> str:
    """Name the memory of an instruction; empty for a generic address."""
    return next((part.partition("::")[0] for part in ins.parts if part.partition("::")[0] in _SPACES), "")


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def find_space(m: Machine, active: Active, addresses: Index) -> str:
    """Tell which memory generic addresses mean; all lanes must mean the same."""
    windows = addresses >> 40
    if (windows != windows[0]).any():
        m.fail(int(active.lanes[0]), "bounds", "generic addresses of one instruction in more than one memory")
    return _WINDOWS.get(int(windows[0]), "global")


def _within(offsets: Index, size: int, limit: int, what: str) -> Index:
    """Give offsets back; Fault where an access of ``size`` bytes lies beyond ``limit``, or is crooked."""
    for check, bad in (("bounds", offsets + size > limit), ("alignment", offsets % size != 0)):
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise Fault(at, check, f"{size} bytes at byte {offsets[at]} of {what}, which has {limit}")
    return offsets


class Access:
    """Reads and writes of the active lanes, with checks, in any memory."""

    def __init__(self, m: Machine, ins: Instruction, size: int) -> None:
        self._m = m
        self._space = _space(ins)
        self._size = size

    def _place(self, active: Active, addresses: Index, *, write: bool) -> tuple[Array, Index]:
        """Give the bytes of a memory and the place of each access in them."""
        m, size = self._m, self._size
        space = self._space or find_space(m, active, addresses)
        try:
            if space == "shared":
                lanes = active.lanes
                places = m.shared.locate(m.geometry.slot[lanes], addresses & WINDOW, size)
                (m.shared.shadow.write if write else m.shared.shadow.read)(lanes, places, size, m.pc)
                m.trace.shared(m.pc, lanes, addresses, size, write=write)
                return m.shared.bytes, places
            if space == "param":
                params = m.part("params")
                return params, _within(addresses & WINDOW, size, len(params), "the parameters")
            if space == "local":
                limit = m.part("local_size")
                own = _within(addresses & WINDOW, size, limit, "the thread's local memory")
                return m.part("local"), active.lanes * limit + own
            m.trace.moved("global written" if write else "global read", size * len(active.lanes))
            return m.memory.bytes, m.memory.locate(addresses, size, write=write)
        except Fault as fault:
            raise m.blame(active, fault) from None

    def load(self, active: Active, addresses: Index, dtype: np.dtype[np.generic]) -> Array:
        """Read the elements of each lane, (lanes, elements)."""
        memory, places = self._place(active, addresses, write=False)
        count = self._size // dtype.itemsize
        words = memory[: len(memory) // dtype.itemsize * dtype.itemsize].view(dtype)
        found: Array = words[(places // dtype.itemsize)[:, None] + np.arange(count)]
        return found

    def store(self, active: Active, addresses: Index, values: Array) -> None:
        """Write the elements of each lane, (lanes, elements)."""
        memory, places = self._place(active, addresses, write=True)
        words = memory[: len(memory) // values.itemsize * values.itemsize].view(values.dtype)
        index = (places // values.itemsize)[:, None] + np.arange(values.shape[1])
        words[index] = values
        differs = (words[index] != values).any(axis=1) & (values == values).all(axis=1)
        if differs.any():
            lane = int(active.lanes[np.flatnonzero(differs)[0]])
            self._m.fail(lane, "race", "lanes of this store write different values to one place")


def _ld(m: Machine, ins: Instruction) -> Run:
    kind, targets = ins.parts[-1], _items(ins.operands[0])
    dtype = TYPES[kind]
    source = ins.operands[1]
    if _space(ins) == "param" and isinstance(source, Address) and isinstance(source.base, Symbol):
        return _ld_param(m, source, targets, kind)
    puts = [m.put_some(item, kind) for item in targets]
    address, access = m.address(source), Access(m, ins, dtype.itemsize * len(targets))

    def run(active: Active) -> None:
        values = access.load(active, address(active), dtype)
        for i, put in enumerate(puts):
            put(active, values[:, i])

    return run


def _ld_param(m: Machine, source: Address, targets: tuple[Operand, ...], kind: str) -> Run:
    """Load a parameter at a fixed place: a constant."""
    dtype = TYPES[kind]
    offset = int(m.read(source.base, "u64")) & WINDOW
    start = offset + source.offset
    params = m.part("params")
    if start < 0 or start + dtype.itemsize * len(targets) > len(params):
        raise PtxError(f"ld.param reads byte {start} of {len(params)} bytes of parameters")
    values = params[start : start + dtype.itemsize * len(targets)].copy().view(dtype)
    puts = [m.put_all(item, kind) for item in targets]

    def run(active: Active) -> None:
        for put, value in zip(puts, values, strict=True):
            put(active, value)

    return run


def _st(m: Machine, ins: Instruction) -> Run:
    kind = ins.parts[-1]
    dtype = TYPES[kind]
    sources = [m.read(item, kind) for item in _items(ins.operands[1])]
    address, access = m.address(ins.operands[0]), Access(m, ins, dtype.itemsize * len(sources))

    def run(active: Active) -> None:
        values = np.empty((len(active.lanes), len(sources)), dtype)
        for i, source in enumerate(sources):
            values[:, i] = source if not source.ndim else active.of(source)
        access.store(active, address(active), values)

    return run


_ATOMIC: Mapping[str, Callable[[Array, Index, Array], None]] = {
    "add": np.add.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
    "or": np.bitwise_or.at,
    "and": np.bitwise_and.at,
    "xor": np.bitwise_xor.at,
}


def _atom(m: Machine, ins: Instruction) -> Run:
    """Make an atomic or a reduction; atomics of one place are ordered among themselves, and are no race."""
    operation = next((part for part in ins.parts if part in _ATOMIC), "")
    returns = ins.parts[0] == "atom"
    kind, space = ins.parts[-1], _space(ins)
    if not operation or space not in ("global", "shared"):
        raise PtxError(f"not modelled: {ins.opcode}")
    dtype = TYPES[kind]
    address, source = m.address(ins.operands[1 if returns else 0]), m.read(ins.operands[2 if returns else 1], kind)
    put = m.put_some(ins.operands[0], kind) if returns else None

    def run(active: Active) -> None:
        addresses = address(active)
        try:
            if space == "shared":
                places = m.shared.locate(m.geometry.slot[active.lanes], addresses & WINDOW, dtype.itemsize)
                m.shared.shadow.update(active.lanes, places, dtype.itemsize, m.pc)
                memory = m.shared.bytes
            else:
                places, memory = m.memory.locate(addresses, dtype.itemsize, write=True), m.memory.bytes
        except Fault as fault:
            raise m.blame(active, fault) from None
        words = memory[: len(memory) // dtype.itemsize * dtype.itemsize].view(dtype)
        index = places // dtype.itemsize
        values = np.broadcast_to(active.of(source) if source.ndim else source, index.shape)
        if put is not None:
            put(active, _before(words, index, values, operation))
        _ATOMIC[operation](words, index, values)

    return run


def _before(words: Array, index: Index, values: Array, operation: str) -> Array:
    """Give what each lane's atomic finds, the lanes one after the other."""
    if len(np.unique(index)) == len(index):
        return words[index].copy()
    copy, found = words.copy(), np.empty(len(index), words.dtype)
    for i, place in enumerate(index):
        found[i] = copy[place]
        _ATOMIC[operation](copy, np.array([place]), values[i : i + 1])
    return found


BUILDERS: Mapping[str, Builder] = {"ld": _ld, "ldu": _ld, "st": _st, "atom": _atom, "red": _atom}
"""Builders by the first part of the opcode."""
