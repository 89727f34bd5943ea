"""The operands of PTX instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Register:
    """A register, ``%r1`` or ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: ``bits`` of an integer or of a float of ``width`` bits; 0 wide for an integer of any type."""

    bits: int
    width: int = 0


@dataclass(frozen=True)
class Symbol:
    """A variable or a label."""

    name: str


@dataclass(frozen=True)
class Vector:
    """``{a, b}``, or ``a|b`` of an instruction with two results."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """``[base+offset]``, or ``[base, {coordinates}]`` of a tensor copy."""

    base: Operand
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


Operand = Register | Immediate | Symbol | Vector | Address


_FLOAT = re.compile(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})$")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")


def split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    if not text:
        return []
    if "{" not in text and "[" not in text:
        return [part.strip() for part in text.split(",")]
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


@lru_cache(maxsize=1 << 16)
def parse_operand(text: str) -> Operand:
    """Read one operand.

    Parameters
    ----------
    text : str
        As it stands in PTX.

    Returns
    -------
    Operand
        What it is.

    Examples
    --------
    >>> parse_operand("[%rd1+-16]")
    Address(base=Register(name='%rd1'), offset=-16, coordinates=())
    >>> parse_operand("0f3F800000")
    Immediate(bits=1065353216, width=32)
    """
    if text.startswith("["):
        base, *rest = split(text[1:-1])
        coordinates = parse_operand(rest[0]) if rest else Vector(())
        name, _, offset = base.partition("+")
        items = coordinates.items if isinstance(coordinates, Vector) else (coordinates,)
        return Address(parse_operand(name.strip()), int(offset, 0) if offset else 0, items)
    if text.startswith("{"):
        return Vector(tuple(parse_operand(part) for part in split(text[1:-1])))
    if "|" in text:
        return Vector(tuple(parse_operand(part.strip()) for part in text.split("|")))
    if found := _FLOAT.match(text):
        return Immediate(int(found[1], 16), 4 * len(found[1]))
    if _INTEGER.match(text):
        return Immediate(int(text.removesuffix("U"), 0))
    return Register(text) if text.startswith("%") or text == "_" else Symbol(text)
