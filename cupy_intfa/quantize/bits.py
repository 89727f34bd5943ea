"""Codes of 4 and 2 bits in bytes: the first code of a byte is in its lowest bits.

A byte of four 2-bit codes c₀ … c₃ is c₀ + 4·c₁ + 16·c₂ + 64·c₃, one of two 4-bit codes is c₀ + 16·c₁ (as ONNX and
PyTorch store them; bitsandbytes puts the first of two codes in the upper half). A signed code is stored as two's
complement, or with an offset of 8 (2 for 2 bits) as an unsigned number, as GPTQ files do: the two differ in the upper
bit alone.

CuPy arrays are packed and unpacked by kernels (kernels_cu/formats_pack.cu, formats_unpack.cu).
"""

from __future__ import annotations

import numpy as np

from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import namespace_of

ENCODINGS = ("twos_complement", "offset", "unsigned")


def pack_codes(codes: Array, bits: int, encoding: str = "twos_complement") -> Array:
    """Pack codes into bytes, along the last axis.

    Parameters
    ----------
    codes : array (..., n), int8 or uint8
        Within the range of the bits: what lies above them is cut off.
    bits : {8, 4, 2}
        Bits per code; 8 only changes the encoding.
    encoding : {"twos_complement", "offset", "unsigned"}
        How signed codes are stored; ``unsigned`` takes codes as they are.

    Returns
    -------
    array (..., ceil(n · bits / 8)), uint8
        The last byte is filled up with zero bits.

    Raises
    ------
    TypeError
        If the codes are not bytes.
    ValueError
        For other bits or encodings.

    Examples
    --------
    >>> [hex(byte) for byte in pack_codes(np.int8([1, -2, 7]), 4).tolist()]
    ['0xe1', '0x7']
    >>> [hex(byte) for byte in pack_codes(np.int8([1, -2, 7]), 4, "offset").tolist()]
    ['0x69', '0xf']
    """
    xp = namespace_of(codes)
    _check(codes, bits, encoding)
    if codes.dtype.itemsize != 1 or codes.dtype.kind not in "iu":
        raise TypeError(f"expected codes of dtype int8 or uint8, got {codes.dtype.name}")
    if xp is not np and bits < 8:
        from cupy_intfa.quantize import formats_launch  # compiles kernels: only where there is a GPU

        return formats_launch.pack(codes, bits, encoding)
    per_byte = 8 // bits
    raw = (codes.view(np.uint8) ^ np.uint8(_flip(bits, encoding))) & np.uint8((1 << bits) - 1)
    if missing := -codes.shape[-1] % per_byte:
        raw = xp.pad(raw, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    lanes = raw.reshape(*codes.shape[:-1], raw.shape[-1] // per_byte, per_byte)
    packed = lanes[..., 0].copy()
    for i in range(1, per_byte):
        packed |= lanes[..., i] << np.uint8(bits * i)
    return packed


def unpack_codes(packed: Array, bits: int, length: int, encoding: str = "twos_complement") -> Array:
    """Undo `pack_codes`.

    Parameters
    ----------
    packed : array (..., ceil(length · bits / 8)), uint8
        Bytes.
    bits : {8, 4, 2}
        Bits per code.
    length : int
        Codes along the last axis.
    encoding : {"twos_complement", "offset", "unsigned"}
        How they are stored.

    Returns
    -------
    array (..., length)
        int8; uint8 for ``unsigned``.

    Raises
    ------
    TypeError
        If the bytes are not uint8.
    ValueError
        For other bits or encodings, or a length that is not that of the bytes.

    Examples
    --------
    >>> unpack_codes(np.uint8([0xE1, 0x07]), 4, 3).tolist()
    [1, -2, 7]
    """
    xp = namespace_of(packed)
    _check(packed, bits, encoding)
    if packed.dtype != np.uint8:
        raise TypeError(f"expected packed codes of dtype uint8, got {packed.dtype.name}")
    per_byte = 8 // bits
    if -(-length // per_byte) != packed.shape[-1]:
        raise ValueError(f"{length} codes of {bits} bits take {-(-length // per_byte)} bytes, got {packed.shape[-1]}")
    if xp is not np and bits < 8:
        from cupy_intfa.quantize import formats_launch

        return formats_launch.unpack(packed, bits, length, encoding)
    shifts = xp.arange(0, 8, bits, dtype=np.uint8)
    raw = ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(
        *packed.shape[:-1], per_byte * packed.shape[-1]
    )
    raw = raw[..., :length]
    if encoding == "unsigned":
        return raw
    # Flipping the sign bit leaves code + 2^(bits - 1), also of two's complement.
    sign = np.uint8(1 << (bits - 1))
    return ((raw ^ (sign ^ np.uint8(_flip(bits, encoding)))) - sign).view(np.int8)


def _flip(bits: int, encoding: str) -> int:
    """Give the bit in which a stored code differs from two's complement."""
    return 1 << (bits - 1) if encoding == "offset" else 0


def _check(x: Array, bits: int, encoding: str) -> None:
    if bits not in (8, 4, 2):
        raise ValueError(f"expected 8, 4 or 2 bits, got {bits}")
    if encoding not in ENCODINGS:
        raise ValueError(f"expected an encoding among {', '.join(ENCODINGS)}, got {encoding!r}")
    if x.ndim == 0:
        raise ValueError("expected an array of one axis or more, got a scalar")
