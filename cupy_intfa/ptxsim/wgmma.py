"""``wgmma``: products of a warpgroup on tiles in shared memory that descriptors name, or on A in registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from cupy_intfa.ptxsim.descriptor import Descriptor
from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.fragments import Layout, layout_a, layout_d
from cupy_intfa.ptxsim.in_flight import InFlight, names_of
from cupy_intfa.ptxsim.lanes import WARPGROUP, Active, Array, Index
from cupy_intfa.ptxsim.mma import ELEMENTS, product, registers
from cupy_intfa.ptxsim.operands import Immediate, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.registers import TYPES
from cupy_intfa.ptxsim.step import Action, Builder, Collective, Machine


def read_tile(
    m: Machine, part: InFlight, lanes: Index, bits: int, rows: int, depth: int, *, transposed: bool = False
) -> Array:
    """Read a tile through its descriptor for a warpgroup: bytes (rows, depth), or as stored where transposed."""
    units = Descriptor.decode(bits).units(rows, depth, transposed=transposed)
    flat = units.ravel()
    block = int(m.geometry.slot[lanes[0]])
    places = m.shared.locate(np.full(len(flat), block), flat, 16)
    askers = lanes[np.arange(len(flat)) * 37 % WARPGROUP]  # every thread must know some of the units
    agent = part.agent_of(int(lanes[0]))
    m.shared.shadow.read(askers, places, 16, m.pc, agent)
    m.trace.moved("read by wgmma", 16 * len(flat))
    content: Array = m.shared.bytes[places[:, None] + np.arange(16)].reshape(len(units), -1)
    return content


@cache
def _places(columns: int) -> Layout:
    """Layout of D: each warp of the four has the 16 rows of its m16n8 tiles."""
    one = layout_d(16, columns)
    rows = np.concatenate([one.rows + 16 * warp for warp in range(4)])
    return Layout(rows, np.concatenate([one.columns] * 4))


def _fragments(words: list[Array], lanes: Index, dtype: np.dtype[np.generic]) -> Array:
    """Lay A out of registers: (64, depth)."""
    depth = 32 // dtype.itemsize
    one = layout_a(16, depth, dtype.itemsize)
    elements = np.stack([word[lanes] if word.ndim else np.full(len(lanes), word) for word in words], axis=1)
    elements = np.ascontiguousarray(elements).view(dtype).reshape(4, 32, -1)
    matrix = np.zeros((4, 16, depth), dtype)
    matrix[:, one.rows, one.columns] = elements
    return matrix.reshape(64, depth)


@dataclass(frozen=True)
class _Product:
    """A ``wgmma.mma_async`` instruction, decoded."""

    columns: int
    result: str
    dtype_a: np.dtype[np.generic]
    dtype_b: np.dtype[np.generic]
    transposed_a: bool
    transposed_b: bool
    negated: tuple[bool, bool]


def _decode(ins: Instruction) -> _Product:
    shape, types = ins.parts[4], ins.parts[5:]
    if not shape.startswith("m64n") or len(types) != 3 or types[1] not in ELEMENTS or types[2] not in ELEMENTS:
        raise PtxError(f"not modelled: {ins.opcode}")
    flags = [operand.bits for operand in ins.operands[4:] if isinstance(operand, Immediate)]
    from_registers = isinstance(ins.operands[1], Vector)
    negated = tuple(flag != 1 for flag in flags[:2]) or (False, False)
    transposes = flags[2:]
    return _Product(
        columns=int(shape[4:].partition("k")[0]),
        result=types[0],
        dtype_a=ELEMENTS[types[1]],
        dtype_b=ELEMENTS[types[2]],
        transposed_a=bool(transposes and not from_registers and transposes[0]),
        transposed_b=bool(transposes and transposes[-1]),
        negated=(negated[0], negated[1]),
    )


def _mma_async(m: Machine, ins: Instruction) -> Action:
    p = _decode(ins)
    accumulators = registers(ins.operands[0])
    a, b = ins.operands[1:3]
    sources, puts = [m.read(r, p.result) for r in accumulators], [m.put_some(r, p.result) for r in accumulators]
    words = [m.read(r, "b32") for r in a.items] if isinstance(a, Vector) else [m.read(a, "u64")]
    descriptor, adds, places = m.read(b, "u64"), m.read(ins.operands[3], "pred"), _places(p.columns)
    part: InFlight = m.part("wgmma")
    names = names_of(ins.operands[:1]), names_of((a,)) if isinstance(a, Vector) else set[str]()
    if len(sources) != p.columns // 2:
        raise PtxError(f"{ins.opcode} with {len(sources)} registers: expected {p.columns // 2}")

    def operand_of(lanes: Index, bits: Array, rows: int, dtype: np.dtype[np.generic], *, t: bool) -> Array:
        values = bits[lanes] if bits.ndim else bits[None]
        if (values != values[0]).any():
            m.fail(int(lanes[0]), "wgmma", "lanes of a warpgroup name different descriptors")
        if t:
            stored = read_tile(
                m, part, lanes, int(values[0]), rows * dtype.itemsize, 32 // dtype.itemsize, transposed=True
            )
            return np.ascontiguousarray(stored.view(dtype).T)
        return read_tile(m, part, lanes, int(values[0]), rows, 32).view(dtype)

    def one(lanes: Index) -> None:
        if isinstance(a, Vector):
            left = _fragments(words, lanes, p.dtype_a)
        else:
            left = operand_of(lanes, words[0], 64, p.dtype_a, t=p.transposed_a)
        right = operand_of(lanes, descriptor, p.columns, p.dtype_b, t=p.transposed_b).T
        total = product(left, right)
        if p.negated[0] != p.negated[1]:
            total = -total
        keep = bool(np.broadcast_to(adds, m.geometry.count)[lanes[0]])
        before = np.zeros((64, p.columns), TYPES[p.result])
        if keep:
            before[places.rows, places.columns] = np.stack(
                [s[lanes] if s.ndim else np.full(WARPGROUP, s) for s in sources], 1
            )
        result = (total + before).astype(TYPES[p.result])
        m.trace.fragment(m.pc, left[None], right[None], before[None], result[None])
        elements = result[places.rows, places.columns]
        group = Active(lanes, m.geometry.count)
        for i, put in enumerate(puts):
            put(group, elements[:, i])

    def run(active: Active) -> None:
        part.issue(active, *names)
        for lanes in active.lanes.reshape(-1, WARPGROUP):
            try:
                one(lanes)
            except Fault as fault:
                shown = Fault(0, fault.check, fault.what, fault.pc)
                raise m.blame(Active(lanes[:1], m.geometry.count), shown) from None

    return Collective(run, size=WARPGROUP)


def _wgmma(m: Machine, ins: Instruction) -> Action:
    part: InFlight = m.part("wgmma")
    match ins.parts[1]:
        case "mma_async":
            return _mma_async(m, ins)
        case "fence":
            return Collective(part.fence, size=WARPGROUP)
        case "commit_group":
            return Collective(part.commit, size=WARPGROUP)
        case "wait_group":
            pending = int(m.read(ins.operands[0], "u32"))
            return Collective(lambda active: part.wait(active, pending), size=WARPGROUP)
    raise PtxError(f"not modelled: {ins.opcode}")


BUILDERS: Mapping[str, Builder] = {"wgmma": _wgmma}
"""Builders by the first part of the opcode."""
