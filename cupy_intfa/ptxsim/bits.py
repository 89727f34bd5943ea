"""Instructions on the bits of a word: shifts, fields, permutations of bytes, counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cupy_intfa.ptxsim.arithmetic import Function, apply, contiguous
from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Array
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.registers import TYPES
from cupy_intfa.ptxsim.step import Builder, Machine, Run


def _shift(m: Machine, ins: Instruction) -> Run:
    kind = ins.parts[-1]
    width, left = np.uint32(8 * TYPES[kind].itemsize), ins.parts[0] == "shl"

    def shift(x: Array, y: Array) -> Any:
        amount = np.minimum(y, width - 1).astype(x.dtype)
        shifted = x << amount if left else x >> amount
        gone = x >> x.dtype.type(width - 1) if not left and x.dtype.kind == "i" else x.dtype.type(0)
        return np.where(y < width, shifted, gone)

    return apply(m, ins, shift, (kind, "u32"), kind)


def _funnel(m: Machine, ins: Instruction) -> Run:
    left, clamp = "l" in ins.parts, "clamp" in ins.parts

    def shift(low: Array, high: Array, amount: Array) -> Any:
        by = np.minimum(amount, 32).astype(np.uint64) if clamp else (amount & 31).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        moved = (both << by) >> np.uint64(32) if left else both >> by
        return moved.astype(np.uint32)

    return apply(m, ins, shift, ("u32",) * 3, "u32")


def _field(m: Machine, ins: Instruction) -> Run:
    kind = ins.parts[-1]
    if kind not in ("b32", "u32", "s32"):
        raise PtxError(f"not modelled: {ins.opcode}")

    def mask_of(length: Array) -> Any:
        return (np.uint64(1) << np.minimum(length & 0xFF, 32).astype(np.uint64)) - np.uint64(1)

    def insert(x: Array, into: Array, start: Array, length: Array) -> Any:
        at = np.minimum(start & 0xFF, 63).astype(np.uint64)
        mask = mask_of(length) << at
        return ((into & ~mask) | ((x.astype(np.uint64) << at) & mask)).astype(np.uint32)

    def extract(x: Array, start: Array, length: Array) -> Any:
        at = np.minimum(start & 0xFF, 63).astype(np.uint64)
        wide = x.astype(np.int64).view(np.uint64)
        field = (wide >> at) & mask_of(length)
        if kind == "s32":
            sign = np.where(length & 0xFF, np.uint64(1) << (np.maximum(length & 0xFF, 1) - 1).astype(np.uint64), 0)
            field = np.where(field & sign.astype(np.uint64), field | ~mask_of(length), field)
        return field.astype(np.uint32).view(TYPES[kind])

    if ins.parts[0] == "bfi":
        return apply(m, ins, insert, ("u32",) * 4, "u32")
    return apply(m, ins, extract, (kind, "u32", "u32"), kind)


def _prmt(m: Machine, ins: Instruction) -> Run:
    if ins.opcode != "prmt.b32":
        raise PtxError(f"not modelled: {ins.opcode}")

    def permute(low: Array, high: Array, selector: Array) -> Any:
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        result = np.zeros(np.broadcast(low, high, selector).shape, np.uint32)
        for i in range(4):
            pick = (selector >> np.uint32(4 * i)) & np.uint32(15)
            byte = ((both >> ((pick & 7) * 8).astype(np.uint64)) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0))
            result |= np.where(pick & 8, sign, byte) << np.uint32(8 * i)
        return result

    return apply(m, ins, permute, ("u32",) * 3, "u32")


def _lop3(m: Machine, ins: Instruction) -> Run:
    def logic(x: Array, y: Array, z: Array, table: Array) -> Any:
        result = np.zeros(np.broadcast(x, y, z).shape, np.uint32)
        for i in range(8):
            if int(table) >> i & 1:
                terms = (a if i >> s & 1 else ~a for a, s in ((x, 2), (y, 1), (z, 0)))
                result |= np.bitwise_and.reduce(np.broadcast_arrays(*terms))
        return result

    return apply(m, ins, logic, ("u32",) * 4, "u32")


def _count(function: Function) -> Builder:
    return lambda m, ins: apply(m, ins, function, (ins.parts[-1],), "u32")


def _leading_zeros(x: Array) -> Array:
    width = 8 * x.dtype.itemsize
    return np.array([width - int(value).bit_length() for value in np.ravel(x)]).reshape(x.shape)


def _reverse(x: Array) -> Array:
    return (
        np.packbits(np.unpackbits(contiguous(x).view(np.uint8).reshape(-1, 4)[:, ::-1], axis=1)[:, ::-1], axis=1)[
            :, ::-1
        ]
        .copy()
        .view(np.uint32)[:, 0]
    )


BUILDERS: Mapping[str, Builder] = {
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfi": _field,
    "bfe": _field,
    "prmt": _prmt,
    "lop3": _lop3,
    "popc": _count(np.bitwise_count),
    "clz": _count(_leading_zeros),
    "brev": lambda m, ins: apply(m, ins, _reverse, ("u32",), "u32"),
}
"""Builders by the first part of the opcode."""
