"""A quantised array: codes, scales, and what they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import ml_dtypes
import numpy as np

from cupy_intfa.quantize.archive import read_archive, write_archive
from cupy_intfa.quantize.arithmetic import FLOAT32_TINY, Array, Namespace, flush
from cupy_intfa.quantize.bits import pack_codes, unpack_codes
from cupy_intfa.quantize.formats import INTEGERS, KERNEL_FORMATS, bits_of, codebook
from cupy_intfa.quantize.granularity import KERNEL_BLOCK, Granularity, namespace_of, spread_groups

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_FLOAT32_MAX = np.float32(np.finfo(np.float32).max)
_U = 2.0**-24  # rounding of float32


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedTensor:
    """Codes with their scales, on NumPy or CuPy.

    An integer code q stands for ``(q − zero_point) · scale``, or with a float minimum for
    ``(q − lowest code) · scale + minimum``; a code of a codebook for ``level · scale + minimum``. A group that held
    a NaN or an infinity has scale NaN, so that all of it comes back as NaN.

    Parameters
    ----------
    values : array, uint8 or int8
        Codes. Those of 8 bits have the array's shape; smaller ones are packed along the last axis
        (`cupy_intfa.quantize.bits`), or all in one row where the granularity is ``flat``.
    scale : array, float32, or QuantizedTensor
        One per group, of shape ``granularity.scale_shape(shape)``; quantised itself in double quantisation.
    shape : tuple of int
        Of the array that was quantised.
    format : str
        One of `cupy_intfa.quantize.formats`.
    granularity : Granularity
        Which elements share a scale.
    zero_point : array, int32, or None
        The code of 0, per group; None for 0.
    minimum : array, float32, or None
        What the lowest code stands for (of a codebook: what level 0 stands for), per group or one for all.

    Examples
    --------
    >>> from cupy_intfa.quantize.affine import quantize_symmetric
    >>> x = quantize_symmetric(np.float32([[1, -2], [3, 127]]), "int8", "row")
    >>> x.codes().tolist(), x.bits_per_element
    ([[64, -127], [3, 127]], 24.0)
    """

    values: Array
    scale: Array | QuantizedTensor
    shape: tuple[int, ...]
    format: str
    granularity: Granularity
    zero_point: Array | None = None
    minimum: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for array in self._arrays().values())

    @property
    def bits_per_element(self) -> float:
        """Bits of all arrays, scales and padding included, per element of the array; NaN for an empty one."""
        count = math.prod(self.shape)
        return 8 * self.nbytes / count if count else math.nan

    def codes(self) -> Array:
        """Give the codes, one to a byte.

        Returns
        -------
        array (shape), int8 or uint8
            Indices of levels for a codebook.
        """
        bits = bits_of(self.format)
        if bits == 8:
            return self.values
        encoding = "twos_complement" if self.format in INTEGERS and INTEGERS[self.format].is_signed else "unsigned"
        length = math.prod(self.shape) if self.granularity.kind == "flat" else self.shape[-1]
        return unpack_codes(self.values, bits, length, encoding).reshape(self.shape)

    def scales(self) -> Array:
        """Give the scales so that they broadcast against the array: float32, dequantised if they are quantised."""
        return self._spread(self.group_scales())

    def group_scales(self) -> Array:
        """Give the scales, one per group: float32, dequantised if they are quantised."""
        return self.scale.dequantize() if isinstance(self.scale, QuantizedTensor) else self.scale

    def dequantize(self, dtype: str = "float32") -> Array:
        """Give back what the codes stand for.

        Parameters
        ----------
        dtype : {"float32", "float16", "bfloat16"}
            What the float32 result is rounded to.

        Returns
        -------
        array (shape)
            Each product and sum rounded once; NaN for a group that held something not finite.

        Raises
        ------
        ValueError
            For another dtype.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"expected a dtype among {', '.join(_DTYPES)}, got {dtype!r}")
        xp = namespace_of(self.values)
        if xp is not np and self.format in KERNEL_FORMATS and self.granularity == KERNEL_BLOCK and self.minimum is None:
            from cupy_intfa.quantize import formats_launch  # compiles kernels: only where there is a GPU

            return formats_launch.decode(self.values, self.group_scales(), self.format, self.shape, _DTYPES[dtype])
        with np.errstate(over="ignore"):
            return self._float32(xp).astype(_DTYPES[dtype], copy=False)

    def _spread(self, x: Array) -> Array:
        """Make what there is one of, or one per group, broadcast against the array."""
        if x.size == 1:
            return x.reshape((1,) * len(self.shape))
        return spread_groups(x, self.granularity, self.shape, namespace_of(x))

    def _float32(self, xp: Namespace) -> Array:
        if self.format in INTEGERS:
            zero = INTEGERS[self.format].low if self.minimum is not None else 0
            if self.zero_point is not None:
                zero = self._spread(self.zero_point)
            steps = (self.codes().astype(np.int32) - zero).astype(np.float32)
        else:
            steps = codebook(self.format).decode(self.codes(), xp)
        with np.errstate(over="ignore"):  # 127 · (3.4e38 / 127) may round to infinity
            product = xp.clip(flush(steps * self.scales(), xp), -_FLOAT32_MAX, _FLOAT32_MAX)
            if self.minimum is None:
                return product
            return xp.clip(flush(product + self._spread(self.minimum), xp), -_FLOAT32_MAX, _FLOAT32_MAX)

    def error_bound(self) -> Array:
        """Bound the distance between an array and what comes back, where it lies inside the range of the codes.

        Half a step, the gap between neighbouring levels, and what float32 rounds: the quotient by 2⁻²⁴ of up to 2^bits
        steps and the product by as much, a subnormal that is read as 0, with a minimum the difference and the sum by
        2⁻²⁴ of what is added, and with quantised scales their own error times the largest level.

        Returns
        -------
        array, float64
            Broadcasts against the array.
        """
        xp = namespace_of(self.values)
        scale = self.scales().astype(np.float64)
        if self.format in INTEGERS:
            half, reach = 0.5, float(1 << INTEGERS[self.format].bits)
        else:
            book = codebook(self.format)
            half, reach = float(np.diff(book.levels[book.order].astype(np.float64)).max() / 2), book.largest
        bound = scale * (half + 4 * reach * _U) + 2 * float(FLOAT32_TINY)
        if isinstance(self.scale, QuantizedTensor):
            moved = xp.broadcast_to(self.scale.error_bound(), self.scale.shape)
            bound = bound + self._spread(moved) * (half + reach)
        if self.minimum is None:
            return bound
        return bound + 4 * _U * (xp.abs(self._spread(self.minimum).astype(np.float64)) + reach * scale)

    def save(self, file: str | PathLike[str]) -> None:
        """Write everything to an ``.npz`` file that `load` reads (no pickle).

        Parameters
        ----------
        file : str or path
            Where to; NumPy appends ``.npz`` if it is missing.
        """
        write_archive(file, type(self).__name__, {"tensor": self._describe()}, self._arrays())

    @classmethod
    def load(cls, file: str | PathLike[str]) -> QuantizedTensor:
        """Read what `save` wrote.

        Parameters
        ----------
        file : str or path
            An ``.npz`` file.

        Returns
        -------
        QuantizedTensor
            With NumPy arrays.

        Raises
        ------
        ValueError
            When the file is not one of ours, or of another version.
        """
        header, arrays = read_archive(file, cls.__name__)
        return cls._build(header["tensor"], arrays)

    def _arrays(self, prefix: str = "") -> dict[str, Array]:
        found: dict[str, Array] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, QuantizedTensor):
                found |= value._arrays(f"{prefix}{f.name}.")
            elif hasattr(value, "nbytes"):
                found[prefix + f.name] = value
        return found

    def _describe(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "format": self.format,
            "granularity": [self.granularity.kind, self.granularity.sizes],
            "scale": self.scale._describe() if isinstance(self.scale, QuantizedTensor) else None,
        }

    @classmethod
    def _build(cls, described: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str = "") -> QuantizedTensor:
        kind, size = described["granularity"]
        nested = described["scale"]
        return cls(
            values=arrays[f"{prefix}values"],
            scale=cls._build(nested, arrays, f"{prefix}scale.") if nested else arrays[f"{prefix}scale"],
            shape=tuple(described["shape"]),
            format=described["format"],
            granularity=Granularity(kind, tuple(size)),
            zero_point=arrays.get(f"{prefix}zero_point"),
            minimum=arrays.get(f"{prefix}minimum"),
        )


def pack_tensor(
    codes: Array,
    scale: Array | QuantizedTensor,
    format: str,
    granularity: Granularity,
    *,
    zero_point: Array | None = None,
    minimum: Array | None = None,
) -> QuantizedTensor:
    """Make a QuantizedTensor of codes that stand one to a byte.

    Parameters
    ----------
    codes : array, int8 or uint8
        Of the shape of what was quantised.
    scale : array, float32, or QuantizedTensor
        One per group.
    format : str
        Of the codes.
    granularity : Granularity
        Of the scales.
    zero_point : array, int32, optional
        The code of 0, per group.
    minimum : array, float32, optional
        What the lowest code stands for.

    Returns
    -------
    QuantizedTensor
        With the codes packed, if they have fewer than 8 bits.
    """
    bits, shape = bits_of(format), tuple(codes.shape)
    if bits < 8:
        codes = pack_codes(codes.reshape(-1) if granularity.kind == "flat" else codes, bits)
    return QuantizedTensor(
        values=codes,
        scale=scale,
        shape=shape,
        format=format,
        granularity=granularity,
        zero_point=zero_point,
        minimum=minimum,
    )
