"""What attention is known to do, whatever the numbers: properties of the public function on drawn inputs."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, INTEGER_PV, LENGTHS, Array, Case, cases, recipes, seeds
from tolerances import assert_within, output_rounding, worst_case
from transcription import U

import cupy_intfa
from cupy_intfa import PRESETS, QuantizedQKV, Recipe, get_recipe
from cupy_intfa.metrics import compare
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import oracle

attention = partial(cupy_intfa.attention, backend="numpy")

SHORT = (1, 2, 31, 64, 65, 129)
SMOOTH_K = [name for name in PRESETS if PRESETS[name].smooth_k]


def bound_of(case: Case, recipe: Recipe) -> tuple[Array, Array, QuantizedQKV]:
    q, k, v = case.arrays()
    qkv = quantize_arrays(q, k, v, recipe=recipe)
    return *worst_case(q, k, v, qkv, scale=case.softmax_scale, causal_offset=case.causal_offset), qkv


@given(cases(dtypes=DTYPES, lengths=LENGTHS), recipes())
def test_agrees_with_exact_attention(case: Case, recipe: Recipe) -> None:
    q, k, v = case.arrays()
    out, lse = attention(q, k, v, recipe=recipe, return_lse=True, **case.keywords)
    exact_out, exact_lse = oracle.attention(q, k, v, **case.keywords)
    out_bound, lse_bound, _ = bound_of(case, recipe)
    rounding = output_rounding(np.abs(exact_out) + out_bound, case.dtype)
    assert_within(out, exact_out, out_bound + rounding, f"out, {recipe.name}")
    assert_within(lse, exact_lse, lse_bound, f"lse, {recipe.name}")


@given(
    cases(lengths=SHORT, causal=False),
    recipes(qk=("int8",), pv=INTEGER_PV),
    st.sampled_from(("tensor", "channel")),
    seeds,
)
def test_order_of_keys_does_not_matter(case: Case, recipe: Recipe, v_granularity: str, seed: int) -> None:
    """Keys that share no scale by position and change places inside their tile: the same integers, the same sums."""
    recipe = replace(
        recipe,
        k_granularity="token",
        v_granularity=v_granularity,
        key_window=0,
        key_block=64,
        row_sum="quantised",
        smooth_k=False,
        smooth_v=False,
    )
    q, k, v = case.arrays()
    rng = np.random.default_rng(seed)
    tiles = (np.arange(first, min(first + 64, case.kv_len)) for first in range(0, case.kv_len, 64))
    order = np.concatenate([rng.permutation(tile) for tile in tiles])
    keywords: dict[str, Any] = {"recipe": recipe, "return_lse": True, "scale": case.scale}
    (out, lse), (out_moved, lse_moved) = (
        attention(q, k, v, **keywords),
        attention(q, k[:, :, order], v[:, :, order], **keywords),
    )
    assert out_moved.tobytes() == out.tobytes()
    assert lse_moved.tobytes() == lse.tobytes()


@pytest.mark.parametrize("family", ["normal", "outlier", "sink_first"])
@pytest.mark.parametrize("name", PRESETS)
def test_order_of_keys_hardly_matters_to_any_preset(name: str, family: str) -> None:
    """Over all keys: other scales are shared and other maxima come first, so bits differ, and the error may not."""
    q, k, v = Case(family=family, heads=2, q_len=100, kv_len=500).arrays()
    order = np.random.default_rng(0).permutation(500)
    exact, _ = oracle.attention(q, k, v)
    plain = compare(attention(q, k, v, recipe=name), exact).relative_rmse
    moved = compare(attention(q, k[:, :, order], v[:, :, order], recipe=name), exact).relative_rmse
    # A sink that a running reference meets late costs rounding: that is the recipe's, not the order's.
    most = 1.2 if family != "sink_first" or PRESETS[name].p_reference == "tile" else 25
    assert moved <= most * plain + 1e-4


class TestShiftOfKeys:
    """K + c for every key: the softmax does not change, the log-sum-exp moves by scale · q·c."""

    @pytest.mark.parametrize("name", SMOOTH_K)
    def test_centred_keys_do_not_feel_it(self, name: str) -> None:
        q, k, v = Case(heads=4, kv_heads=4, q_len=100, kv_len=500).arrays()
        c = 50 * np.random.default_rng(5).standard_normal((1, 4, 1, 64)).astype(np.float32)
        (out, lse), (shifted, lse_shifted) = (attention(q, x, v, recipe=name, return_lse=True) for x in (k, k + c))
        exact, _ = oracle.attention(q, k, v)
        plain, moved = (compare(x, exact).relative_rmse for x in (out, shifted))
        assert moved <= 1.1 * plain, "the recipe's error grew"
        # The shift of lse is made from quantised q: off by half a step of q, times |c|, on each of 64 channels.
        step = np.abs(q).max(axis=-1) / 127 / 2 * (1 + 1e-5)
        off = 0.125 * (step * np.abs(c).sum(axis=-1)) + 0.05  # and the two rows' own errors, below .05 together
        assert_within(lse_shifted - lse, 0.125 * (q.astype(np.float64) * c).sum(axis=-1), off)

    @pytest.mark.parametrize("name", ["paper", "fp8_e4m3"])
    def test_keys_that_are_not_centred_do(self, name: str) -> None:
        """The test above can fail: the same shift multiplies the error of recipes that do not centre."""
        q, k, v = Case(heads=4, kv_heads=4, q_len=100, kv_len=500).arrays()
        c = 50 * np.random.default_rng(5).standard_normal((1, 4, 1, 64)).astype(np.float32)
        exact, _ = oracle.attention(q, k, v)
        plain, moved = (compare(attention(q, x, v, recipe=name), exact).relative_rmse for x in (k, k + c))
        assert moved > 5 * plain


@given(cases(lengths=SHORT), recipes())
def test_output_stays_among_the_values(case: Case, recipe: Recipe) -> None:
    """With a quantised row sum the output is a mean of quantised values."""
    q, k, v = case.arrays()
    if recipe.v_granularity == "token":
        recipe = replace(recipe, v_granularity="tensor")
    recipe = replace(recipe, row_sum="quantised")
    out = attention(q, k, v, recipe=recipe, **case.keywords)
    qkv = quantize_arrays(q, k, v, recipe=recipe)
    coded = qkv.dequantize()[2].astype(np.float64)
    group = case.heads // case.kv_heads
    low, high = (np.repeat(f(coded, axis=2, keepdims=True), group, axis=1) for f in (np.min, np.max))
    size = np.abs(coded).max() + (0 if qkv.v_mean is None else np.abs(qkv.v_mean).max())
    off = (case.kv_len + 40) * U * size + 2.0**-126  # float32 sums
    seen = (
        np.ones(case.q_len, np.bool_) if case.causal_offset is None else np.arange(case.q_len) + case.causal_offset >= 0
    )
    assert (out >= low - off)[:, :, seen].all()
    assert (out <= high + off)[:, :, seen].all()


@given(cases(families=("normal", "channel", "outlier", "sink_first"), lengths=SHORT), recipes(), st.integers(-20, 20))
def test_scaling_values_by_a_power_of_two_scales_the_output_exactly(case: Case, recipe: Recipe, exponent: int) -> None:
    if recipe.v_granularity == "token":
        recipe = replace(recipe, v_granularity="block_channel")  # there log₂ s_v enters P's exponent, and is rounded
    q, k, v = case.arrays()
    keywords: dict[str, Any] = {"recipe": recipe, "return_lse": True, **case.keywords}
    factor = np.float32(2.0**exponent)
    (out, lse), (out_scaled, lse_scaled) = attention(q, k, v, **keywords), attention(q, k, v * factor, **keywords)
    subnormal = np.minimum(np.abs(out), np.abs(out_scaled)) < 2.0**-126  # there a factor of 2 may round
    assert ((out_scaled == out * factor) | subnormal).all()
    assert lse_scaled.tobytes() == lse.tobytes()


@given(cases(families=("normal", "channel", "outlier", "sink_first"), lengths=SHORT), recipes(), st.integers(-10, 10))
def test_a_power_of_two_moves_from_q_to_the_scale(case: Case, recipe: Recipe, exponent: int) -> None:
    q, k, v = case.arrays()
    scale = 2.0**exponent * case.softmax_scale
    keywords: dict[str, Any] = {"recipe": recipe, "return_lse": True, **case.mask}
    out, lse = attention(q, k, v, scale=case.softmax_scale, **keywords)
    moved, lse_moved = attention(q * np.float32(2.0**-exponent), k, v, scale=scale, **keywords)
    assert moved.tobytes() == out.tobytes()
    assert lse_moved.tobytes() == lse.tobytes()


class TestSplitAndMerge:
    """Attention over two parts of the keys, merged by their log-sum-exps, is attention over all of them."""

    @staticmethod
    def merged(case: Case, recipe: Recipe, at: int) -> tuple[Array, Array]:
        q, k, v = case.arrays()
        parts = [
            attention(q, k[:, :, part], v[:, :, part], recipe=recipe, return_lse=True, scale=case.scale)
            for part in (slice(at), slice(at, None))
        ]
        outs, lses = (np.stack([part[i].astype(np.float64) for part in parts]) for i in range(2))
        lse = np.logaddexp(*lses)
        return (outs * np.exp(lses - lse)[..., None]).sum(axis=0), lse

    @pytest.mark.parametrize("family", ["normal", "channel", "outlier"])
    @pytest.mark.parametrize("name", PRESETS)
    def test_no_worse_than_the_whole(self, name: str, family: str) -> None:
        """Each part centres by its own mean; their lses meet only if each is that of the unshifted scores."""
        case = Case(family=family, heads=2, q_len=60, kv_len=500)
        exact, exact_lse = oracle.attention(*case.arrays())
        whole, whole_lse = attention(*case.arrays(), recipe=name, return_lse=True)
        merged, merged_lse = self.merged(case, PRESETS[name], 200)
        before, after = (compare(x, exact).relative_rmse for x in (whole, merged))
        assert after <= 1.25 * before + 1e-4
        lse_before, lse_after = (float(np.abs(x - exact_lse).max()) for x in (whole_lse, merged_lse))
        assert lse_after <= 2 * lse_before + 1e-3

    @given(
        cases(families=("normal", "uniform", "channel"), lengths=(2, 31, 65, 129), causal=False), recipes(), st.data()
    )
    def test_within_the_bounds_of_the_parts(self, case: Case, recipe: Recipe, data: st.DataObject) -> None:
        at = data.draw(st.integers(1, case.kv_len - 1))
        q, k, v = case.arrays()
        _, lse = self.merged(case, recipe, at)
        _, exact = oracle.attention(q, k, v, scale=case.scale)
        bounds = []
        for part in (slice(at), slice(at, None)):
            qkv = quantize_arrays(q, k[:, :, part], v[:, :, part], recipe=recipe)
            bounds.append(worst_case(q, k[:, :, part], v[:, :, part], qkv, scale=case.softmax_scale)[1])
        assert_within(lse, exact, np.maximum(*bounds) + 2.0**-40 * np.abs(exact))


@given(cases(lengths=SHORT, dtypes=("float32",)), recipes())
def test_lse_does_not_depend_on_values(case: Case, recipe: Recipe) -> None:
    if recipe.v_granularity == "token":
        recipe = replace(recipe, v_granularity="tensor")
    q, k, v = case.arrays()
    keywords: dict[str, Any] = {"recipe": recipe, "return_lse": True, **case.keywords}
    assert attention(q, k, v, **keywords)[1].tobytes() == attention(q, k, v[..., ::-1] * 3, **keywords)[1].tobytes()


@pytest.mark.parametrize("name", PRESETS)
def test_a_causal_row_sees_what_it_may(name: str) -> None:
    """Changing what comes behind a row's keys changes nothing in it but what is shared by all keys: here nothing."""
    recipe = get_recipe(name, smooth_k=False, smooth_v=False, key_window=0)
    q, k, v = Case(heads=2, q_len=150, kv_len=150).arrays()
    k[:, :, 64:] = k[:, :, :1]  # sizes that no maximum over shared blocks can tell from the first block's
    v[:, :, 64:] = v[:, :, :1]
    out = attention(q, k, v, recipe=recipe, is_causal=True)
    k[:, :, 64:], v[:, :, 64:] = k[:, :, 1:2], v[:, :, 1:2]
    changed = attention(q, k, v, recipe=recipe, is_causal=True)
    assert changed[:, :, :64].tobytes() == out[:, :, :64].tobytes()
    assert (changed[:, :, 70:] != out[:, :, 70:]).any(axis=-1).all()
