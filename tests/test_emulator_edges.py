"""The emulator where numbers end: empty rows, poison, scores that leave float32, large logits, extreme values."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array, Case, cases, recipes, seeds
from tolerances import assert_within
from transcription import U, evaluate

from cupy_intfa import PRESETS, Recipe, get_recipe
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import emulator

RECIPES = {
    **PRESETS,
    "v_token": get_recipe("paper", v_granularity="token", row_sum="exact"),
    "v_token_centred": get_recipe("fast", v_granularity="token", p_reference="tile"),
    "int8x2": get_recipe("fast", pv="int8x2"),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def run(
    q: Array, k: Array, v: Array, recipe: Recipe, *, scale: float | None = None, causal_offset: int | None = None
) -> tuple[Array, Array]:
    qkv = quantize_arrays(q, k, v, recipe=recipe)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return emulator.attention(qkv, scale=scale, key_tile=64, causal_offset=causal_offset)


class TestEmptyRows:
    """A row that sees no key: output 0, and not the mean of V that smoothing restores; lse −inf."""

    @every_recipe
    def test_output_is_zero_and_lse_minus_infinity(self, recipe: Recipe) -> None:
        case = Case(heads=2, q_len=300, kv_len=20, is_causal=True, causal_alignment="bottom_right")
        q, k, v = case.arrays()
        out, lse = run(q, k, v + np.float32(5), recipe, causal_offset=case.causal_offset)
        assert (out[:, :, :280] == 0).all()
        assert np.isneginf(lse[:, :, :280]).all()
        assert np.isfinite(lse[:, :, 280:]).all()
        assert (np.abs(out[:, :, 280:]) > 1).any(axis=-1).all()

    @given(cases(lengths=(1, 8, 65, 129), causal=True), recipes())
    def test_exactly_the_rows_without_a_key(self, case: Case, recipe: Recipe) -> None:
        q, k, v = case.arrays()
        _, lse = run(q, k, v, recipe, scale=case.softmax_scale, causal_offset=case.causal_offset)
        assert case.causal_offset is not None
        empty = np.arange(case.q_len) + case.causal_offset < 0
        assert (np.isneginf(lse) == empty).all()

    @every_recipe
    def test_poison_reaches_them_too(self, recipe: Recipe) -> None:
        q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 9, 8)).astype(np.float32)
        k[0, 0, 8, 0] = np.nan
        out, lse = run(q, k, v, recipe, causal_offset=-3)
        assert np.isnan(out).all()
        assert np.isnan(lse).all()


class TestPoison:
    """What is not finite in q, k or v never becomes a finite number, and touches nothing that does not read it."""

    @every_recipe
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
    def test_in_a_query_row(self, recipe: Recipe, bad: float) -> None:
        q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 70, 16))
        q[1, 0, 33, 5] = 0
        out, lse = run(q, k, v, recipe)
        q[1, 0, 33, 5] = bad
        out_bad, lse_bad = run(q, k, v, recipe)
        assert np.isnan(out_bad[1, 0, 33]).all()
        assert np.isnan(lse_bad[1, 0, 33])
        out[1, 0, 33], lse[1, 0, 33] = np.nan, np.nan
        assert out.tobytes() == out_bad.tobytes(), "another row changed"
        assert lse.tobytes() == lse_bad.tobytes()

    @every_recipe
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e39])
    @pytest.mark.parametrize("where", ["k", "v"])
    def test_in_a_key_or_value_also_where_masked(self, recipe: Recipe, bad: float, where: str) -> None:
        rng = np.random.default_rng(0)
        q, (k, v) = rng.standard_normal((2, 4, 70, 16)), rng.standard_normal((2, 2, 2, 70, 16))
        out, lse = run(q, k, v, recipe, causal_offset=0)
        (k if where == "k" else v)[0, 1, 69, 3] = bad  # the last key, which the last row alone sees
        out_bad, lse_bad = run(q, k, v, recipe, causal_offset=0)
        reads = np.zeros((2, 4), np.bool_)
        reads[0, 2:] = True
        assert np.isnan(out_bad[reads]).all(), "every row of the heads that read it"
        assert np.isnan(lse_bad[reads]).all()
        assert out_bad[~reads].tobytes() == out[~reads].tobytes(), "a head that does not read it changed"
        assert lse_bad[~reads].tobytes() == lse[~reads].tobytes()


class TestLargeScores:
    """Query and keys along one axis, the keys' factors 1, ½, −1, 0: the first key wins by half of the logit."""

    FACTORS = np.array([1.0, 0.5, -1.0, 0.0])
    VALUES = np.array([1.0, -1.0, 0.25, 0.5])

    def dominated(self, q_size: float, k_size: float) -> tuple[Array, Array, Array]:
        ones = np.ones((1, 1, 1, 16))
        q, k = ones * q_size, ones.repeat(4, axis=2) * k_size * self.FACTORS[:, None]
        v = ones.repeat(4, axis=2) * self.VALUES[:, None]
        return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)

    @every_recipe
    def test_the_winner_or_nan_and_never_finite_garbage(self, recipe: Recipe) -> None:
        """Scores from 4·10³ to 4·10³⁸ nats, 10^exponent split between |q| and |k| in every way."""
        for exponent in range(3, 39):
            for q_exponent in range(max(0, exponent - 38), min(38, exponent) + 1, 6):
                q, k, v = self.dominated(10.0**q_exponent, 10.0 ** (exponent - q_exponent))
                out, lse = run(q, k, v, recipe)
                what = f"|q| = 1e{q_exponent}, |k| = 1e{exponent - q_exponent}"
                if np.isnan(out).all():
                    assert np.isnan(lse).all(), what
                    continue
                # The winner takes all: its own P over itself, off by half a level of 7 or more, times s_v; the lse is
                # off by the formats of Q and K.
                assert_within(out, np.ones(out.shape), 2.0**-3, what)
                assert_within(lse, np.full(lse.shape, 4 * 10.0**exponent), 10.0**exponent, what)

    @every_recipe
    @pytest.mark.parametrize(
        ("q_size", "k_size"), [(1e20, 1e20), (3e38, 10.0), (10.0, 3e38), (3e38, 3e38), (1e30, 1e10)]
    )
    def test_beyond_float32_is_nan(self, recipe: Recipe, q_size: float, k_size: float) -> None:
        out, lse = run(*self.dominated(q_size, k_size), recipe)
        assert np.isnan(out).all()
        assert np.isnan(lse).all()

    @every_recipe
    def test_a_scale_that_leaves_float32_is_nan_without_a_warning(self, recipe: Recipe) -> None:
        for size, scale in ((1.0, 1e39), (1e38, 1e10), (1.0, 1e300), (3e38, 1e308)):
            out, lse = run(*self.dominated(size, 1.0), recipe, scale=scale)
            assert np.isnan(out).all()
            assert np.isnan(lse).all()


class TestLargeLogits:
    """Rows of logits of 10², 10³ and 10⁵ nats: P stays in its range, the maximum's value comes out."""

    @every_recipe
    @pytest.mark.parametrize("logit", [1e2, 1e3, 1e5])
    def test_p_never_passes_r(self, recipe: Recipe, logit: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """255.5 would round to 256, which is 0 in a byte. Many rows with a few keys near their maximum try it."""
        largest: list[float] = []
        second_product = emulator._second_product

        def spy(p: Array, *rest: Any) -> Array:
            largest.append(float(p.max()))
            return second_product(p, *rest)

        monkeypatch.setattr(emulator, "_second_product", spy)
        rng = np.random.default_rng(int(logit))
        q, k, v = rng.standard_normal((3, 1, 2, 600, 8)).astype(np.float32)
        k[:, :, ::7] = k[:, :, :1]  # ties
        out, lse = run(q, k, v, recipe, scale=float(logit / np.abs(q @ k.swapaxes(2, 3)).max()))
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()
        assert largest
        assert 0 < max(largest) <= recipe.p_top

    @given(seed=seeds, logit=st.sampled_from((1e2, 1e3, 1e5)), index=st.integers(0, len(RECIPES) - 1))
    def test_output_is_the_value_of_the_maximum(self, seed: int, logit: float, index: int) -> None:
        """Keys are multiples of one direction: the best is ahead by a tenth of its logit or more."""
        recipe = list(RECIPES.values())[index]
        rng = np.random.default_rng(seed)
        factors = rng.permutation(np.linspace(-1, 1, 21))
        direction = rng.choice((-1.0, 1.0), 16)
        q = np.tile(direction, (1, 1, 3, 1)).astype(np.float32)
        k = (factors[:, None] * direction * logit / 16)[None, None].astype(np.float32)
        v = rng.uniform(-1, 1, (1, 1, 21, 16)).astype(np.float32)
        out, lse = run(q, k, v, recipe, scale=1.0)
        # V to its step (1/254, or an 8-bit float's 2⁻³ of itself), with means 0; P of the second best, e^-10 of R.
        # The best alone is off by its own rounding, and by one unit in the last place of the logit in float32.
        off = {"float8_e4m3": 2.0**-4, "float8_e5m2": 2.0**-3}.get(recipe.pv, 1 / 200)
        off += 2 * np.expm1(4 * U * logit * 1.5) + np.exp(-0.1 * logit) * 20
        assert_within(out, np.broadcast_to(v[:, :, [factors.argmax()]], out.shape), off * 1.3)
        relative = {"float8_e4m3": 2.0**-3, "float8_e5m2": 2.0**-2}.get(recipe.qk, 2.0**-6)
        assert_within(lse, np.full(lse.shape, logit), relative * logit)


class TestExtremeValues:
    """V of any size, zeros, and constants."""

    @every_recipe
    @pytest.mark.parametrize("size", [1e-36, 1e-30, 1e30])
    def test_values_of_any_size_keep_the_recipes_meaning(self, recipe: Recipe, size: float) -> None:
        case = Case(q_len=20, kv_len=100, head_dim=16)
        q, k, v = case.arrays()
        qkv = quantize_arrays(q, k, v * np.float32(size), recipe=recipe)
        out, lse = emulator.attention(qkv, scale=0.25, key_tile=64)
        meant = evaluate(qkv, scale=0.25, key_tile=64)
        assert_within(out, meant.out, meant.out_slack + 2.0**-126)
        assert_within(lse, meant.lse, meant.lse_slack)
        assert (np.abs(out) > 1e-3 * size).any()

    @every_recipe
    def test_values_of_zeros(self, recipe: Recipe) -> None:
        q, k, _ = Case(q_len=20, kv_len=100, head_dim=16).arrays()
        _, lse = run(q, k, np.ones_like(k), recipe, causal_offset=0)
        out, lse_zero = run(q, k, np.zeros_like(k), recipe, causal_offset=0)
        assert (out == 0).all()
        assert lse_zero.tobytes() == lse.tobytes(), "lse does not depend on V"

    @every_recipe
    def test_one_value_for_all_keys_comes_out(self, recipe: Recipe) -> None:
        q, k, _ = Case(q_len=20, kv_len=100, head_dim=16).arrays()
        v = np.broadcast_to(np.linspace(1, 3, 16, dtype=np.float32), k.shape)
        out, _ = run(q, k, v, recipe, causal_offset=0)
        # With V centred nothing is left to quantise, else V is off by half a step of 3 (or a float's half ulp) and,
        # where the row sum is exact, the sum of rounded P from the sum of P by half a level per key of 100.
        centred = recipe.smooth_v
        step = {"float8_e4m3": 3 * 2.0**-4, "float8_e5m2": 3 * 2.0**-3}.get(recipe.pv, 3 / 254)
        p_off = 3 * 2.0**-11 if recipe.row_sum == "quantised" else 3 * 2.0**-4
        assert_within(out, v[:, :, :20], 16 * U * 3 if centred else step + p_off)

    @every_recipe
    def test_zero_rows_among_values_count_in_the_row_sum(self, recipe: Recipe) -> None:
        """Half of the values are 0: the output is half of what the others give, and zeros lead no maximum.

        By rule their scale is 1, a thousand times what the others, 1/127 of 0.01, would have.
        """
        q = np.zeros((1, 1, 100, 16), np.float32)
        v = np.zeros((1, 1, 100, 16), np.float32)
        v[:, :, ::2] = 0.01
        out, lse = run(q, q, v, recipe, causal_offset=0)
        seen = np.arange(1, 101)
        assert_within(lse[0, 0], np.log(seen), 8 * U * 8 + (0.004 if recipe.row_sum == "quantised" else 0))
        wanted = np.repeat((seen + 1) // 2 / seen, 16).reshape(100, 16)
        assert_within(out[0, 0] * 100, wanted, 0.004 + 2.0**-10)
