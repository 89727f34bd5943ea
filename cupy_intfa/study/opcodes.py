"""The names of instructions, of machine code and of PTX: which class, which unit, how much of a product."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SHAPE = re.compile(r"m?(\d+)[xn](\d+)[xk](\d+)")
# As SASS writes the shapes of what one warp does.
_WARP_SHAPES = {
    "8816": 8 * 8 * 16,
    "8832": 8 * 8 * 32,
    "16816": 16 * 8 * 16,
    "16832": 16 * 8 * 32,
    "1688": 16 * 8 * 8,
}
_MATRIX = ("IMMA", "HMMA", "QMMA", "IGMMA", "HGMMA", "QGMMA")

CLASSES = ("tensor", "exponential", "convert", "float", "integer", "memory", "control")
_SASS = {
    "tensor": _MATRIX,
    "exponential": ("MUFU",),
    "convert": ("I2F", "F2I", "F2F", "I2FP", "F2FP", "I2I", "FRND"),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSETP", "FSEL", "FSET", "HADD2", "HFMA2", "HMUL2", "HMNMX2", "HSETP2"),
    "memory": ("LD", "ST", "ULDC", "RED", "ATOM", "UTMA", "CCTL", "MEMBAR", "FENCE"),
    "control": (
        *("BRA", "BAR", "BSSY", "BSYNC", "EXIT", "NOP", "SHFL", "VOTE", "WARP", "SYNCS", "DEPBAR", "ELECT", "CALL"),
        *("RET", "YIELD", "BREAK", "BMOV", "MATCH", "NANOSLEEP", "R2UR", "S2", "GETLMEM", "USETMAXREG", "ARRIVES"),
    ),
}
_PTX = {
    "tensor": ("mma", "wgmma.mma", "dp4a"),
    "exponential": ("ex2", "lg2", "rcp", "sqrt", "rsqrt"),
    "convert": ("cvt",),
    "memory": ("ld", "st.", "cp.", "red", "atom", "prefetch", "fence", "membar"),
    "control": ("bra", "bar", "shfl", "vote", "ret", "activemask", "elect", "mbarrier", "wgmma", "setmaxnreg", "match"),
}
_SLOW = ("MUFU", "I2F.", "F2I", "F2F.", "FRND", "ex2", "lg2", "rcp", "sqrt", "rsqrt")


def matrix_unit(opcode: str) -> str | None:
    """Name the unit that multiplies for an instruction.

    Parameters
    ----------
    opcode : str
        In full, of machine code or of PTX.

    Returns
    -------
    str or None
        As machine code begins (``IGMMA`` is Hopper's ``wgmma`` on int8), or ``dp4a``; None for another instruction.

    Examples
    --------
    >>> [matrix_unit(x) for x in ("IMMA.16832.U8.S8", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "FFMA")]
    ['IMMA', 'HMMA', None]
    """
    if opcode.startswith("dp4a"):
        return "dp4a"
    if opcode.startswith(_MATRIX):
        return opcode.split(".")[0]
    if not opcode.startswith(("mma.", "wgmma.mma")):
        return None
    group = "G" if opcode.startswith("wgmma") else ""
    kind = "I" if ".s8" in opcode or ".u8" in opcode else "Q" if ".e4m3" in opcode or ".e5m2" in opcode else "H"
    return f"{kind}{group}MMA"


def multiplications(opcode: str) -> int:
    """Count the multiplications of a matrix instruction.

    Parameters
    ----------
    opcode : str
        In full, of machine code or of PTX.

    Returns
    -------
    int
        Of one warp; 0 for another instruction. Four warps share a product of Hopper's.

    Raises
    ------
    ValueError
        For a matrix instruction whose shape is not known.

    Examples
    --------
    >>> [multiplications(x) for x in ("IMMA.16832.U8.S8", "IGMMA.64x128x32.S8.S8", "dp4a.u32.s32", "IADD3")]
    [4096, 65536, 128, 0]
    """
    unit = matrix_unit(opcode)
    if unit is None:
        return 0
    if unit == "dp4a":
        return 4 * 32
    for part in opcode.split("."):
        if part in _WARP_SHAPES:
            return _WARP_SHAPES[part]
        if shape := _SHAPE.fullmatch(part):
            m, n, k = map(int, shape.groups())
            return m * n * k // (4 if unit.endswith("GMMA") else 1)
    raise ValueError(f"{opcode}: a matrix instruction of unknown shape")


def classify(opcode: str) -> str:
    """Give the class of an instruction, of machine code or of PTX.

    Parameters
    ----------
    opcode : str
        In full; PTX in small letters.

    Returns
    -------
    str
        One of `CLASSES`.

    Examples
    --------
    >>> [classify(x) for x in ("FFMA.FTZ", "I2FP.F32.S32", "LDSM.16.M88.4", "VIMNMX3", "fma.rn.ftz.f32", "add.s32")]
    ['float', 'convert', 'memory', 'integer', 'float', 'integer']
    """
    table: Mapping[str, tuple[str, ...]] = _SASS if opcode[0].isupper() else _PTX
    for name, beginnings in table.items():
        if opcode.startswith(beginnings):
            return name
    return "float" if re.search(r"\.(bf|f)(16|32)(x2)?$", opcode) else "integer"


def is_slow(opcode: str) -> bool:
    """Tell whether the special function unit runs an instruction: exponentials, and conversions that are no packing.

    Parameters
    ----------
    opcode : str
        In full.

    Returns
    -------
    bool
        Of 16 results a clock instead of 64 and more.
    """
    return opcode.startswith(_SLOW) or opcode in ("I2F", "F2F")
