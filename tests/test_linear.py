"""A quantised linear layer against float64 products of what its integers stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_intfa.linear import DecomposedLinear, QuantizedLinear
from cupy_intfa.quantize import (
    Granularity,
    decompose,
    observe_inputs,
    quantize_asymmetric,
    quantize_blockwise,
    quantize_symmetric,
)
from cupy_intfa.quantize.blockwise import quantize_scales

GRANULARITIES = ("tensor", "row", Granularity("group", 16), Granularity("group", 48))
U = 2.0**-24


def draw(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 100),
    st.sampled_from(("int8", "int4", "int2")),
    st.sampled_from(GRANULARITIES),
    st.booleans(),
    st.integers(0, 99),
)
def test_integer_products_are_those_of_what_the_codes_stand_for(
    m: int, n: int, k: int, fmt: str, granularity: Any, with_bias: bool, seed: int
) -> None:
    x, weight = draw((m, k), seed), quantize_symmetric(draw((n, k), seed + 1), fmt, granularity)
    bias = draw((n,), seed + 2) if with_bias else None
    got = QuantizedLinear(weight, bias)(x)
    inputs = quantize_symmetric(x, "int8", granularity if isinstance(granularity, Granularity) else "row")
    inputs = inputs.dequantize().astype(np.float64)
    w = weight.dequantize().astype(np.float64)
    exact = inputs @ w.T + (0 if bias is None else bias.astype(np.float64))
    # Dequantising rounds each factor once, a group's sum is scaled in two roundings, groups and bias are added.
    bound = (np.abs(inputs) @ np.abs(w).T + (0 if bias is None else np.abs(bias))) * U * (6 + -(-k // 16))
    assert (np.abs(got - exact) <= bound + 1e-30).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_dtype_and_leading_axes_are_those_of_the_input(dtype: Any, activations: str) -> None:
    layer = QuantizedLinear(quantize_symmetric(draw((5, 32), 0), "int8", "row"), draw((5,), 1), activations)
    x = draw((2, 3, 32), 2, dtype)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, 5), x.dtype)
    alone = layer(x[1, 2:])[0]
    if activations == "int8":
        np.testing.assert_array_equal(y[1, 2], alone)  # exact sums: no row feels another
    else:  # BLAS adds in an order of its own, and the sum is rounded to the dtype
        eps = {2: 2.0**-8, 4: 2.0**-24}[np.dtype(dtype).itemsize]
        size = np.abs(x[1, 2].astype(np.float64)) @ np.abs(layer.weight.dequantize().astype(np.float64)).T + 4
        assert (np.abs(y[1, 2].astype(np.float64) - alone.astype(np.float64)) <= (64 * U + 2 * eps) * size).all()
    assert layer(x[:0]).shape == (0, 3, 5)


@pytest.mark.parametrize(
    "weight",
    [
        quantize_asymmetric(draw((6, 64), 3), "uint4", Granularity("group", 16)),
        quantize_blockwise(draw((6, 64), 3), "nf4"),
        quantize_symmetric(draw((6, 64), 3), "int8", "channel"),
    ],
    ids=["uint4", "nf4", "channel"],
)
def test_floats_take_every_format_and_integers_say_what_they_take(weight: Any) -> None:
    x = draw((4, 64), 4)
    expected = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    bound = np.abs(x) @ np.abs(weight.dequantize()).T * (65 * U)
    assert (np.abs(QuantizedLinear(weight, activations="float")(x) - expected) <= bound).all()
    with pytest.raises(ValueError, match="activations='float'"):
        QuantizedLinear(weight)


def test_w8a8_errs_by_its_two_roundings() -> None:
    x, w = draw((64, 256), 5), draw((32, 256), 6)
    y = QuantizedLinear(quantize_symmetric(w, "int8", "row"))(x)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    step_x, step_w = (np.abs(a).max(axis=1, keepdims=True) / 127 for a in (x, w))
    # Each factor is off by half a step at most, evenly: six sigma of 256 products of either.
    sigma = np.sqrt(256 / 12) * np.sqrt(
        step_x**2 * (w**2).mean(axis=1) + step_w.T**2 * (x**2).mean(axis=1, keepdims=True)
    )
    assert (np.abs(y - exact) < 6 * sigma).all()
    assert np.abs(y - exact).max() > sigma.max(), "it errs: the inputs were quantised"


def test_a_loud_channel_coarsens_its_group_alone() -> None:
    """Of 4 groups of 64 channels three keep steps that are a hundred times finer than those of the whole row."""
    x, w = draw((64, 256), 7), draw((32, 256), 8)
    x[:, 3] *= 100
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    errors = [
        float(np.linalg.norm(QuantizedLinear(quantize_symmetric(w, "int8", granularity))(x) - exact))
        for granularity in ("row", Granularity("group", 64))
    ]
    # The steps of the inputs decide: √(1/4) of their variance is left, and some of the weights' own.
    assert errors[1] < 0.6 * errors[0]


def test_scales_of_a_group_that_are_quantised_themselves() -> None:
    """A scale of a weight may be a QuantizedTensor, as of double quantisation: it is read as what it stands for."""
    plain = quantize_symmetric(draw((6, 64), 9), "int4", Granularity("group", 16))
    double = replace(plain, scale=quantize_scales(plain.scale, np))
    same = replace(plain, scale=double.group_scales())
    x = draw((5, 64), 10)
    np.testing.assert_array_equal(QuantizedLinear(double)(x), QuantizedLinear(same)(x))
    assert (QuantizedLinear(double)(x) != QuantizedLinear(plain)(x)).any()


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 60), st.sampled_from((0.5, 1.5, 99.0)), st.integers(0, 99))
def test_a_decomposed_layer_is_the_sum_of_its_parts(m: int, n: int, k: int, threshold: float, seed: int) -> None:
    """In float64: what the integers stand for, and float16 columns by float16 inputs."""
    x, w, bias = draw((2, m, k), seed), draw((n, k), seed + 1), draw((n,), seed + 2)
    split = decompose(w, observe_inputs(x), threshold=threshold)
    loud = np.zeros(k, bool)
    loud[split.columns] = True
    assert (loud == (np.abs(x).max(axis=(0, 1)) >= threshold)).all()
    before = x.copy()
    found = DecomposedLinear(split, bias)(x)
    assert (x == before).all()
    inputs = quantize_symmetric(np.where(loud, np.float32(0), x), "int8", "row").dequantize().astype(np.float64)
    floats = np.where(loud, x.astype(np.float16), 0).astype(np.float64)
    columns = np.zeros((n, k))
    columns[:, loud] = split.outliers
    w8 = split.weight.dequantize().astype(np.float64)
    exact = inputs @ w8.T + floats @ columns.T + bias
    bound = (np.abs(inputs) @ np.abs(w8).T + np.abs(floats) @ np.abs(columns).T + np.abs(bias)) * U * (8 + k)
    assert (np.abs(found - exact) <= bound + 1e-30).all()
    with pytest.raises(ValueError, match="bias has shape"):
        DecomposedLinear(split, draw((n + 1,), 0))


def test_refusals() -> None:
    weight = quantize_symmetric(draw((3, 8), 0), "int8", "row")
    with pytest.raises(ValueError, match=r"x has shape \(2, 7\): expected \(\.\.\., 8\)"):
        QuantizedLinear(weight)(draw((2, 7), 1))
    with pytest.raises(ValueError, match=r"bias has shape \(2,\): expected \(3,\)"):
        QuantizedLinear(weight, draw((2,), 1))
    with pytest.raises(ValueError, match="activations='int4': expected one of"):
        QuantizedLinear(weight, activations="int4")
    with pytest.raises(ValueError, match="expected a matrix"):
        QuantizedLinear(quantize_symmetric(draw((3,), 0)))
    for activations in ("int8", "float"):
        with pytest.raises(ValueError, match="x has dtype float64"):
            QuantizedLinear(weight, activations=activations)(draw((2, 8), 1, np.float64))
