"""Rotation: the butterfly against SciPy's Hadamard matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import HEAD_DIMS, restride, seeds, strides
from transcription import U, rotation

from cupy_intfa.quantize.rotate import hadamard_block, rotate


def bound(x: np.ndarray, head_dim: int) -> np.ndarray:
    """log₂(block) additions, the product with 1/√block and its own rounding, each off by u of Σ|x|/√block."""
    roundings = np.log2(hadamard_block(head_dim)) + 2
    limit: np.ndarray = 1.01 * roundings * U * (np.abs(x).astype(np.float64) @ np.abs(rotation(head_dim)))
    return limit


@given(st.sampled_from(HEAD_DIMS), seeds, strides)
def test_is_scipys_block_diagonal_product(head_dim: int, seed: int, how: str) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 2, 5, head_dim)).astype(np.float32)
    turned = rotate(restride(x, how), np)
    assert turned.dtype == np.float32
    assert (np.abs(turned - x.astype(np.float64) @ rotation(head_dim)) <= bound(x, head_dim)).all()
    assert (turned == rotate(x, np)).all(), "the bits depend on the strides"


@given(st.sampled_from(HEAD_DIMS), seeds)
def test_is_its_own_inverse_and_keeps_products(head_dim: int, seed: int) -> None:
    q, k = np.random.default_rng(seed).standard_normal((2, 7, head_dim)).astype(np.float32)
    q_turned, k_turned = rotate(q, np), rotate(k, np)
    off = 1e-6 * head_dim  # two rotations, each off by at most 10 u of a sum of D terms near 1
    assert np.abs(rotate(q_turned, np) - q).max() <= off
    products = (y.astype(np.float64) @ z.astype(np.float64).T for y, z in ((q_turned, k_turned), (q, k)))
    assert np.abs(np.subtract(*products)).max() <= off * head_dim


@pytest.mark.parametrize("head_dim", [1, 3, 7, 31, 33, 127, 255])
def test_odd_head_dimension_is_left_as_it_is(head_dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, head_dim)).astype(np.float32)
    assert rotate(x, np).tobytes() == x.tobytes()


@pytest.mark.parametrize("head_dim", range(1, 257))
def test_block_is_the_largest_power_of_two_that_divides(head_dim: int) -> None:
    block = hadamard_block(head_dim)
    assert block & (block - 1) == 0
    assert head_dim % block == 0
    assert head_dim // block % 2 == 1


def test_spreads_one_channel_over_its_block_alone() -> None:
    x = np.zeros((1, 96), np.float32)
    x[0, 40] = 1
    turned = rotate(x, np)[0]
    assert np.abs(turned[32:64]).tolist() == [np.float32(32**-0.5)] * 32
    assert (turned[:32] == 0).all()
    assert (turned[64:] == 0).all()


def test_overflow_gives_no_warning_and_no_finite_number() -> None:
    assert not np.isfinite(rotate(np.full((1, 4), 3e38, np.float32), np)[0, 0])
