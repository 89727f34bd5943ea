"""Metrics: hand-computed values, the rules at zero, NaN and infinity, and what holds for any pair of arrays."""

import math
import sys
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cupy_intfa.metrics import Element, NonFinite, compare

# Of float64: a figure is a few sums of at most 60 terms, each rounded once, and a root or a quotient.
ROUNDING = 1e-13

INF, NAN = math.inf, math.nan


def arrays(low: float = -(2.0**100), high: float = 2.0**100) -> st.SearchStrategy[Any]:
    """Draw float32 arrays of up to 60 elements."""
    return hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=4, max_side=4).filter(lambda shape: math.prod(shape) <= 60),
        elements=st.floats(low, high, width=32),
    )


def test_every_figure_by_hand() -> None:
    # a − b = (1, −2, 0, 2): ‖·‖ = 3, Σ|·| = 5. ‖b‖ = √(4 + 16 + 16 + 64) = 10, Σ|b| = 18, ‖a‖ = √(9 + 4 + 16 + 100).
    result = compare([3.0, 2.0, -4.0, 10.0], [2.0, 4.0, -4.0, 8.0])
    assert result.count == 4
    assert result.relative_rmse == pytest.approx(0.3, rel=ROUNDING)
    assert result.relative_l1 == pytest.approx(5 / 18, rel=ROUNDING)
    mean = (1 / 2.00001 + 2 / 4.00001 + 0 + 2 / 8.00001) / 4
    assert result.mean_relative_error == pytest.approx(mean, rel=ROUNDING)
    assert result.cosine == pytest.approx((6 + 8 + 16 + 80) / (math.sqrt(129) * 10), rel=ROUNDING)
    assert result.sqnr_db == pytest.approx(20 * math.log10(1 / 0.3), rel=ROUNDING)
    assert result.worst == Element((1,), 2.0, 4.0)  # the first of the two that are off by 2
    assert result.non_finite is None


def test_rmse_weighs_a_large_error_more_than_l1_does() -> None:
    spread = compare([1.1] * 100, [1.0] * 100)
    peaked = compare([11.0] + [1.0] * 99, [1.0] * 100)
    assert peaked.relative_l1 == pytest.approx(spread.relative_l1, rel=1e-12)  # 1.1 − 1 loses 2 bits more than 11 − 1
    assert peaked.relative_rmse == pytest.approx(10 * spread.relative_rmse, rel=1e-12)


@pytest.mark.parametrize(
    ("actual", "expected", "relative", "cosine", "sqnr"),
    [
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, 1.0, INF, id="both zero"),
        pytest.param([1.0, 0.0], [0.0, 0.0], INF, 0.0, -INF, id="something where nothing is expected"),
        pytest.param([0.0, 0.0], [1.0, 0.0], 1.0, 0.0, 0.0, id="nothing where something is expected"),
        pytest.param([-1.0, 0.0], [1.0, 0.0], 2.0, -1.0, -20 * math.log10(2), id="opposite"),
    ],
)
def test_zero_norms(actual: Any, expected: Any, relative: float, cosine: float, sqnr: float) -> None:
    result = compare(actual, expected)
    assert (result.relative_rmse, result.relative_l1, result.cosine) == (relative, relative, cosine)
    assert result.sqnr_db == pytest.approx(sqnr, rel=ROUNDING)


def test_mean_relative_error_divides_a_zero_by_epsilon() -> None:
    # One of four is expected to be 0 and is 2e-5: 2e-5 / 1e-5 / 4.
    assert compare([2e-5, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]).mean_relative_error == pytest.approx(0.5, rel=ROUNDING)


@pytest.mark.parametrize(
    ("actual", "expected", "mismatches", "first"),
    [
        pytest.param([1.0, NAN], [1.0, 2.0], 1, (1,), id="NaN for a number"),
        pytest.param([1.0, 2.0], [NAN, NAN], 2, (0,), id="numbers for NaN"),
        pytest.param([INF, 2.0], [-INF, 2.0], 1, (0,), id="infinity of the other sign"),
        pytest.param([0.0, NAN], [0.0, INF], 1, (1,), id="NaN for infinity"),
        pytest.param([0.0, 1e30], [0.0, INF], 1, (1,), id="a number for infinity"),
    ],
)
def test_non_finite_in_the_wrong_place_makes_every_figure_nan(
    actual: Any, expected: Any, mismatches: int, first: tuple[int, ...]
) -> None:
    result = compare(actual, expected)
    assert result.non_finite is not None
    assert result.non_finite.mismatches == mismatches
    assert result.non_finite.first.index == first
    assert result.worst == result.non_finite.first or math.isnan(actual[first[0]]) or math.isnan(expected[first[0]])
    figures = (
        result.relative_rmse,
        result.relative_l1,
        result.mean_relative_error,
        result.cosine,
        result.sqnr_db,
    )
    assert all(math.isnan(figure) for figure in figures)
    assert not result.relative_rmse <= 1e9  # how tests bound it: NaN never passes


def test_non_finite_report_counts_both_arrays() -> None:
    actual = np.array([[1.0, NAN, NAN], [INF, 5.0, 6.0]])
    expected = np.array([[1.0, NAN, 3.0], [-INF, 5.0, INF]])
    report = compare(actual, expected).non_finite
    assert isinstance(report, NonFinite)
    assert (report.mismatches, report.first.index) == (3, (0, 2))
    assert (report.nan_actual, report.nan_expected, report.inf_actual, report.inf_expected) == (2, 1, 1, 2)
    assert compare(actual, expected).count == 2  # 1 and 5
    assert str(report) == (
        "NaN or infinity in the wrong place (mismatches: 3), first [0, 2]: nan, expected 3\n"
        "NaN 2, expected 1; infinite 1, expected 2"
    )
    assert str(compare(actual, expected)) == str(report)


def test_non_finite_in_the_right_place_is_left_out() -> None:
    result = compare([NAN, INF, -INF, 3.0, 5.0], [NAN, INF, -INF, 3.0, 4.0])
    assert (result.count, result.non_finite) == (2, None)
    assert result.relative_rmse == pytest.approx(1 / 5, rel=ROUNDING)
    assert result.worst == Element((4,), 5.0, 4.0)


def test_worst_is_finite_even_where_nothing_differs() -> None:
    assert compare([NAN, 3.0], [NAN, 3.0]).worst == Element((1,), 3.0, 3.0)


def test_nothing_finite_is_no_error() -> None:
    result = compare([NAN, INF], [NAN, INF])
    assert (result.count, result.worst, result.non_finite) == (0, None, None)
    assert (result.relative_rmse, result.relative_l1, result.mean_relative_error) == (0.0, 0.0, 0.0)
    assert str(result).splitlines()[-1] == "worst of 0: none"


def test_worst_element_names_its_coordinates_and_both_values() -> None:
    expected = np.zeros((2, 3, 4, 5))
    actual = expected.copy()
    actual[1, 0, 2, 4], actual[0, 1, 1, 1] = -7.5, 7.0
    assert compare(actual, expected).worst == Element((1, 0, 2, 4), -7.5, 0.0)
    assert str(compare(actual, expected)).endswith("worst of 120: [1, 0, 2, 4]: -7.5, expected 0")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.float32])
def test_every_real_dtype_is_read_exactly(dtype: Any) -> None:
    # 3 and 2 are exact in all of them, the difference and the figures are float64's.
    result = compare(np.array([3, 0], dtype=dtype), np.array([2, 0], dtype=np.float64))
    assert (result.relative_rmse, result.worst) == (0.5, Element((0,), 3.0, 2.0))


def test_float16_differences_are_not_rounded_to_float16() -> None:
    # 2049 is no float16: in that type 2048 + 1 is 2048 and the error would be 0.
    assert compare(np.array([2048.0], dtype=np.float16), [2049.0]).relative_l1 == pytest.approx(1 / 2049, rel=ROUNDING)


@pytest.mark.parametrize("bad", [np.array([1j]), np.array([object()]), np.array(["1"])])
def test_what_is_no_real_number_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"expected an array of real numbers, got dtype"):
        compare(bad, [1.0])


@pytest.mark.parametrize(("a", "b"), [((2,), (3,)), ((2, 1), (2,)), ((0,), (0,))])
def test_shapes_that_differ_or_are_empty_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected two arrays of one shape and not empty, got \("):
        compare(np.zeros(a), np.zeros(b))


def test_cupy_is_copied_to_the_host_and_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        """What refuses to become a NumPy array by itself, as CuPy's does."""

        def __array__(self, *_: object, **__: object) -> np.ndarray[Any, Any]:
            raise TypeError("implicit conversion to a NumPy array is not allowed")

    module = ModuleType("cupy")
    module.ndarray = Device  # type: ignore[attr-defined]
    module.asnumpy = lambda _: np.array([1.0, 2.0])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert compare(Device(), np.array([1.0, 2.0])).relative_rmse == 0.0
    monkeypatch.delitem(sys.modules, "cupy")
    compare([1.0], [1.0])
    assert "cupy" not in sys.modules


def test_inputs_are_not_written() -> None:
    a, b = np.array([1.0, NAN, 2.0]), np.array([1.5, NAN, 2.0])
    for array in (a, b):
        array.flags.writeable = False
    assert compare(a, b).count == 2


@given(arrays())
def test_equal_arrays_have_no_error(array: Any) -> None:
    result = compare(array, array.copy())
    assert (result.relative_rmse, result.relative_l1, result.mean_relative_error) == (0.0, 0.0, 0.0)
    assert result.sqnr_db == INF
    assert result.cosine == pytest.approx(1.0, rel=ROUNDING)


@given(arrays(-1e3, 1e3), st.integers(0, 2**32 - 1), st.integers(-40, 40))
def test_all_but_the_mre_ignore_the_unit(expected: Any, seed: int, exponent: int) -> None:
    # Powers of two scale float64 without rounding: equality, not closeness.
    expected = expected.astype(np.float64)
    actual = expected + np.random.default_rng(seed).standard_normal(expected.shape)
    one, scaled = compare(actual, expected), compare(actual * 2.0**exponent, expected * 2.0**exponent)
    for name in ("relative_rmse", "relative_l1", "cosine", "sqnr_db"):
        assert getattr(one, name) == pytest.approx(getattr(scaled, name), rel=ROUNDING)


@given(arrays(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_figures_bound_one_another(expected: Any, seed: int) -> None:
    actual = expected + np.random.default_rng(seed).standard_normal(expected.shape)
    result = compare(actual, expected)
    assert result.worst is not None
    assert abs(result.worst.actual - result.worst.expected) == np.abs(actual - expected).max()
    assert -1.0 <= result.cosine <= 1.0
    # |a/‖a‖ − b/‖b‖| is at most twice the relative error, so 1 − cos ≤ 2·rmse².
    assert 1.0 - result.cosine <= 2.0 * result.relative_rmse**2 + ROUNDING
    # With the 1e-5 a single error cannot exceed |a − b|·1e5.
    assert result.mean_relative_error <= 1e5 * np.abs(actual - expected).mean() * (1.0 + ROUNDING)


@given(arrays(-1e3, 1e3), st.data())
def test_one_nan_anywhere_is_found_there(expected: Any, data: st.DataObject) -> None:
    flat = data.draw(st.integers(0, expected.size - 1))
    actual = expected.copy()
    actual.flat[flat] = NAN
    report = compare(actual, expected).non_finite
    assert report is not None
    assert report.first.index == np.unravel_index(flat, expected.shape)
    assert (report.mismatches, report.nan_actual, report.nan_expected) == (1, 1, 0)
