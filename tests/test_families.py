"""Synthetic families: shapes, determinism, and the statistics that each one is named after."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_intfa.data.families import DTYPES, FAMILIES, make_qkv

# Statistics are taken over 2·4·256·64 = 131072 values of each array and bounded at five standard errors: the seed is
# fixed, so a bound holds always or never, and an honest draw would miss it once in 1.7 million.
LARGE: dict[str, Any] = {"batch": 2, "heads": 4, "q_len": 256, "head_dim": 64, "seed": 20, "dtype": np.float64}
COUNT = 2 * 4 * 256 * 64
SIGMAS = 5.0


def assert_moments(array: Any, mean: float, variance: float, fourth: float) -> None:
    """Check mean and variance; `fourth` is the fourth central moment, which governs the variance's own error."""
    assert array.size == COUNT
    assert abs(array.mean() - mean) <= SIGMAS * math.sqrt(variance / COUNT)
    assert abs(array.var() - variance) <= SIGMAS * math.sqrt((fourth - variance**2) / COUNT)


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    q_len=st.integers(1, 70),
    kv_len=st.integers(1, 70),
    head_dim=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
)
def test_every_family_fits_every_problem(
    family: str, batch: int, kv_heads: int, group: int, q_len: int, kv_len: int, head_dim: int, seed: int, dtype: Any
) -> None:
    arguments = {
        "batch": batch,
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "q_len": q_len,
        "kv_len": kv_len,
        "head_dim": head_dim,
        "seed": seed,
        "dtype": dtype,
    }
    arrays = make_qkv(family, **arguments)
    q, k, v = arrays
    assert q.shape == (batch, kv_heads * group, q_len, head_dim)
    assert k.shape == v.shape == (batch, kv_heads, kv_len, head_dim)
    for array, again in zip(arrays, make_qkv(family, **arguments), strict=True):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert np.isfinite(array.astype(np.float64)).all()
        assert array.tobytes() == again.tobytes()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"zeros"}))
def test_another_seed_gives_other_values_and_the_three_arrays_differ(family: str) -> None:
    one, other = (make_qkv(family, seed=seed, dtype=np.float64) for seed in (1, 2))
    assert [bool((a == b).mean() < 0.01) for a, b in zip(one, other, strict=True)] == [True] * 3
    q, k, v = one
    assert max((q == k).mean(), (k == v).mean(), (q == v).mean()) < 0.01


def test_q_does_not_depend_on_the_keys() -> None:
    few, many = (make_qkv("normal", q_len=9, kv_len=kv_len)[0] for kv_len in (1, 50))
    assert np.array_equal(few, many)


def test_a_narrow_dtype_is_the_wide_one_rounded_once() -> None:
    for dtype in DTYPES:
        for wide, narrow in zip(make_qkv("normal", dtype=np.float64), make_qkv("normal", dtype=dtype), strict=True):
            assert np.array_equal(wide.astype(dtype), narrow)


def test_normal() -> None:
    for array in make_qkv("normal", **LARGE):
        assert_moments(array, 0.0, 1.0, 3.0)


def test_uniform_and_uniform01() -> None:
    for family, low in (("uniform", -0.5), ("uniform01", 0.0)):
        for array in make_qkv(family, **LARGE):
            assert_moments(array, low + 0.5, 1 / 12, 1 / 80)
            assert low <= array.min() <= array.max() < low + 1.0


def test_outlier_is_one_value_in_a_thousand_with_variance_101() -> None:
    for array in make_qkv("outlier", **LARGE):
        # Fourth moment of the mixture: 0.999·3 + 0.001·3·101².
        assert_moments(array, 0.0, 1.1, 0.999 * 3 + 0.001 * 3 * 101**2)
        # |N(0, 1)| > 6 has probability 2e-9; |N(0, 101)| > 6 has erfc(6/√202).
        rate = 0.001 * math.erfc(6.0 / math.sqrt(202.0))
        assert abs((np.abs(array) > 6.0).sum() - rate * COUNT) <= SIGMAS * math.sqrt(rate * COUNT)


def test_channel_has_a_sixteenth_of_large_biased_key_channels() -> None:
    q, k, v = make_qkv("channel", **LARGE)
    assert_moments(q, 1.0, 1.0, 3.0)
    assert_moments(v, 1.0, 1.0, 3.0)
    mean, deviation = np.abs(k.mean(axis=2)), k.std(axis=2)  # over 256 tokens
    large = mean > 5.0
    assert (large.sum(axis=2) == 4).all()  # 64 / 16 in every head
    assert np.abs(mean[large] - 10.0).max() <= SIGMAS * 4.0 / 16.0
    assert mean[~large].max() <= SIGMAS / 16.0
    assert np.abs(deviation[large] - 4.0).max() <= SIGMAS * 4.0 / math.sqrt(512.0)
    assert np.abs(deviation[~large] - 1.0).max() <= SIGMAS / math.sqrt(512.0)
    assert len({tuple(head) for head in large.reshape(8, 64).tolist()}) > 1  # not the same channels in every head


@pytest.mark.parametrize(("kv_len", "kv_heads"), [(64, 4), (256, 1), (4096, 2)])
def test_sink_first_gives_the_first_four_keys_three_quarters(kv_len: int, kv_heads: int) -> None:
    q, k, _ = make_qkv(
        "sink_first", heads=4, kv_heads=kv_heads, q_len=64, kv_len=kv_len, head_dim=64, seed=5, dtype=np.float64
    )
    logits = q @ np.repeat(k, 4 // kv_heads, axis=1).swapaxes(-1, -2) / 8.0
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = weights[..., :4].sum(axis=-1) / weights.sum(axis=-1)
    # In log-odds the sinks lead by ln 3 + noise of mean 0 + ln(mean of 4 e^N(0, 1)) − ln(mean of the others'). By
    # Jensen both logarithms expect between 0 and ½, so the expected lead is within ½ of ln 3: most rows are above 0.
    lead = np.log(share / (1.0 - share))
    assert abs(lead.mean() - math.log(3.0)) <= 0.5 + SIGMAS * lead.std() / math.sqrt(lead.size)
    assert np.median(share) > 0.5


def test_outlier_token_enlarges_one_token_in_64() -> None:
    for array in make_qkv("outlier_token", **LARGE):
        size = np.sqrt(np.square(array).mean(axis=3))  # 1 or 10, give or take 5/√128 of itself
        large = size > 4.0
        assert (large.sum(axis=2) == 4).all()
        assert np.abs(size[large] - 10.0).max() <= SIGMAS * 10.0 / math.sqrt(128.0)
        assert np.abs(size[~large] - 1.0).max() <= SIGMAS / math.sqrt(128.0)
    assert (np.abs(make_qkv("outlier_token", heads=1, q_len=3, seed=1)[0]).max(axis=3) > 8.0).sum() == 1


def test_constant_rows_are_constant_and_differ_from_one_another() -> None:
    for array in make_qkv("constant_rows", **LARGE):
        assert (array == array[..., :1]).all()
        assert np.unique(array[..., 0]).size == 2 * 4 * 256


def test_zeros() -> None:
    assert not np.any(make_qkv("zeros", **LARGE))


def test_huge_fits_float16_with_little_room() -> None:
    for array in make_qkv("huge", **LARGE | {"dtype": np.float16}):
        assert 4e4 <= np.abs(array.astype(np.float64)).max() <= 60032  # 6e4 rounded to a multiple of 32


def test_huge_is_finite_in_float16_whatever_is_drawn() -> None:
    class Extreme(np.random.Generator):
        def standard_normal(self, size: Any = None, *_: Any, **__: Any) -> Any:
            return np.array([[[[9.0, -9.0]]]])  # 1e4 times this is no float16

    q, _, _ = FAMILIES["huge"](Extreme(np.random.PCG64(0)), (1, 1, 1, 2), (1, 1, 1, 2))
    assert q.astype(np.float16).tolist() == [[[[60000.0, -60000.0]]]]


def test_tiny_is_subnormal_in_float16_and_normal_in_float32() -> None:
    for array in make_qkv("tiny", **LARGE | {"dtype": np.float16}):
        assert 0 < np.abs(array).max() < np.finfo(np.float16).smallest_normal
    for array in make_qkv("tiny", **LARGE | {"dtype": np.float32}):
        assert np.abs(array[array != 0]).min() > np.finfo(np.float32).smallest_normal
        assert_moments(array.astype(np.float64) * 1e6, 0.0, 1.0, 3.0)


def test_families_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        FAMILIES["normal"] = FAMILIES["zeros"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"family": "gauss"}, ValueError, r"expected a family among normal, uniform, .*, got 'gauss'"),
        ({"q_len": 0}, ValueError, r"expected sizes of 1 or more, got q \(1, 4, 0, 64\)"),
        ({"kv_len": 0}, ValueError, r"expected sizes of 1 or more, got q .* and k, v \(1, 4, 0, 64\)"),
        ({"kv_heads": 0}, ValueError, r"expected sizes of 1 or more"),
        ({"heads": 4, "kv_heads": 3}, ValueError, r"expected kv_heads to divide heads, got 3 and 4"),
        ({"dtype": np.int8}, TypeError, r"expected dtype float16, bfloat16, float32, float64, got int8"),
        ({"dtype": ml_dtypes.float8_e4m3fn}, TypeError, r"got float8_e4m3fn"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_qkv(**{"family": "normal"} | arguments)
