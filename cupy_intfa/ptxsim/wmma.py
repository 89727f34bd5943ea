"""``wmma`` of 8-bit integers, m16n16k16: products whose fragments have no layout that a program may rely on.

So the layout is the simulator's own, and no plain one: a lane holds eight neighbours of a row, or of a column of B, and
which ones is mixed up. A program that takes elements out of a fragment by their place gets others than it thinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.memory import WINDOW
from cupy_intfa.ptxsim.mma import ELEMENTS, product, registers
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Builder, Collective, Machine

_SIDE = 16
_PIECE = (11 * np.arange(32) + 5) % 32  # which eight neighbours a lane holds
_ORDER = {"a": "row", "b": "col", "d": "row"}  # the order in which a line of each matrix lies in memory here


def _lay(words: Array) -> Array:
    """Lay the elements of fragments (threads, 8) out as matrices (warps, 16, 16), line by line."""
    found = np.empty((len(words) // 32, 32, 8), words.dtype)
    found[:, _PIECE] = words.reshape(-1, 32, 8)
    return found.reshape(-1, _SIDE, _SIDE)


def _hold(lines: Array) -> Array:
    """Give the elements that lanes hold of matrices (warps, 16, 16): (threads, 8)."""
    return np.ascontiguousarray(lines.reshape(-1, 32, 8)[:, _PIECE]).reshape(-1, 8)


def _pieces(m: Machine, ins: Instruction, at: int, itemsize: int) -> Callable[[Active], Index]:
    """Make what gives the address of each lane's eight neighbours; the last operand is the distance of two lines."""
    address, stride = m.address(ins.operands[at]), m.read(ins.operands[2], "u32")

    def places(active: Active) -> Index:
        steps = active.of(np.broadcast_to(stride, m.geometry.count)).astype(np.int64)
        piece = _PIECE[m.geometry.thread[active.lanes] % 32]
        found: Index = (address(active) & WINDOW) + itemsize * (piece // 2 * steps + piece % 2 * 8)
        return found

    return places


def _move(m: Machine, ins: Instruction) -> Action:
    """Make ``wmma.load`` or ``wmma.store``, of shared memory; a lane's eight neighbours have to be aligned as one."""
    kind = ins.parts[-1]
    dtype = np.dtype(np.int32) if kind == "s32" else ELEMENTS[kind]
    size, stores = 8 * dtype.itemsize, ins.parts[1] == "store"
    fragment = registers(ins.operands[1 if stores else 0])
    places = _pieces(m, ins, 0 if stores else 1, dtype.itemsize)
    held = [m.read(register, "b32") for register in fragment] if stores else []
    puts = [] if stores else [m.put_some(register, "b32") for register in fragment]

    def run(active: Active) -> None:
        lanes, addresses, shared = active.lanes, places(active), m.shared
        try:
            at = shared.locate(m.geometry.slot[lanes], addresses, size)
            (shared.shadow.write if stores else shared.shadow.read)(lanes, at, size, m.pc)
        except Fault as fault:
            raise m.blame(active, fault) from None
        m.trace.shared(m.pc, lanes, addresses, size, write=stores)
        index = at[:, None] + np.arange(size)
        if stores:
            words = np.stack([active.of(np.broadcast_to(x, m.geometry.count)) for x in held], axis=1)
            shared.bytes[index] = np.ascontiguousarray(words).view(np.uint8)
        for put, word in zip(puts, shared.bytes[index].view(np.uint32).T, strict=False):
            put(active, word)

    return Collective(run)


def _multiply(m: Machine, ins: Instruction) -> Action:
    *_, result, type_a, type_b, added = ins.parts
    if result != "s32" or added != "s32" or ins.parts[4:6] != ("row", "col"):
        raise PtxError(f"not modelled: {ins.opcode}")
    operands = zip(ins.operands[1:], (ELEMENTS[type_a], ELEMENTS[type_b], np.dtype(np.int32)), strict=True)
    sources = [([m.read(register, "b32") for register in registers(x)], dtype) for x, dtype in operands]
    puts = [m.put_some(register, "s32") for register in registers(ins.operands[0])]

    def run(active: Active) -> None:
        matrices = []
        for words, dtype in sources:
            stacked = np.stack([active.of(np.broadcast_to(x, m.geometry.count)) for x in words], axis=1)
            matrices.append(_lay(np.ascontiguousarray(stacked).view(dtype)))
        a, columns, c = matrices
        b = columns.swapaxes(1, 2)
        d = product(a, b) + c
        m.trace.fragment(m.pc, a, b, c, d)
        for put, column in zip(puts, _hold(d).T, strict=True):
            put(active, column)

    return Collective(run)


def _wmma(m: Machine, ins: Instruction) -> Action:
    shape = ("sync", "aligned", "m16n16k16")
    if ins.parts[1] == "mma" and (*ins.parts[2:4], ins.parts[6]) == shape:
        return _multiply(m, ins)
    wanted = (*shape[:2], _ORDER.get(ins.parts[2]), shape[2], "shared")
    if ins.parts[3:8] != wanted or ins.parts[-1] not in ("s8", "u8", "s32"):
        raise PtxError(f"not modelled: {ins.opcode}")
    return _move(m, ins)


BUILDERS: Mapping[str, Builder] = {"wmma": _wmma}
"""Builders by the first part of the opcode."""
