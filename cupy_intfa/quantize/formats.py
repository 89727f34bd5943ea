"""Number formats of 8 bits and fewer: integers, and codebooks (a table of levels, of which codes are the indices).

=====================  =====  =====================================================================================
format                 bits   levels
=====================  =====  =====================================================================================
`int8` `int4` `int2`   8 4 2  two's complement; symmetric quantisers leave the most negative one out
`uint8` `uint4`        8 4 2  from 0 on
`uint2`
`nf4`                  4      quantiles of a normal distribution (arXiv 2305.14314, appendix E)
`fp4_e2m1`             4      0 0.5 1 1.5 2 3 4 6 and their negatives (OCP MX, ml_dtypes.float4_e2m1fn)
`fp4_bnb`              4      the table of bitsandbytes: 0 0.0625 8 12 4 6 2 3 twelfths by code, then their negatives
`float8_e4m3`          8      ml_dtypes.float8_e4m3fn and float8_e5m2, finite values
`float8_e5m2`
`dynamic8`             8      decades from 10⁻⁶ to 1, each with twice as many steps as the one below (arXiv 2110.02861)
`dynamic8_unsigned`    8      the same without negative levels and with twice the steps, for second moments
=====================  =====  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cupy_intfa.quantize.arithmetic import Array, Namespace


@dataclass(frozen=True)
class Integers:
    """Integers of some bits.

    Parameters
    ----------
    bits : int
        8, 4 or 2.
    is_signed : bool
        Two's complement, or from 0 on.
    """

    bits: int
    is_signed: bool

    @property
    def low(self) -> int:
        """The smallest, −128 for int8."""
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def high(self) -> int:
        """The largest, 127 for int8."""
        return self.low + (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of unpacked codes."""
        return np.dtype(np.int8 if self.is_signed else np.uint8)


@dataclass(frozen=True, eq=False)
class Codebook:
    """A table of levels.

    Parameters
    ----------
    bits : int
        8 or 4.
    levels : ndarray (2**bits,), float32
        By code; NaN for a code that is not used.
    order : ndarray (used,), uint8
        Codes by increasing level.
    cuts : ndarray (used - 1,), float32
        x belongs to the level of rank k where k of these are smaller than x.
    largest : float
        Largest magnitude of a level: an absolute maximum is mapped to it.
    """

    bits: int
    levels: NDArray[np.float32]
    order: NDArray[np.uint8]
    cuts: NDArray[np.float32]
    largest: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of unpacked codes."""
        return np.dtype(np.uint8)

    def encode(self, x: Array, xp: Namespace) -> Array:
        """Give the code of the nearest level; what lies beyond the ends belongs to them."""
        return xp.asarray(self.order)[xp.searchsorted(xp.asarray(self.cuts), x)]

    def decode(self, codes: Array, xp: Namespace) -> Array:
        """Give the levels of codes, float32."""
        return xp.take(xp.asarray(self.levels), codes)


def make_codebook(levels: NDArray[np.float32], *, ties_to_even: bool = False) -> Codebook:
    """Find order and cuts of a table of levels.

    Parameters
    ----------
    levels : ndarray (2**bits,), float32
        By code; NaN or infinity for a code that is not used, and a level that comes twice has its first code.
    ties_to_even : bool
        Whether a value halfway between two levels takes the even code, as floats are rounded, or the lower level.

    Returns
    -------
    Codebook
        Ready to encode.

    Examples
    --------
    >>> book = make_codebook(np.float32([-1, 0, 0.5, 1]))
    >>> book.encode(np.float32([-0.5, -0.4, 0.2, 0.3, 9]), np).tolist()
    [0, 1, 1, 2, 3]
    """
    finite = np.flatnonzero(np.isfinite(levels))
    ranked, first = np.unique(levels[finite] + np.float32(0), return_index=True)  # + 0: one zero, not two
    order = finite[first].astype(np.uint8)
    middle = (ranked[:-1].astype(np.float64) + ranked[1:]) / 2
    # The largest float32 that is not above the middle: x > middle is the same as x > cut. A tie that goes up takes
    # the one before it.
    cuts = middle.astype(np.float32)
    above = cuts > middle
    if ties_to_even:
        above |= (cuts == middle) & (order[1:] % 2 == 0)
    cuts = np.where(above, np.nextafter(cuts, np.float32(-np.inf)), cuts)
    used = np.where(np.isfinite(levels), levels, np.float32(np.nan)).astype(np.float32)
    return Codebook(len(levels).bit_length() - 1, used, order, cuts, float(np.abs(ranked).max()))


INTEGERS: Mapping[str, Integers] = MappingProxyType(
    {f"{'' if signed else 'u'}int{bits}": Integers(bits, signed) for signed in (True, False) for bits in (8, 4, 2)}
)

# Appendix E of the QLoRA paper. The levels are quantiles of a normal distribution at equal steps of probability, apart
# for each sign so that 0 is one of them, divided by the largest.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_BNB = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
_FLOAT8 = {"float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
DECADES = 7  # of the dynamic map: 10⁻⁶ to 1

# Of 4 bits, with codes in the order of their levels in [-1, 1] and one cut between levels in a sixteenth at most: what
# formats_encode.cu can look up.
KERNEL_FORMATS = ("nf4",)
CODEBOOKS = ("nf4", "fp4_e2m1", "fp4_bnb", *_FLOAT8, "dynamic8", "dynamic8_unsigned")


def dynamic_levels(signed: bool) -> NDArray[np.float32]:
    """Make the levels of blockwise 8-bit optimiser state, sorted.

    The decade that ends at 10^(e − 6), e = 0 … 6, is cut into 2^e equal parts (2^(e+1) without a sign) from its tenth
    on, and the middle of each part is a level; 0 and 1 are added.

    Parameters
    ----------
    signed : bool
        With the negatives of all but 0 and 1.

    Returns
    -------
    ndarray (256,), float32
        Increasing.

    Examples
    --------
    >>> dynamic_levels(True)[[0, 127, 128, 255]].tolist()
    [-0.99296..., 0.0, 5.5e-07, 1.0]
    """
    levels = [0.0, 1.0]
    for decade in range(DECADES):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - DECADES + 1)
        levels += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(levels)).astype(np.float32)


@cache
def codebook(name: str) -> Codebook:
    """Look up a codebook.

    Parameters
    ----------
    name : str
        One of `CODEBOOKS`.

    Returns
    -------
    Codebook
        Made once.

    Raises
    ------
    ValueError
        If there is none of that name.

    Examples
    --------
    >>> codebook("fp4_e2m1").encode(np.float32([2.5, 2.6, -7]), np).tolist()
    [4, 5, 15]
    """
    if name == "nf4":
        return make_codebook(np.array(_NF4, np.float32))
    if name in ("fp4_e2m1", "fp4_bnb"):
        magnitudes = np.array(_FP4_E2M1 if name == "fp4_e2m1" else _FP4_BNB, np.float32)
        return make_codebook(np.concatenate((magnitudes, -magnitudes)), ties_to_even=name == "fp4_e2m1")
    if name in _FLOAT8:
        return make_codebook(np.arange(256, dtype=np.uint8).view(_FLOAT8[name]).astype(np.float32), ties_to_even=True)
    if name in ("dynamic8", "dynamic8_unsigned"):
        return make_codebook(dynamic_levels(name == "dynamic8"))
    raise ValueError(f"expected a codebook among {', '.join(CODEBOOKS)}, got {name!r}")


def integers(name: str) -> Integers:
    """Look up an integer format.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in INTEGERS:
        raise ValueError(f"expected an integer format among {', '.join(INTEGERS)}, got {name!r}")
    return INTEGERS[name]


def bits_of(name: str) -> int:
    """Give the bits of a code of any format."""
    return INTEGERS[name].bits if name in INTEGERS else codebook(name).bits
