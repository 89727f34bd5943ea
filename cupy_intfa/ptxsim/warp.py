"""Instructions of a warp: shuffles, votes, reductions, ``bar.warp.sync``, ``elect``, ``ldmatrix``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cupy_intfa.ptxsim.errors import Fault, PtxError
from cupy_intfa.ptxsim.lanes import Active, Array, Index
from cupy_intfa.ptxsim.memory import WINDOW
from cupy_intfa.ptxsim.operands import Operand, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Builder, Collective, Machine


def _value_and_predicate(operand: Operand) -> tuple[Operand, Operand | None]:
    if isinstance(operand, Vector):
        return operand.items[0], operand.items[1]
    return operand, None


def _members(m: Machine, operand: Operand) -> Array | None:
    """Read the mask of the lanes that take part; None where it is all of the warp."""
    mask = m.read(operand, "u32")
    return None if not mask.ndim and int(mask) == 0xFFFFFFFF else np.broadcast_to(mask, m.geometry.count)


def _shfl(m: Machine, ins: Instruction) -> Action:
    mode = ins.parts[2]
    target, predicate = _value_and_predicate(ins.operands[0])
    source, by, clamp = (m.read(operand, "u32") for operand in ins.operands[1:4])
    put = m.put_some(target, "b32")
    put_predicate = None if predicate is None else m.put_some(predicate, "pred")
    lane, count = m.geometry.thread % 32, m.geometry.count
    base = np.arange(count) - lane

    def run(active: Active) -> None:
        own = active.of(lane)
        delta, limits = (active.of(np.broadcast_to(x, count)).astype(np.int64) for x in (by, clamp))
        segment, bound = limits >> 8 & 31, limits & 31
        most, least = (own & segment) | (bound & ~segment), own & segment
        from_lane = {
            "up": own - delta,
            "down": own + delta,
            "bfly": own ^ delta,
            "idx": least | (delta & ~segment & 31),
        }[mode]
        good = from_lane >= most if mode == "up" else from_lane <= most
        from_lane = np.where(good, from_lane, own)
        reached = active.of(base) + from_lane
        if active.mask is not None and not active.mask[reached].all():
            at = int(np.flatnonzero(~active.mask[reached])[0])
            m.fail(int(active.lanes[at]), "divergence", f"shuffle from lane {from_lane[at]}, which takes no part")
        put(active, np.broadcast_to(source, count)[reached])
        if put_predicate is not None:
            put_predicate(active, good)

    return Collective(run, members=_members(m, ins.operands[4]))


def _groups(m: Machine, active: Active, members: Array | None) -> tuple[Index, Index, Index]:
    """Group lanes that work together: the first lane of each group, each lane's group, and the sizes of the groups.

    A group is a warp, or the lanes of a warp that name the same members.
    """
    key = m.geometry.warp[active.lanes]
    if members is not None:
        key = key << 32 | members[active.lanes]
    _, first, rows, sizes = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    return first, rows, sizes


def _vote(m: Machine, ins: Instruction) -> Action:
    mode, members = ins.parts[2], _members(m, ins.operands[2])
    source, count = m.read(ins.operands[1], "pred"), m.geometry.count
    put = m.put_some(ins.operands[0], "b32" if mode == "ballot" else "pred")

    def run(active: Active) -> None:
        values = active.of(np.broadcast_to(source, count))
        _, rows, sizes = _groups(m, active, members)
        if mode == "ballot":
            words = np.zeros(len(sizes), np.uint32)
            lane = (m.geometry.thread[active.lanes] % 32).astype(np.uint32)
            np.bitwise_or.at(words, rows, values.astype(np.uint32) << lane)
            put(active, words[rows])
            return
        true = np.bincount(rows, weights=values)
        result = {"any": true > 0, "all": true == sizes, "uni": (true == 0) | (true == sizes)}[mode]
        put(active, result[rows])

    return Collective(run, members=members)


_REDUCE: Mapping[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _redux(m: Machine, ins: Instruction) -> Action:
    kind, reduce, members = ins.parts[-1], _REDUCE[ins.parts[2]], _members(m, ins.operands[2])
    source, put = m.read(ins.operands[1], kind), m.put_some(ins.operands[0], kind)

    def run(active: Active) -> None:
        values = active.of(np.broadcast_to(source, m.geometry.count))
        first, rows, _ = _groups(m, active, members)
        result = values[first].copy()
        rest = np.ones(len(values), np.bool_)
        rest[first] = False
        reduce.at(result, rows[rest], values[rest])
        put(active, result[rows])

    return Collective(run, members=members)


def build_warp_barrier(m: Machine, ins: Instruction) -> Action:
    """Make ``bar.warp.sync``: the only instruction of a warp that orders its lanes' memory accesses."""
    members = _members(m, ins.operands[0])
    g = m.geometry

    def run(active: Active) -> None:
        """Order the accesses of the lanes that meet."""
        if active.full and members is None and g.threads % 32 == 0:
            m.knowledge.join_warps()
            return
        for warp in np.unique(g.warp[active.lanes]):
            lanes = active.lanes[g.warp[active.lanes] == warp]
            if members is None:
                m.knowledge.join(int(g.slot[lanes[0]]), g.thread[lanes])
            else:
                for mask in np.unique(members[lanes]):
                    m.knowledge.join(int(g.slot[lanes[0]]), g.thread[lanes[members[lanes] == mask]])

    return Collective(run, members=members)


def _elect(m: Machine, ins: Instruction) -> Action:
    target, predicate = _value_and_predicate(ins.operands[0])
    members, put = _members(m, ins.operands[1]), m.put_some(target, "b32")
    put_predicate = m.put_some(predicate, "pred") if predicate is not None else None

    def run(active: Active) -> None:
        lane = m.geometry.thread[active.lanes] % 32
        first, rows, _ = _groups(m, active, members)
        leader = lane[first][rows]
        put(active, leader)
        if put_predicate is not None:
            put_predicate(active, lane == leader)

    return Collective(run, members=members)


def _ldmatrix(m: Machine, ins: Instruction) -> Action:
    """Lanes 8i … 8i + 7 give the rows of matrix i; lane 4r + c receives columns 2c, 2c + 1 of row r of each matrix."""
    if ins.parts[1:4] != ("sync", "aligned", "m8n8") or ins.parts[-1] != "b16":
        raise PtxError(f"not modelled: {ins.opcode}")
    count, transposed = int(ins.parts[4][1:]), "trans" in ins.parts
    targets = ins.operands[0].items if isinstance(ins.operands[0], Vector) else (ins.operands[0],)
    puts = [m.put_some(target, "b32") for target in targets]
    address, g = m.address(ins.operands[1]), m.geometry
    if len(puts) != count:
        raise PtxError(f"{ins.opcode} with {len(puts)} results")

    def run(active: Active) -> None:
        addresses = address(active).reshape(-1, 32)[:, : 8 * count] & WINDOW
        lanes = active.lanes.reshape(-1, 32)[:, : 8 * count].ravel()
        flat = addresses.ravel()
        try:
            places = m.shared.locate(g.slot[lanes], flat, 16)
            m.shared.shadow.read(lanes, places, 16, m.pc)
        except Fault as fault:
            raise m.blame(Active(lanes, g.count), fault) from None
        m.trace.shared(m.pc, lanes, flat, 16, write=False)
        halves = m.shared.bytes.view(np.uint16)[(places // 2)[:, None] + np.arange(8)].reshape(-1, count, 8, 8)
        if transposed:
            halves = halves.swapaxes(2, 3)
        words = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, count, 32)
        for i, put in enumerate(puts):
            put(active, words[:, i].ravel())

    return Collective(run)


BUILDERS: Mapping[str, Builder] = {
    "shfl": _shfl,
    "vote": _vote,
    "redux": _redux,
    "elect": _elect,
    "ldmatrix": _ldmatrix,
}
"""Builders by the first part of the opcode."""
