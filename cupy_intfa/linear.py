"""Linear layers on quantised weights: integers by integers, or floats by what the integers stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_intfa.arrays import dtype_name
from cupy_intfa.gemm import int8_matmul
from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import Granularity, namespace_of
from cupy_intfa.quantize.outliers import DecomposedWeight
from cupy_intfa.quantize.tensor import QuantizedTensor

_ACTIVATIONS = ("int8", "float")
_SIGNED = ("int8", "int4", "int2")


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A linear layer, y = x · weightᵀ + bias, on a quantised weight.

    With ``activations="int8"`` (W8A8, W4A8) x is quantised to INT8 with a scale for every row, and integers are
    multiplied exactly by `int8_matmul`. A weight in groups of input channels takes a product for each group, which also
    has scales of x of its own: a loud channel coarsens its group, not the whole row. With ``"float"`` (W4A16, W8A16) x
    is multiplied by the dequantised weight in float32: any format, no integer product.

    Parameters
    ----------
    weight : QuantizedTensor (N, K)
        Outputs by inputs. For integer products signed integers without zero point, scaled per tensor, row or group.
    bias : array (N,), float32, optional
        Added at the end.
    activations : {"int8", "float"}
        What x becomes.

    Raises
    ------
    ValueError
        For a weight that is no matrix, or not of a kind that integer products take; for a bias of another length.

    Examples
    --------
    >>> weight = quantize_symmetric(np.float32([[1, 0.5], [-2, 4]]), "int8", "row")
    >>> QuantizedLinear(weight)(np.float32([[1, -1]])).tolist()
    [[0.496..., -6.01...]]
    >>> QuantizedLinear(weight, activations="float")(np.float32([[1, -1]])).tolist()
    [[0.496..., -6.01...]]
    """

    weight: QuantizedTensor
    bias: Array | None = None
    activations: str = "int8"

    def __post_init__(self) -> None:
        """Check that the weight is of a kind that the products take."""
        w = self.weight
        if self.activations not in _ACTIVATIONS:
            raise ValueError(f"activations={self.activations!r}: expected one of {_ACTIVATIONS}")
        if len(w.shape) != 2:
            raise ValueError(f"weight has shape {w.shape}: expected a matrix (N, K)")
        if self.bias is not None and self.bias.shape != (w.shape[0],):
            raise ValueError(f"bias has shape {self.bias.shape}: expected ({w.shape[0]},)")
        if self.activations == "float":
            return
        if w.format not in _SIGNED or w.zero_point is not None or w.minimum is not None:
            raise ValueError(
                f"weight is {w.format}, or has a zero point or minimum: expected one of {_SIGNED} with 0 at code 0, "
                "or activations='float'"
            )
        if w.granularity.kind not in ("tensor", "row", "group"):
            raise ValueError(
                f"weight is scaled per {w.granularity.kind}: expected tensor, row or group, or activations='float'"
            )

    def __call__(self, x: Array) -> Array:
        """Multiply.

        Parameters
        ----------
        x : array (…, K)
            float16, bfloat16 or float32, NumPy or CuPy; never written.

        Returns
        -------
        array (…, N), dtype of x
            Sums in int32 and float32, rounded once at the end.

        Raises
        ------
        ValueError
            If the last axis of x is not K, or its dtype not one of these.

        Examples
        --------
        >>> weight = quantize_symmetric(np.eye(2, dtype=np.float32), "int4", "row")
        >>> QuantizedLinear(weight)(np.ones((3, 1, 2), np.float16)).shape
        (3, 1, 2)
        """
        n, k = self.weight.shape
        if x.shape[-1:] != (k,):
            raise ValueError(f"x has shape {x.shape}: expected (..., {k})")
        if dtype_name(x) not in ("float16", "bfloat16", "float32"):
            raise ValueError(f"x has dtype {dtype_name(x)}: expected float16, bfloat16 or float32")
        rows = x.reshape(-1, k)
        product = self._by_integers(rows) if self.activations == "int8" else self._by_floats(rows)
        if self.bias is not None:
            product = product + self.bias.astype(np.float32)
        return product.astype(x.dtype).reshape(*x.shape[:-1], n)

    def _by_floats(self, rows: Array) -> Array:
        return rows.astype(np.float32) @ self.weight.dequantize().T

    def _by_integers(self, rows: Array) -> Array:
        """Sum the products of the groups: in each, one scale per row of x and one per row of the weight, or for all."""
        xp, (n, k) = namespace_of(rows), self.weight.shape
        product = xp.zeros((len(rows), n), np.float32)
        if len(rows) == 0 or n == 0 or k == 0:
            return product
        spec = self.weight.granularity if self.weight.granularity.kind == "group" else Granularity("row")
        inputs = quantize_symmetric(rows, "int8", spec)
        values, codes = inputs.codes(), self.weight.codes()
        scales = zip(inputs.group_scales().T, self.weight.group_scales().T, strict=True)
        span = spec.spans(rows.shape)[1]
        for i, (input_scale, weight_scale) in enumerate(scales):
            part = slice(i * span, (i + 1) * span)
            product += int8_matmul(values[:, part], codes[:, part].T, input_scale, weight_scale, out_dtype="float32")
        return product


@dataclass(frozen=True, eq=False)
class DecomposedLinear:
    """A linear layer whose loud input channels are multiplied in floats, and all others in INT8: LLM.int8().

    Parameters
    ----------
    weight : DecomposedWeight
        From `cupy_intfa.quantize.decompose`.
    bias : array (N,), float32, optional
        Added at the end.

    Raises
    ------
    ValueError
        For a bias of another length.

    Examples
    --------
    >>> from cupy_intfa.quantize import decompose, observe_inputs
    >>> x = np.float32([[0.5, 100, -1]])
    >>> split = decompose(np.float32([[1, 0.5, 0.25]]), observe_inputs(x))
    >>> split.columns.tolist(), DecomposedLinear(split)(x).tolist()
    ([1], [[50.25...]])
    """

    weight: DecomposedWeight
    bias: Array | None = None

    def __post_init__(self) -> None:
        """Check the bias, as the layer of the quiet channels does."""
        self._quiet()

    def __call__(self, x: Array) -> Array:
        """Multiply.

        Parameters
        ----------
        x : array (…, K), float32
            NumPy or CuPy; never written. Its loud channels are rounded to float16.

        Returns
        -------
        array (…, N), float32
            What `QuantizedLinear` gives for the others, plus the float16 part multiplied in float32.
        """
        quiet, columns = x.astype(np.float32), self.weight.columns
        loud = quiet[..., columns].astype(np.float16).astype(np.float32)
        quiet[..., columns] = 0
        return self._quiet()(quiet) + loud @ self.weight.outliers.astype(np.float32).T

    def _quiet(self) -> QuantizedLinear:
        return QuantizedLinear(self.weight.weight, self.bias)
