"""Instructions that compute each lane by itself: sums and products, comparisons, selections, approximations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from cupy_intfa.ptxsim import rounding
from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Active, Array
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.registers import TYPES
from cupy_intfa.ptxsim.step import Builder, Machine, Run

Function = Callable[..., Any]


def apply(m: Machine, ins: Instruction, function: Function, types: tuple[str, ...], result: str) -> Run:
    """Make a step that computes operand 0 from the following ones, all lanes at once."""
    sources = [m.read(operand, kind) for operand, kind in zip(ins.operands[1:], types, strict=False)]
    put = m.put_all(ins.operands[0], result)
    if len(sources) == 1:
        (x,) = sources
        return lambda active: put(active, function(x))
    if len(sources) == 2:
        x, y = sources
        return lambda active: put(active, function(x, y))
    return lambda active: put(active, function(*sources))


def _kind(ins: Instruction) -> str:
    return ins.parts[-1]


def _mode(ins: Instruction) -> str:
    return next((part for part in ins.parts if part in rounding.MODES), "rn")


def _flushed(function: Function, ins: Instruction) -> Function:
    """Flush subnormal arguments and results of an instruction with ``.ftz``; make a NaN the GPU's in any."""
    flush, settle = rounding.flush, rounding.settle
    if "ftz" not in ins.parts:
        return lambda *x: rounding.canonical(function(*x))
    return lambda *x: settle(function(*map(flush, x)))


def _halves(function: Function) -> Function:
    """Work on both halves of packed float16."""
    return lambda *x: function(*(contiguous(a).view(np.float16) for a in x)).view(np.uint32)


def contiguous(x: Array) -> Array:
    """Lay values out one behind the other, a constant as one."""
    return np.ascontiguousarray(x if x.ndim else x[None])


def _nan(x: Array, *others: Array) -> Array:
    bad = np.isnan(x)
    for other in others:
        bad = bad | np.isnan(other)
    return bad


def _saturated(function: Function, *x: Array) -> Array:
    kept: Array = np.nan_to_num(np.clip(function(*x), 0, 1), nan=0.0)
    return kept


def _clipped(function: Function, kind: str, x: Array, y: Array) -> Array:
    limit = np.iinfo(TYPES[kind])
    kept: Array = np.clip(function(x.astype(np.int64), y.astype(np.int64)), limit.min, limit.max)
    return kept


def _float(ins: Instruction, function: Function) -> tuple[Function, str]:
    """Adapt a function of floats to an instruction's type and modifiers."""
    kind = _kind(ins)
    if "sat" in ins.parts:
        function = partial(_saturated, function)
    if kind == "f16x2":
        return _halves(function), kind
    return (_flushed(function, ins) if kind == "f32" else function), kind


_SIMPLE: Mapping[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
}


def _maximum(function: Function) -> Function:
    """Extend a maximum or minimum of two to three operands."""
    return lambda *x: function(x[0], x[1]) if len(x) == 2 else function(function(x[0], x[1]), x[2])


def _simple(m: Machine, ins: Instruction) -> Run:
    kind, name = _kind(ins), ins.parts[0]
    if kind == "pred" and name == "not":
        return apply(m, ins, np.logical_not, ("pred",), "pred")
    if TYPES[kind].kind == "f" or kind == "f16x2":
        return _float_simple(m, ins)
    function = _SIMPLE[name]
    if name in ("min", "max"):
        function = _maximum(function)
    if "sat" in ins.parts:
        function = partial(_clipped, _SIMPLE[name], kind)
    return apply(m, ins, function, (kind,) * 3, kind)


def _float_simple(m: Machine, ins: Instruction) -> Run:
    name, mode = ins.parts[0], _mode(ins)
    table: dict[str, Function] = {
        "add": np.add,
        "sub": np.subtract,
        "min": _maximum(np.fmin),
        "max": _maximum(np.fmax),
        "neg": np.negative,
        "abs": np.abs,
    }
    if "NaN" in ins.parts:
        table |= {"min": _maximum(np.minimum), "max": _maximum(np.maximum)}
    if mode != "rn":
        table |= {"add": partial(rounding.add, mode=mode), "sub": lambda x, y: rounding.add(x, np.negative(y), mode)}
    function, kind = _float(ins, table[name])
    return apply(m, ins, function, (kind,) * 3, kind)


def _mul(m: Machine, ins: Instruction) -> Run:
    kind, dtype = _kind(ins), TYPES[_kind(ins)]
    if dtype.kind == "f" or kind == "f16x2":
        mode = _mode(ins)
        function, kind = _float(ins, np.multiply if mode == "rn" else partial(rounding.multiply, mode=mode))
        return apply(m, ins, function, (kind, kind), kind)
    if "wide" in ins.parts:
        return apply(m, ins, _wide(kind), (kind, kind), _double(kind))
    return apply(m, ins, np.multiply if "lo" in ins.parts else _high(kind), (kind, kind), kind)


def _double(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def _wide(kind: str) -> Function:
    dtype = TYPES[_double(kind)]
    return lambda x, y: x.astype(dtype) * y.astype(dtype)


def _high(kind: str) -> Function:
    width = int(kind[1:])
    if width == 64:

        def high(x: Array, y: Array) -> Any:
            products = [int(a) * int(b) >> 64 for a, b in np.broadcast(x, y)]
            return np.array([p % (1 << 64) for p in products], np.uint64).view(TYPES[kind])

        return high
    wide = _wide(kind)
    return lambda x, y: (wide(x, y) >> width).astype(TYPES[kind])


def _mad(m: Machine, ins: Instruction) -> Run:
    kind = _kind(ins)
    if TYPES[kind].kind == "f":
        return _fma(m, ins)
    result = _double(kind) if "wide" in ins.parts else kind
    product = _wide(kind) if "wide" in ins.parts else np.multiply if "lo" in ins.parts else _high(kind)
    return apply(m, ins, lambda x, y, z: product(x, y) + z, (kind, kind, result), result)


def _fma(m: Machine, ins: Instruction) -> Run:
    if _kind(ins) == "f64":
        raise PtxError(f"not modelled: {ins.opcode}")
    fused = partial(rounding.fused, mode=_mode(ins))
    made, kind = _float(ins, (lambda *x: np.fmax(fused(*x), 0)) if "relu" in ins.parts else fused)
    return apply(m, ins, made, (kind,) * 3, kind)


def _div(m: Machine, ins: Instruction) -> Run:
    kind = _kind(ins)
    if TYPES[kind].kind == "f":
        function, kind = _float(ins, partial(rounding.divide, mode=_mode(ins)))
        return apply(m, ins, function, (kind, kind), kind)
    remainder = ins.parts[0] == "rem"

    def truncated(x: Array, y: Array) -> Any:
        divisor = np.where(y == 0, 1, y).astype(y.dtype)
        rest = np.fmod(x, divisor)
        return rest if remainder else (x - rest) // divisor

    return apply(m, ins, truncated, (kind, kind), kind)


def _unary_float(function: Function) -> Builder:
    def build(m: Machine, ins: Instruction) -> Run:
        made, kind = _float(ins, function)
        return apply(m, ins, made, (kind,), kind)

    return build


def _in_double(function: Function) -> Function:
    """Round a function of float64 to the argument's type: the approximate instructions, as well as they can be."""
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


def _dp4a(m: Machine, ins: Instruction) -> Run:
    first, second = (np.dtype("i1" if kind == "s32" else "u1") for kind in ins.parts[1:])

    def dot(x: Array, y: Array, z: Array) -> Any:
        a, b = (contiguous(v).view(t).reshape(-1, 4).astype(np.int32) for v, t in ((x, first), (y, second)))
        return np.einsum("ij,ij->i", a, b) + z

    return apply(m, ins, dot, ("u32", "u32", "s32"), "s32")


_COMPARE: Mapping[str, Function] = {
    "eq": np.equal,
    "ne": lambda x, y: (x < y) | (x > y) if x.dtype.kind == "f" else x != y,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": lambda x, y: (x == y) | _nan(x, y),
    "neu": np.not_equal,
    "ltu": lambda x, y: (x < y) | _nan(x, y),
    "leu": lambda x, y: (x <= y) | _nan(x, y),
    "gtu": lambda x, y: (x > y) | _nan(x, y),
    "geu": lambda x, y: (x >= y) | _nan(x, y),
    "num": lambda x, y: ~_nan(x, y),
    "nan": _nan,
}
_LOGIC: Mapping[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _of_flushed(function: Function, x: Array, y: Array) -> Array:
    result: Array = function(rounding.flush(x), rounding.flush(y))
    return result


def _setp(m: Machine, ins: Instruction) -> Run:
    kind, plain = _kind(ins), _COMPARE[ins.parts[1]]
    compare: Function = partial(_of_flushed, plain) if "ftz" in ins.parts else plain
    logic = _LOGIC.get(ins.parts[2]) if len(ins.parts) > 3 else None
    if logic is None:
        return apply(m, ins, compare, (kind, kind), "pred")
    return apply(m, ins, lambda x, y, p: logic(compare(x, y), p), (kind, kind, "pred"), "pred")


def _selp(m: Machine, ins: Instruction) -> Run:
    kind = _kind(ins)
    return apply(m, ins, lambda x, y, p: np.where(p, x, y), (kind, kind, "pred"), kind)


def _copysign(m: Machine, ins: Instruction) -> Run:
    return apply(m, ins, lambda x, y: np.copysign(y, x), (_kind(ins),) * 2, _kind(ins))


def _nothing(m: Machine, ins: Instruction) -> Run:
    return _pass


def _pass(active: Active) -> None:
    """Do nothing."""


BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(_SIMPLE, _simple),
    "mul": _mul,
    "mad": _mad,
    "fma": _fma,
    "div": _div,
    "rem": _div,
    "rcp": _unary_float(lambda x: np.divide(x.dtype.type(1), x)),
    "sqrt": _unary_float(np.sqrt),
    "rsqrt": _unary_float(_in_double(lambda x: 1 / np.sqrt(x))),
    "ex2": _unary_float(_in_double(np.exp2)),
    "lg2": _unary_float(_in_double(np.log2)),
    "tanh": _unary_float(_in_double(np.tanh)),
    "sin": _unary_float(_in_double(np.sin)),
    "cos": _unary_float(_in_double(np.cos)),
    "dp4a": _dp4a,
    "setp": _setp,
    "selp": _selp,
    "copysign": _copysign,
    "prefetch": _nothing,
    "nanosleep": _nothing,
    "griddepcontrol": _nothing,
}
"""Builders by the first part of the opcode."""
