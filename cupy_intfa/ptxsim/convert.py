"""Conversions and moves: ``cvt``, ``mov`` with packing and unpacking, ``cvta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from cupy_intfa.ptxsim import rounding
from cupy_intfa.ptxsim.arithmetic import apply
from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Active, Array
from cupy_intfa.ptxsim.memory import LOCAL, SHARED, WINDOW
from cupy_intfa.ptxsim.operands import Immediate, Vector
from cupy_intfa.ptxsim.parse import Instruction
from cupy_intfa.ptxsim.registers import TYPES
from cupy_intfa.ptxsim.step import Builder, Machine, Run

Function = Callable[[Array], Array]

_INTEGRAL = ("rni", "rzi", "rmi", "rpi")
_LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
_NARROW = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def _integers(source: str, target: str, saturates: bool) -> Function:
    dtype = TYPES[target]
    if not saturates:
        return lambda x: x.astype(dtype)
    limit, wide = np.iinfo(dtype), np.uint64 if TYPES[source].kind == "u" else np.int64
    low = max(limit.min, 0) if wide is np.uint64 else limit.min
    high = min(limit.max, np.iinfo(wide).max)
    return lambda x: np.clip(x.astype(wide), wide(low), wide(high)).astype(dtype)


def _float_to_integer(target: str, mode: str, ftz: bool) -> Function:
    dtype = TYPES[target]
    limit = np.iinfo(dtype)
    low, high = float(limit.min), float(limit.max)

    def convert(x: Array) -> Array:
        x = rounding.flush(x) if ftz and x.dtype == np.float32 else x
        rounded = rounding.to_integral(np.where(np.isnan(x), 0, x).astype(np.float64), mode)
        clipped = np.clip(rounded, low, high)
        # The largest 64-bit integers are no float64: what reaches them is put in by hand.
        return np.where(clipped >= high, limit.max, np.where(clipped >= high, 0, clipped).astype(dtype)).astype(dtype)

    return convert


def _to_float(target: str, mode: str) -> Function:
    dtype = TYPES[target]
    if mode == "rn" and dtype == np.float16:
        return lambda x: _to_half(np.atleast_1d(x), dtype).view(dtype) if x.dtype.kind == "f" else x.astype(dtype)
    if mode == "rn" and dtype == np.float32:
        return lambda x: rounding.canonical(x.astype(dtype))
    if mode == "rn" or dtype == np.float64:
        return lambda x: x.astype(dtype)
    return lambda x: rounding.narrow(x.astype(np.float64), np.zeros(x.shape), mode, dtype.type)


def _to_bfloat16(mode: str) -> Function:
    if mode != "rn":
        raise PtxError(f"not modelled: rounding {mode} to bfloat16")
    return lambda x: _to_half(np.ascontiguousarray(x, np.float32), np.dtype(ml_dtypes.bfloat16))


def _bfloat16_to(target: str) -> Function:
    return lambda x: (x.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(TYPES[target])


def _to_half(x: Array, dtype: np.dtype[np.generic]) -> Array:
    """Round to the bits of float16 or bfloat16; a NaN becomes the GPU's."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(dtype).view(np.uint16))


def _pack_two(high: Array, low: Array, kind: str) -> Array:
    """Two floats as a register of two: float16, bfloat16, or 8-bit floats that saturate."""
    if kind in _NARROW:
        dtype = np.dtype(_NARROW[kind])
        largest = np.float32(_LARGEST[kind])
        codes = [
            np.where(np.isnan(x), 0x7F, np.clip(x, -largest, largest).astype(dtype).view(np.uint8)).astype(np.uint8)
            for x in (np.atleast_1d(low), np.atleast_1d(high))
        ]
        return codes[0].astype(np.uint16) | codes[1].astype(np.uint16) << np.uint16(8)
    dtype = np.dtype(np.float16 if kind == "f16" else ml_dtypes.bfloat16)
    halves = [_to_half(np.atleast_1d(x), dtype).astype(np.uint32) for x in (low, high)]
    return halves[0] | halves[1] << np.uint32(16)


def _widen_two(x: Array, code: np.dtype[np.generic]) -> Array:
    return np.ascontiguousarray(x).view(code).astype(np.float16).view(np.uint32)


def _cvt(m: Machine, ins: Instruction) -> Run:
    parts = ins.parts[1:]
    target, source = parts[-2], parts[-1]
    mode = next((part for part in parts if part in (*rounding.MODES, *_INTEGRAL)), "rn")
    if target.endswith("x2") and source == "f32":
        if mode != "rn" or "relu" in parts:
            raise PtxError(f"not modelled: {ins.opcode}")
        kind = target.removesuffix("x2")
        return apply(m, ins, lambda x, y: _pack_two(x, y, kind), ("f32", "f32"), "u16" if kind in _NARROW else "u32")
    if source.removesuffix("x2") in _NARROW and target == "f16x2":
        code = np.dtype(_NARROW[source.removesuffix("x2")])
        return apply(m, ins, lambda x: _widen_two(x, code), ("u16",), "u32")
    if target not in TYPES or source not in TYPES or target.endswith("x2"):
        raise PtxError(f"not modelled: {ins.opcode}")
    return apply(m, ins, _scalar(target, source, mode, parts), (source,), target)


def _scalar(target: str, source: str, mode: str, parts: tuple[str, ...]) -> Function:
    from_float, to_float = TYPES[source].kind == "f", TYPES[target].kind == "f"
    ftz = "ftz" in parts
    if target == "bf16":
        return _to_bfloat16(mode)
    if source == "bf16":
        return _bfloat16_to(target)
    if from_float and not to_float:
        return _float_to_integer(target, mode, ftz)
    if not from_float and not to_float:
        return _integers(source, target, "sat" in parts)
    convert = _to_integral(target, mode) if from_float and mode in _INTEGRAL else _to_float(target, mode)
    return (lambda x: _flush_float32(convert(_flush_float32(x)))) if ftz else convert


def _to_integral(target: str, mode: str) -> Function:
    return lambda x: rounding.to_integral(x, mode).astype(TYPES[target])


def _flush_float32(x: Array) -> Array:
    return rounding.flush(x) if x.dtype == np.float32 else x


def _mov(m: Machine, ins: Instruction) -> Run:
    kind = ins.parts[-1]
    target, source = ins.operands
    if isinstance(target, Vector):
        return _unpack(m, target, ins)
    if isinstance(source, Vector):
        return _pack(m, source, ins)
    if kind == "pred" and isinstance(source, Immediate):
        value, put = np.array(source.bits != 0), m.put_all(target, "pred")
        return lambda active: put(active, value)
    return apply(m, ins, lambda x: x, (kind,), kind)


def _unpack(m: Machine, target: Vector, ins: Instruction) -> Run:
    kind, count = ins.parts[-1], len(target.items)
    part = f"b{int(kind[1:]) // count}"
    source, dtype = m.read(ins.operands[1], kind), TYPES[part]
    puts = [m.put_all(item, part) for item in target.items]

    def run(active: Active) -> None:
        values = np.ascontiguousarray(np.broadcast_to(source, m.geometry.count)).view(dtype).reshape(-1, count)
        for i, put in enumerate(puts):
            put(active, values[:, i])

    return run


def _pack(m: Machine, source: Vector, ins: Instruction) -> Run:
    kind, count = ins.parts[-1], len(source.items)
    part = f"b{int(kind[1:]) // count}"
    sources = [m.read(item, part) for item in source.items]
    put = m.put_all(ins.operands[0], kind)

    def run(active: Active) -> None:
        values = np.stack([np.broadcast_to(x, m.geometry.count) for x in sources], axis=-1)
        put(active, values.view(TYPES[kind])[:, 0])

    return run


def _cvta(m: Machine, ins: Instruction) -> Run:
    window = {"shared": SHARED, "local": LOCAL}.get(next(p.partition("::")[0] for p in ins.parts[1:] if p != "to"), 0)
    kind = ins.parts[-1]
    if "to" in ins.parts:
        mask = np.uint64(WINDOW) if window else ~np.uint64(0)
        return apply(m, ins, lambda x: x & mask, (kind,), kind)
    return apply(m, ins, lambda x: x | np.uint64(window), (kind,), kind)


BUILDERS: Mapping[str, Builder] = {"cvt": _cvt, "mov": _mov, "cvta": _cvta}
"""Builders by the first part of the opcode."""
