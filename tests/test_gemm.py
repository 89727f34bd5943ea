"""int8_matmul on NumPy: exactness, scales, what is refused; and the plan, for GPUs that are made up."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from devices import DEVICES
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array, dtype_of, seeds

from cupy_intfa.gemm import explain_int8_matmul, int8_matmul
from cupy_intfa.gemm_ladder import RUNGS, GemmProblem, Matrix
from cupy_intfa.gemm_launch import Addresses, launch_gemm
from cupy_intfa.gemm_plan import BACKENDS, Copy, GemmPlan, make_gemm_plan

SIDES = st.sampled_from((1, 2, 15, 16, 17, 127, 129))
ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}  # half a step, relative


def int8(*rows: list[int]) -> Array:
    return np.array(rows, np.int8)


def float32(*values: float) -> Array:
    return np.array(values, np.float32)


def drawn(m: int, n: int, k: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (m, k)).astype(np.int8), rng.integers(-128, 128, (k, n)).astype(np.int8)


def exact(a: Array, b: Array) -> Array:
    product: Array = a.astype(np.int64) @ b.astype(np.int64)
    return product


@given(m=SIDES, n=SIDES, k=st.sampled_from((1, 16, 17, 1000, 1024, 1025)), seed=seeds, order=st.sampled_from("CF"))
def test_sums_are_exact(m: int, n: int, k: int, seed: int, order: Any) -> None:
    a, b = drawn(m, n, k, seed)
    product = int8_matmul(a, np.asarray(b, order=order), backend="numpy")
    assert product.dtype == np.int32
    assert (product == exact(a, b)).all()


@pytest.mark.parametrize("k", [1024, 1025, 131_071])
def test_largest_sums_do_not_wrap(k: int) -> None:
    """131 071 times 127² is odd and needs 31 bits: neither int32 that wraps nor float32 has it."""
    a, b = (np.full((2, k), -128, np.int8) for _ in range(2))
    a[1] = b[1] = 127
    mixed = -127 * 128 * k
    assert int8_matmul(a, b.T, backend="numpy").tolist() == [[2**14 * k, mixed], [mixed, 127**2 * k]]


@given(m=SIDES, n=SIDES, seed=seeds, out=st.sampled_from(sorted(ULP)), whole=st.booleans())
def test_scales_and_bias(m: int, n: int, seed: int, out: str, whole: bool) -> None:
    """Three roundings to float32 and one to the output, against float64; the bias may cancel what the scales leave."""
    a, b = drawn(m, n, 40, seed)
    rng = np.random.default_rng(seed)
    scale_a, scale_b = (np.exp2(rng.uniform(-9, -2, shape)).astype(np.float32) for shape in ((m, 1), (n,)))
    bias = rng.standard_normal(n).astype(np.float32)
    if whole:
        scale_b = scale_b[0]
    product = int8_matmul(a, b, scale_a, scale_b, bias, out, backend="numpy")
    assert product.dtype == dtype_of(out)
    scaled = exact(a, b) * scale_a.astype(np.float64) * scale_b
    wanted = scaled + bias
    # Sums are below 2^20: converted exactly, and float16 holds a 16th of them; its subnormals are 2^-24 apart.
    bound = 3 * 2.0**-24 * (np.abs(scaled) + np.abs(wanted)) + 1.001 * ULP[out] * np.abs(wanted) + 2.0**-25
    assert (np.abs(product.astype(np.float64) - wanted) <= bound).all()


def test_rounding_goes_step_by_step() -> None:
    """(3 · s_a) rounds before s_b comes: another order of the products has other bits."""
    a, b = int8([3]), int8([1])
    scale_a, scale_b = float32(1 + 2**-23), float32(1 + 2**-22)
    wanted = (np.float32(3) * scale_a) * scale_b
    assert wanted != np.float32(3) * (scale_a * scale_b)
    assert int8_matmul(a, b, scale_a, scale_b, backend="numpy")[0, 0] == wanted[0]


def test_subnormals_are_zero_as_on_a_gpu() -> None:
    a, b = int8([1, 0], [100, 0]), int8([1], [0])
    tiny = np.array([np.finfo(np.float32).tiny / 2], np.float32)
    assert int8_matmul(a, b, tiny, backend="numpy").tolist() == [[0.0], [0.0]]
    half = int8_matmul(a, b, float32(2**-24), out_dtype="float16", backend="numpy")
    assert half.tolist() == [[2**-24], [100 * 2**-24]]  # a float16 that is subnormal is kept


def test_overflow_is_infinity_and_no_warning() -> None:
    a = int8([100, 100])
    assert int8_matmul(a, a.T, 5.0, out_dtype="float16", backend="numpy").tolist() == [[np.inf]]


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_products(shape: tuple[int, int, int]) -> None:
    a, b = drawn(*shape)
    assert int8_matmul(a, b, backend="numpy").shape == shape[:2]
    found = int8_matmul(a, b, bias=np.ones(shape[1], np.float32), backend="numpy")
    assert (found == np.ones(shape[:2], np.float32)).all()


def test_inputs_are_not_written_and_may_have_any_strides() -> None:
    a, b = drawn(9, 7, 20)
    big = np.zeros((18, 60), np.int8)
    view = big[::-2, 1::3]
    view[...] = a
    big.setflags(write=False)
    b.setflags(write=False)
    assert (int8_matmul(view, b[::-1, ::-1], backend="numpy") == exact(a, b[::-1, ::-1])).all()


A, B = np.zeros((4, 6), np.int8), np.zeros((6, 5), np.int8)
ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((A.astype(np.uint8), B), TypeError, r"a has dtype uint8: expected int8"),
        ((A, B.astype(np.float32)), TypeError, r"b has dtype float32: expected int8"),
        (([[1]], B), TypeError, r"a: got a list"),
        ((A[0], B), ValueError, r"a has shape \(6,\): expected a matrix"),
        ((A, B[None]), ValueError, r"b has shape \(1, 6, 5\)"),
        ((A, A), ValueError, r"a \(4, 6\) has 6 columns and b \(4, 6\) has 4 rows"),
        (
            (np.zeros((1, 131_072), np.int8), np.zeros((131_072, 1), np.int8)),
            ValueError,
            r"131071 products can overflow",
        ),
        (
            (A, B, np.ones(5, np.float32)),
            ValueError,
            r"scale_a has shape \(5,\): expected \(\) or .*\(4,\) or \(4, 1\)",
        ),
        ((A, B, None, np.ones((5, 1), np.float32)), ValueError, r"scale_b has shape \(5, 1\): .*\(1, 5\)"),
        ((A, B, np.ones(4)), TypeError, r"scale_a has dtype float64: expected float16, bfloat16, float32"),
        ((A, B, None, None, ONES), ValueError, r"bias has shape \(4,\): expected \(5,\)"),
        ((A, B, None, None, 1.0), TypeError, r"bias=1.0: expected an array \(5,\)"),
        ((A, B, ONES, None, None, "int32"), ValueError, r"out_dtype='int32' is the sums themselves"),
        ((A, B, None, None, None, "int8"), ValueError, r"out_dtype='int8': expected one of float16"),
        ((A, B, None, None, None, None, "sm70"), ValueError, r"backend='sm70': expected one of"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        int8_matmul(*arguments)


def test_scales_may_be_of_any_float_that_float32_holds() -> None:
    a, b = drawn(4, 5, 6)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        found = int8_matmul(a, b, ONES.astype(dtype) / dtype(8), backend="numpy")
        assert (found == exact(a, b) / 8).all()
    assert (int8_matmul(a, b, 0.125, 2, backend="numpy") == exact(a, b) / 4).all()


def matrix(rows: int, depth: int, **changes: int) -> Matrix:
    values = {"rows": rows, "depth": depth, "row_stride": depth, "depth_stride": 1, **changes}
    return Matrix(**values)


def plan(a: Matrix, b: Matrix, backend: str = "auto", arch: str = "sm_90") -> GemmPlan:
    return make_gemm_plan(GemmProblem(a=a, b=b, out_dtype="int32"), backend, DEVICES[arch])


@pytest.mark.parametrize(
    ("arch", "m", "rung"),
    [
        ("sm_61", 8192, "dp4a"),
        ("sm_70", 1, "dp4a"),
        ("sm_75", 8192, "sm80"),
        ("sm_90", 8192, "sm90"),
        ("sm_90", 65, "sm90"),
        ("sm_90", 64, "sm80"),
        ("sm_100", 8192, "sm80"),
    ],
)
def test_what_runs_by_itself(arch: str, m: int, rung: str) -> None:
    assert plan(matrix(m, 4096), matrix(8192, 4096), arch=arch).rung == rung


def test_a_rung_that_a_gpu_does_not_have_is_refused() -> None:
    for rung, arch, reason in (("sm90", "sm_100", "9.0 alone"), ("wmma", "sm_70", "7.2"), ("sm80", "sm_70", "7.5")):
        with pytest.raises(NotImplementedError, match=f"backend='{rung}'.*{reason}.*use backend='cuda'"):
            plan(matrix(1, 16), matrix(1, 16), rung, arch)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("auto", "numpy")])
def test_no_gpu_is_refused_where_one_is_asked_for(backend: str) -> None:
    problem = GemmProblem(a=matrix(1, 1), b=matrix(1, 1), out_dtype="int32")
    with pytest.raises(NotImplementedError, match=rf"backend='{backend}': there is no GPU \(none here\)"):
        make_gemm_plan(problem, backend, "none here")


READ_IN_PLACE: tuple[tuple[Matrix, str], ...] = (
    (matrix(300, 64), ""),
    (matrix(300, 64, row_stride=80), "gaps"),
    (matrix(300, 64, row_stride=65), "multiples of 16"),
    (matrix(300, 60), "multiples of 16"),
    (matrix(300, 60, row_stride=64), "multiples of 16"),
    (matrix(300, 64, offset=8), "multiples of 16"),
    (matrix(300, 64, row_stride=1, depth_stride=300), "side by side"),
    (matrix(300, 64, row_stride=-64), "gaps"),
)


@pytest.mark.parametrize(("operand", "reason"), READ_IN_PLACE)
def test_what_is_copied_first(operand: Matrix, reason: str) -> None:
    for rung in RUNGS:
        copy = plan(operand, matrix(500, operand.depth), rung).copies[0]
        needed = reason and rung != "naive" and (rung.startswith("sm90") or reason != "gaps")
        assert (copy is not None) == bool(needed), rung
        if copy:
            assert reason in copy.reason
            assert copy.nbytes == 300 * 64


def test_a_transposing_copy_reads_words_where_it_can() -> None:
    def defines(rows: int, stride: int, offset: int = 0) -> tuple[str, ...]:
        operand = matrix(rows, 64, row_stride=1, depth_stride=stride, offset=offset)
        copy = plan(operand, matrix(8, 64)).copies[0]
        assert isinstance(copy, Copy)
        return copy.defines

    words, letters = ("TRANSPOSE=1", "VECTOR=1"), ("TRANSPOSE=1", "VECTOR=0")
    assert defines(300, 300) == defines(300, 304, 4) == words
    assert defines(301, 304) == defines(300, 302) == defines(300, 300, 2) == letters


def test_tiles_follow_the_shape() -> None:
    tiles = {m: plan(matrix(m, 4096), matrix(8192, 4096), "sm80").kernel for m in (1, 16, 17, 64, 8192)}
    assert [(k.tile.m, k.tile.n) for k in tiles.values() if k] == [(16, 32)] * 2 + [(64, 64)] * 2 + [(256, 128)]
    hopper = plan(matrix(8192, 4096), matrix(8192, 4096))
    assert hopper.grid == 132
    assert plan(matrix(200, 4096), matrix(300, 4096), "sm90").grid == 2 * 2  # two columns of tiles


def test_the_plan_explains_itself() -> None:
    text = str(plan(matrix(8192, 8192), matrix(8192, 8192, row_stride=1, depth_stride=8192)))
    assert text.startswith("sm90: (8192, 8192) @ (8192, 8192) -> int32, 1100 Gop\n")
    for part in (
        "tile 128 x 256 x 128, 4 stages",
        "a: read in place",
        "b: copied (67108864 bytes)",
        "because sm_90 has",
    ):
        assert part in text
    there_is_none = explain_int8_matmul(A, B, backend="numpy")
    assert there_is_none.rung == "numpy"
    with pytest.raises(ValueError, match="runs on NumPy"):
        launch_gemm(there_is_none, Addresses(a=0, b=0, out=0))
