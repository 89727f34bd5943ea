"""``mma.sync``: the fragments of its shapes as the PTX ISA draws them, and the product of whole warps."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.fragments import Layout, layout_a, layout_b, layout_d
from cupy_intfa.ptxsim.lanes import Active, Array
from cupy_intfa.ptxsim.operands import Operand, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.step import Action, Builder, Collective, Machine

ELEMENTS = {
    "s8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
SHAPES = {"m16n8k32": (16, 8, 32), "m16n8k16": (16, 8, 16), "m16n8k8": (16, 8, 8), "m8n8k16": (8, 8, 16)}


def product(a: Array, b: Array) -> Array:
    """Multiply matrices (…, M, K) and (…, K, N): int32 for integers, float64 for floats, exact in both.

    8-bit and 16-bit products of K ≤ 32 summands are exact in float64; so are those of 8-bit integers in float32, which
    BLAS multiplies faster.
    """
    if a.dtype.kind in "iu":
        exact: Array = np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.int32)
        return exact
    total: Array = np.matmul(a.astype(np.float64), b.astype(np.float64))
    return total


def registers(operand: Operand) -> tuple[Operand, ...]:
    """List the registers of a fragment."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def to_matrix(
    words_of: list[Array], active: Active, layout: Layout, shape: tuple[int, int], dtype: np.dtype[np.generic]
) -> Array:
    """Lay fragments of all active warps out as matrices, (warps, rows, columns)."""
    count = len(active.lanes)
    words = np.empty((count, len(words_of)), np.uint32)
    for i, register in enumerate(words_of):
        words[:, i] = register if not register.ndim else active.of(register)
    elements = words.view(dtype).reshape(-1, 32, layout.rows.shape[1])
    matrix = np.zeros((count // 32, *shape), dtype)
    matrix[:, layout.rows, layout.columns] = elements
    return matrix


def _mma(m: Machine, ins: Instruction) -> Action:
    shape, types = ins.parts[3], ins.parts[6:]
    if ins.parts[1:3] != ("sync", "aligned") or shape not in SHAPES or ins.parts[4:6] != ("row", "col"):
        raise PtxError(f"not modelled: {ins.opcode}")
    result, type_a, type_b, added = types[-4:]
    if type_a not in ELEMENTS or type_b not in ELEMENTS or result not in ("s32", "f32") or added != result:
        raise PtxError(f"not modelled: {ins.opcode}")
    rows, columns, depth = SHAPES[shape]
    dtype_a, dtype_b = ELEMENTS[type_a], ELEMENTS[type_b]
    a, b, c = ([m.read(register, "b32") for register in registers(operand)] for operand in ins.operands[1:4])
    places_a, places_b = layout_a(rows, depth, dtype_a.itemsize), layout_b(depth, dtype_b.itemsize)
    places_d = layout_d(rows, columns)
    dtype_d = np.dtype(np.int32 if result == "s32" else np.float32)
    puts = [m.put_some(register, result) for register in registers(ins.operands[0])]
    if "satfinite" in ins.parts:
        raise PtxError(f"not modelled: {ins.opcode}")

    def run(active: Active) -> None:
        left = to_matrix(a, active, places_a, (rows, depth), dtype_a)
        right = to_matrix(b, active, places_b, (depth, columns), dtype_b)
        before = to_matrix(c, active, places_d, (rows, columns), dtype_d)
        with np.errstate(all="ignore"):
            total = (product(left, right) + before).astype(dtype_d)
        m.trace.fragment(m.pc, left, right, before, total)
        elements = total[:, places_d.rows, places_d.columns].reshape(len(active.lanes), -1)
        for i, put in enumerate(puts):
            put(active, elements[:, i])

    return Collective(run)


BUILDERS: Mapping[str, Builder] = {"mma": _mma}
"""Builders by the first part of the opcode."""
