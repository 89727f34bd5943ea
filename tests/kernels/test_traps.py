"""Where kernels go wrong in silence: large logits, neighbours, empty and poisoned rows, the ends of number formats."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernels.harness import ROWS, assert_same_bits, assert_twins, case_of, every_kernel, run, runs, twin
from strategies import Array, Case
from tolerances import FRACTION_BITS, assert_within

from cupy_intfa import PRESETS, QuantizedQKV, Recipe, get_recipe
from cupy_intfa.quantize import quantize_arrays

pytestmark = pytest.mark.gpu

Arrays = tuple[Array, Array, Array]


def normal(q_len: int, kv_len: int, *, heads: int = 2, head_dim: int = 64, seed: int = 0) -> Arrays:
    return Case(heads=heads, kv_heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim, seed=seed).arrays()


def check(name: str, recipe: Recipe, arrays: Arrays, **options: Any) -> tuple[Array, Array]:
    """Run a kernel, hold it against its twin, and give its output and lse."""
    case = case_of(arrays[0], arrays[1], **options)
    qkv = quantize_arrays(*arrays, recipe=recipe)
    out, lse = run(name, qkv, case)
    assert_twins((out, lse), twin(name, qkv, case), "float32", f"{name}, {recipe.name}")
    return out, lse


def level(recipe: Recipe) -> float:
    """Relative error of a P that stands at its reference, from R·2^-0.05 for scores of 10⁵ on."""
    if recipe.pv == "int8":
        return 0.5 / (0.96 * recipe.p_top) + 2.0**-11
    return 2.0 ** -(FRACTION_BITS[recipe.pv] + 1) / 0.96


@every_kernel
@pytest.mark.parametrize("nats", [1e2, 1e3, 1e5])
def test_the_largest_logit_takes_all(name: str, preset: str, nats: float) -> None:
    """Query i and the keys i, i + 64, i + 128 share an axis; the second of these wins by a quarter of the logit.

    P at the maximum must not pass R, or its byte wraps to 0; the tiles before and after it have maxima of their own.
    """
    recipe, axes = PRESETS[preset], np.sqrt(nats) * np.eye(64)
    q = axes[None, None].astype(np.float32)
    k = np.concatenate([0.5 * axes, axes, 0.75 * axes, axes[:9] * 0.25])[None, None].astype(np.float32)
    v = normal(64, 201, heads=1)[2]
    out, _ = check(name, recipe, (q, k, v), scale=1.0)
    values = quantize_arrays(q, k, v, recipe=recipe).dequantize()[2][:, :, 64:128]
    centre = v.mean(axis=2, keepdims=True) if recipe.smooth_v else 0.0
    assert_within(out, values, np.abs(values - centre) * level(recipe) + 1e-6)


@every_kernel
@pytest.mark.parametrize("nats", [1e2, 1e3, 1e5])
def test_large_logits_are_the_twins(name: str, preset: str, nats: float) -> None:
    check(name, PRESETS[preset], normal(100, 300), scale=nats / 8)


def rows_of(qkv: QuantizedQKV, rows: Any) -> QuantizedQKV:
    """Keep some query rows."""
    per_token = qkv.recipe.q_granularity == "token"
    q_scale = qkv.q_scale[:, :, rows] if per_token else qkv.q_scale
    return replace(qkv, q=qkv.q[:, :, rows], q_scale=q_scale, q_mark=qkv.q_mark[:, :, rows])


@every_kernel
@pytest.mark.parametrize("growing", [False, True], ids=["falling", "growing"])
def test_a_row_does_not_feel_the_rows_beside_it(name: str, preset: str, growing: bool) -> None:
    """Every second row is 0 and never rescaled: its sums pass 2²⁴, where a detour by float32 would cost bits."""
    q, k, v = normal(140, 1100, head_dim=40)
    q[:, :, ::2] = 0
    size = np.linspace(0.2, 3, 1100, dtype=np.float32)[:, None]
    qkv = quantize_arrays(q, k * (size if growing else size[::-1]), np.abs(v) + 1, recipe=PRESETS[preset])
    case = case_of(q, k)
    out, lse = run(name, qkv, case)
    turned = np.arange(140)[::-1]
    for rows in ([0], [1], [77], [6, 7], turned[40:], turned):
        some_out, some_lse = run(name, rows_of(qkv, rows), replace(case, q_len=len(rows)))
        assert_same_bits(some_out, out[:, :, rows], f"rows {rows[:3]}…")
        assert_same_bits(some_lse, lse[:, :, rows], f"rows {rows[:3]}…")


@every_kernel
def test_a_prefix_of_rows_has_its_bits_under_a_mask(name: str, preset: str) -> None:
    case = Case(heads=2, q_len=200, kv_len=170, is_causal=True, causal_alignment="top_left")
    qkv = quantize_arrays(*case.arrays(), recipe=PRESETS[preset])
    out, lse = run(name, qkv, case)
    for length in (1, 63, 64, 65, 130):
        some_out, some_lse = run(name, rows_of(qkv, slice(length)), replace(case, q_len=length))
        assert_same_bits(some_out, out[:, :, :length], f"{length} rows")
        assert_same_bits(some_lse, lse[:, :, :length], f"{length} rows")


@every_kernel
def test_heads_and_batches_do_not_see_each_other(name: str, preset: str) -> None:
    case = Case(family="outlier", batch=3, heads=4, kv_heads=2, q_len=70, kv_len=130, head_dim=40)
    q, k, v = case.arrays()
    out, lse = run(name, quantize_arrays(q, k, v, recipe=PRESETS[preset]), case)
    batches, heads, kv_heads = [2, 0], [2, 3, 0, 1], [1, 0]
    turned = [q[batches][:, heads], k[batches][:, kv_heads], v[batches][:, kv_heads]]
    some_out, some_lse = run(name, quantize_arrays(*turned, recipe=PRESETS[preset]), replace(case, batch=2))
    assert_same_bits(some_out, out[batches][:, heads])
    assert_same_bits(some_lse, lse[batches][:, heads])


@every_kernel
def test_a_row_that_sees_no_key(name: str, preset: str) -> None:
    """Output 0, and not the mean of V that smoothing restores; lse −inf; NaN where its heads are poisoned."""
    q, k, v = normal(300, 20)
    mask = {"is_causal": True, "causal_alignment": "bottom_right"}
    k[0, 1, 19, 3] = np.nan
    out, lse = check(name, PRESETS[preset], (q, k, v + np.float32(5)), **mask)
    assert (out[0, 0, :280] == 0).all()
    assert np.isneginf(lse[0, 0, :280]).all()
    assert np.isfinite(lse[0, 0, 280:]).all()
    assert np.isnan(out[0, 1]).all()
    assert np.isnan(lse[0, 1]).all()


@every_kernel
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_poison_reaches_who_reads_it_and_nobody_else(name: str, preset: str, bad: float) -> None:
    case = Case(batch=2, heads=4, kv_heads=2, q_len=70, kv_len=70, is_causal=True)
    q, k, v = case.arrays()
    q[1, 0, 33, 5] = 0
    clean_out, clean_lse = run(name, quantize_arrays(q, k, v, recipe=PRESETS[preset]), case)
    q[1, 0, 33, 5] = bad
    k[0, 0, 69, 3] = bad  # the last key, which the mask shows to the last row alone
    v[1, 1, 0, 63] = bad
    reads = np.zeros((2, 4, 70), np.bool_)
    reads[1, 0, 33] = reads[0, :2] = reads[1, 2:] = True
    out, lse = run(name, quantize_arrays(q, k, v, recipe=PRESETS[preset]), case)
    assert np.isnan(out[reads]).all()
    assert np.isnan(lse[reads]).all()
    if PRESETS[preset].q_granularity == "token":
        assert_same_bits(out[~reads], clean_out[~reads])
        assert_same_bits(lse[~reads], clean_lse[~reads])
    else:  # the poisoned element no longer leads the scale of its head
        assert np.isfinite(out[~reads]).all()
        assert np.isfinite(lse[~reads]).all()


@every_kernel
def test_the_winner_or_nan_and_never_finite_garbage(name: str, preset: str) -> None:
    """Scores from 8·10⁻³ to 8·10⁷⁶ nats: query and keys along one axis, whose first key wins by half of the logit."""
    recipe = PRESETS[preset]
    for q_exponent, k_exponent in itertools.product(range(-2, 39, 5), range(0, 39, 4)):
        q = np.full((1, 1, 1, 64), 10.0**q_exponent, np.float32)
        k = np.float32(10.0**k_exponent) * np.array([1.0, 0.5, -1.0, 0.0], np.float32)[:, None].repeat(64, axis=1)
        v = np.array([1.0, -1.0, 0.25, 0.5], np.float32)[:, None].repeat(64, axis=1)
        out, lse = check(name, recipe, (q, k[None, None], v[None, None]))
        what, exponent = f"|q| = 1e{q_exponent}, |k| = 1e{k_exponent}", q_exponent + k_exponent
        assert np.isnan(out).all() == np.isnan(lse).all(), what
        if exponent >= 38:
            assert np.isnan(lse).all(), what
        elif exponent <= 4:
            assert np.isfinite(lse).all(), what
        if exponent >= 2 and not np.isnan(lse).any():
            # The winner takes all: its own P over itself, off by half a level of 7 or more, times s_v.
            assert_within(out, np.ones(out.shape), 2.0**-3, what)
            assert_within(lse, np.full(lse.shape, 8 * 10.0**exponent), 2 * 10.0**exponent, what)


@every_kernel
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-20, 1e20, 1e32, 1e37])
def test_sizes_from_subnormal_to_huge(name: str, preset: str, size: float) -> None:
    """Values of any size, and queries so large that keys as small have a say."""
    q, k, v = normal(50, 90)
    factor = np.float32(size)
    if PRESETS[preset].v_granularity != "block_channel" or size < 1e33:
        check(name, PRESETS[preset], (q, k, v * factor))  # with s_v in it, O is 255·90 times as large as a value
    check(name, PRESETS[preset], (q * factor, k, v))
    if 1e-38 < size < 1e30:
        check(name, PRESETS[preset], (q / factor, k * factor, v))


@every_kernel
def test_zeros(name: str, preset: str) -> None:
    """Keys of 0 weigh all values alike; a query of 0 sees them so; values of 0 give 0."""
    q, k, v = normal(65, 130)
    recipe = PRESETS[preset]
    values = quantize_arrays(q, k, v, recipe=recipe).dequantize()[2]
    mean = values.astype(np.float64).mean(axis=2, keepdims=True)
    for zero in ((q, 0 * k, v), (0 * q, k, v)):
        out, lse = check(name, recipe, zero)
        assert_within(out, np.broadcast_to(mean, out.shape), 1e-5 + np.abs(mean) * level(recipe) / 10)
        assert_within(lse, np.full(lse.shape, np.log(130)), 1e-5 if recipe.row_sum == "exact" else 1e-3)
    out, _ = check(name, recipe, (q, k, 0 * v))
    assert (out == 0).all()


@every_kernel
def test_a_single_key(name: str, preset: str) -> None:
    q, k, v = normal(70, 1)
    out, _ = check(name, PRESETS[preset], (q, k, v))
    values = quantize_arrays(q, k, v, recipe=PRESETS[preset]).dequantize()[2]
    assert_within(out, np.broadcast_to(values, out.shape), np.abs(values) * level(PRESETS[preset]) + 1e-6)


LONG = {
    "paper": PRESETS["paper"],
    "paper_255": get_recipe("paper", p_levels=255),
    "fast": PRESETS["fast"],
    "precise": PRESETS["precise"],
    "half": PRESETS["half"],
}


@pytest.mark.parametrize("length", [65_536, 65_537, 131_072, 140_000])
@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(n, r, id=f"{n}-{key}") for n in ROWS for key, r in LONG.items() if runs(n, r)],
)
def test_rows_longer_than_int32_can_sum(name: str, recipe: Recipe, length: int) -> None:
    """Zero queries weigh all keys alike: 127·127·140 000 and 255·127·65 793 pass 2³¹ unless sums are put aside.

    The other rows' maxima grow to the end, so that what was put aside has to be rescaled.
    """
    q, k, v = normal(9, length, heads=1, head_dim=48)
    q[:, :, ::2] = 0
    v[..., ::2] = 3 + 0.01 * v[..., ::2]
    size = np.linspace(0.5, 2, length, dtype=np.float32)[:, None]
    k *= size if recipe.key_order == "first_to_last" else size[::-1]
    out, lse = check(name, recipe, (q, k, v))
    values = quantize_arrays(q, k, v, recipe=recipe).dequantize()[2].astype(np.float64)
    mean = np.broadcast_to(values.mean(axis=2, keepdims=True), out.shape)
    # Tensor cores cut the sum of float products off at 24 bits, every 16 keys and always towards 0.
    cut = 0.0 if recipe.integer_pv else length / 16 * 2.0**-23
    assert_within(out[:, :, ::2], mean[:, :, ::2], 1e-4 + cut * np.abs(mean[:, :, ::2]))
    assert_within(lse[:, :, ::2], np.full((1, 1, 5), np.log(length)), 1e-5 if recipe.row_sum == "exact" else 2e-3)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(n, LONG[key], id=f"{n}-{key}") for n in ROWS for key in ("paper", "fast") if runs(n, LONG[key])],
)
def test_long_rows_of_several_heads_keep_their_sums_apart(name: str, recipe: Recipe) -> None:
    """150 rows are padded to 256, and a second block of 192 rows ends in those of the next head: not in its scratch."""
    q, k, v = normal(150, 66_000, heads=2, head_dim=48)
    q[:, 1] = 0
    v[:, 1] += 5
    check(name, recipe, (q, k, v))
