"""The study of 4 bits and of 2."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from study.runs import quick

from cupy_intfa.data.families import make_qkv
from cupy_intfa.reference import oracle
from cupy_intfa.study import low_bits
from cupy_intfa.study.study import one
from cupy_intfa.study.trials import make_trial


def test_fewer_bits_err_more() -> None:
    rows = quick("low_bits").rows
    for smooth, rotated in ((False, False), (True, True)):
        eight, four, two = (
            one(rows, "relative_rmse", bits=bits, scales="token", smooth_k=smooth, rotate=rotated) for bits in (8, 4, 2)
        )
        assert 5 * eight < four < two
    smoothed, plain = (
        one(rows, "relative_rmse", bits=4, scales="token", smooth_k=on, rotate=False) for on in (True, False)
    )
    assert smoothed < 0.7 * plain  # channels of K far from 0


@pytest.mark.parametrize(("smooth", "rotated"), [(False, False), (True, False), (False, True)])
def test_two_bits_are_three_levels(smooth: bool, rotated: bool) -> None:
    q, k, v = make_qkv("channel", heads=1, q_len=3, kv_len=8, head_dim=4, seed=1)
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    q2, k2 = q.astype(float), k.astype(float) - (k.mean(axis=2, keepdims=True) if smooth else 0.0)
    if rotated:
        q2, k2 = q2 @ hadamard, k2 @ hadamard
    largest = [np.abs(x).max(axis=3, keepdims=True) for x in (q2, k2)]
    q2, k2 = (top * np.rint(x / top) for x, top in zip((q2, k2), largest, strict=True))
    expected = oracle.attention(q2, k2, v)[0]
    assert_allclose(low_bits.in_two_bits(make_trial(q, k, v), smooth, rotated), expected, rtol=1e-5)


def test_only_q_and_k_lose_bits() -> None:
    for scales in low_bits.SCALES:
        for recipe in (low_bits.make_recipe(bits, scales, True, True) for bits in (8, 4)):
            assert (recipe.pv, recipe.p_levels, recipe.rotate, recipe.smooth_k) == ("float16", 1, True, True)
            assert recipe.k_granularity == scales
