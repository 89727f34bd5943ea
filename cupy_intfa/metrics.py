"""How far an array is from the one expected: first where NaN and infinity stand, then the errors."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "Element", "NonFinite", "compare"]

# Added to |expected| in the mean relative error, by the benchmark script of the paper's authors.
MRE_EPSILON = 1e-5


@dataclass(frozen=True)
class Element:
    """One element of a comparison.

    Attributes
    ----------
    index : tuple of int
        Its coordinates.
    actual, expected : float
        The two values.
    """

    index: tuple[int, ...]
    actual: float
    expected: float

    def __str__(self) -> str:
        """Say where it is and what stands there."""
        coordinates = ", ".join(map(str, self.index))
        return f"[{coordinates}]: {self.actual:.9g}, expected {self.expected:.9g}"


@dataclass(frozen=True)
class NonFinite:
    """NaN or infinity in one array where the other has something else.

    Attributes
    ----------
    mismatches : int
        How many positions differ in kind: finite, NaN, +inf, −inf.
    first : Element
        The first of them in row-major order.
    nan_actual, nan_expected, inf_actual, inf_expected : int
        How many NaN and infinities (either sign) each array holds.
    """

    mismatches: int
    first: Element
    nan_actual: int
    nan_expected: int
    inf_actual: int
    inf_expected: int

    def __str__(self) -> str:
        """Give the first that differs on one line and what each array holds on the next."""
        return (
            f"NaN or infinity in the wrong place (mismatches: {self.mismatches}), first {self.first}\n"
            f"NaN {self.nan_actual}, expected {self.nan_expected}; "
            f"infinite {self.inf_actual}, expected {self.inf_expected}"
        )


@dataclass(frozen=True)
class Comparison:
    """The errors of an array against the one expected, `a` against `b` below.

    Where NaN and infinity stand in the same places, the errors are those of the elements that are finite. Where they
    do not, `non_finite` says so and every error is NaN, so that no bound can hold by accident.

    Attributes
    ----------
    count : int
        How many elements are finite in both arrays.
    relative_rmse : float
        ‖a − b‖₂ / ‖b‖₂; 0 where both are 0, inf where only the denominator is.
    relative_l1 : float
        Σ|a − b| / Σ|b|, with the same rule.
    mean_relative_error : float
        The mean of |a − b| / (|b| + 1e-5) over all elements: the paper's MRE. The 1e-5, which keeps a zero of `b` from
        dividing, is its authors'; their script looks at the last few elements only. For an output that changes
        sign it is governed by the few elements nearest zero, and it depends on the unit of `b`.
    cosine : float
        The cosine of the angle between the arrays as vectors; 1 where both are 0, 0 where one is.
    sqnr_db : float
        The signal-to-quantisation-noise ratio in decibels, −20·log₁₀(relative_rmse).
    worst : Element or None
        The element with the largest |a − b|, the first if there are several; None if `count` is 0, and the first
        mismatch if there is one.
    non_finite : NonFinite or None
        None where NaN, +inf and −inf stand in the same places.
    """

    count: int
    relative_rmse: float
    relative_l1: float
    mean_relative_error: float
    cosine: float
    sqnr_db: float
    worst: Element | None
    non_finite: NonFinite | None

    def __str__(self) -> str:
        """Give the errors on one line and the worst element on the next, or what is not finite."""
        if self.non_finite is not None:
            return str(self.non_finite)
        return (
            f"relative RMSE {self.relative_rmse:.4g} ({self.sqnr_db:.1f} dB), relative L1 {self.relative_l1:.4g}, "
            f"MRE {self.mean_relative_error:.4g}, cosine {self.cosine:.7f}\n"
            f"worst of {self.count}: {'none' if self.worst is None else self.worst}"
        )


def compare(actual: Any, expected: Any) -> Comparison:
    """Compare an array with the one expected, in float64.

    Parameters
    ----------
    actual, expected : array
        Real arrays of one shape: NumPy, CuPy (copied to the host), or anything NumPy can read. Of any real dtype,
        8-bit floats and bfloat16 included; the two dtypes may differ. Below 1e140 in size, so that sums
        of squares stay finite.

    Returns
    -------
    Comparison
        Prints well; its fields are floats.

    Raises
    ------
    ValueError
        If the shapes differ or there is no element.
    TypeError
        If an array is not of real numbers.

    Notes
    -----
    The mean relative error is that of arXiv 2409.16997, section 4, over all elements.

    Examples
    --------
    >>> print(compare([[3.0, 4.0], [0.0, -1.1]], [[3.0, 4.0], [0.0, -1.0]]))
    relative RMSE 0.01961 (34.1 dB), relative L1 0.0125, MRE 0.025, cosine 0.9998166
    worst of 4: [1, 1]: -1.1, expected -1
    >>> compare([1.0, float("nan")], [1.0, 2.0]).relative_rmse
    nan
    >>> print(compare([1.0, float("nan")], [1.0, 2.0]))
    NaN or infinity in the wrong place (mismatches: 1), first [1]: nan, expected 2
    NaN 1, expected 0; infinite 0, expected 0
    """
    a, b = _float64(actual), _float64(expected)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"expected two arrays of one shape and not empty, got {a.shape} and {b.shape}")
    non_finite = _non_finite(a, b)
    if non_finite is not None:
        count = int(np.count_nonzero(np.isfinite(a) & np.isfinite(b)))
        nan = math.nan
        return Comparison(count, nan, nan, nan, nan, nan, worst=non_finite.first, non_finite=non_finite)
    finite = np.isfinite(b)
    difference = np.abs(np.subtract(a, b, out=np.zeros_like(b), where=finite))
    worst = _element(a, b, int(np.where(finite, difference, -1.0).argmax())) if finite.any() else None
    a, b, difference = a[finite], b[finite], difference[finite]
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    relative_rmse = _ratio(float(np.linalg.norm(difference)), norm_b)
    return Comparison(
        count=a.size,
        relative_rmse=relative_rmse,
        relative_l1=_ratio(float(difference.sum()), float(np.abs(b).sum())),
        mean_relative_error=float((difference / (np.abs(b) + MRE_EPSILON)).mean()) if a.size else 0.0,
        cosine=_cosine(float(a @ b), norm_a, norm_b),
        sqnr_db=-20.0 * math.log10(relative_rmse) if relative_rmse > 0.0 else math.inf,
        worst=worst,
        non_finite=None,
    )


def _float64(array: Any) -> NDArray[np.float64]:
    cupy = sys.modules.get("cupy")  # an array of CuPy's can only exist where CuPy was imported
    if cupy is not None and isinstance(array, cupy.ndarray):
        array = cupy.asnumpy(array)
    found = np.asarray(array)
    if not np.can_cast(found.dtype, np.float64, "same_kind"):
        raise TypeError(f"expected an array of real numbers, got dtype {found.dtype}")
    return found.astype(np.float64, copy=False)


def _non_finite(a: NDArray[np.float64], b: NDArray[np.float64]) -> NonFinite | None:
    """Compare the positions of NaN, +inf and −inf."""
    if np.isfinite(a).all() and np.isfinite(b).all():
        return None
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    inf_a, inf_b = np.isinf(a), np.isinf(b)
    mismatch = (nan_a != nan_b) | (inf_a != inf_b) | (inf_a & inf_b & (a != b))
    if not mismatch.any():
        return None
    counts = (int(np.count_nonzero(kind)) for kind in (nan_a, nan_b, inf_a, inf_b))
    return NonFinite(int(np.count_nonzero(mismatch)), _element(a, b, int(mismatch.argmax())), *counts)


def _element(a: NDArray[np.float64], b: NDArray[np.float64], flat: int) -> Element:
    index = tuple(int(i) for i in np.unravel_index(flat, b.shape))
    return Element(index, float(a[index]), float(b[index]))


def _ratio(error: float, size: float) -> float:
    if size == 0.0:
        return math.inf if error > 0.0 else 0.0
    return error / size


def _cosine(dot: float, norm_a: float, norm_b: float) -> float:
    if norm_a == 0.0 or norm_b == 0.0:
        return 1.0 if norm_a == norm_b else 0.0
    return max(-1.0, min(1.0, dot / norm_a / norm_b))  # rounding may pass 1 by an ulp
