"""The theory of rounding P, against rounding it, and against the noise model that the emulator is tested with."""

import math
from itertools import pairwise

import numpy as np
import pytest
from noise_model import p_noise

from cupy_intfa import PRESETS, get_recipe
from cupy_intfa.study.theory import KEY_TILE, predict_rounding


def round_rows(levels: int, tiled: bool, quantised_sum: bool, keys: int, rows: int, head_dim: int) -> float:
    """Draw weights, round them key tile by key tile, and compare the sums of random values: the definition."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(rng.chisquare(head_dim, rows) / head_dim)
    s = spread[:, None] * rng.standard_normal((rows, keys))
    error = output = 0.0
    for row in s:
        p, y = np.exp(row), np.empty(keys)
        for start in range(0, keys, KEY_TILE):
            own = slice(start, start + KEY_TILE)
            top = p[own].max() if tiled else p[: start + KEY_TILE].max()
            y[own] = np.rint(levels * p[own] / top) * top / levels
        total = y.sum() if quantised_sum else p.sum()
        error += float(((y / total - p / p.sum()) ** 2).sum())  # values of variance 1
        output += float(((p / p.sum()) ** 2).sum())
    return math.sqrt(error / output)


@pytest.mark.parametrize(
    ("preset", "keys", "bound"),
    [
        # 400 rows: the sums over rows are led by those with a large key, and scatter by a few per cent.
        ("paper", 512, 0.06),
        ("paper", 4096, 0.06),
        ("fast", 4096, 0.06),
        ("precise", 4096, 0.03),
    ],
)
def test_prediction_is_what_rounding_gives(preset: str, keys: int, bound: float) -> None:
    recipe = PRESETS[preset]
    drawn = round_rows(
        recipe.p_levels, recipe.p_reference == "tile", recipe.row_sum == "quantised", keys, rows=400, head_dim=64
    )
    assert predict_rounding(recipe, keys, 64) == pytest.approx(drawn, rel=bound)


def test_tile_reference_does_not_know_the_length() -> None:
    shortest, *others = (predict_rounding(PRESETS["precise"], 64 * 4**i, 128) for i in range(7))
    assert others == [shortest] * 6


def test_running_reference_grows_slower_than_any_power() -> None:
    errors = [predict_rounding(get_recipe("fast"), 1024 * 4**i, 128) for i in range(6)]
    growth = [b / a for a, b in pairwise(errors)]
    assert min(growth) > 1.2
    assert growth == sorted(growth, reverse=True)
    # exp(√(2 ln n)) is what the maximum grows like; that of a finite n lags behind it by a slowly moving factor.
    likely = [math.exp(math.sqrt(2 * math.log(1024 * 4**i))) for i in range(6)]
    for i, found in enumerate(growth):
        assert found == pytest.approx(likely[i + 1] / likely[i], rel=0.12)


def test_levels_divide_the_error_until_weights_are_lost() -> None:
    fine, coarse = (predict_rounding(get_recipe("fast", p_levels=levels), 4096, 64) for levels in (255, 127))
    assert coarse / fine == pytest.approx(255 / 127, rel=0.03)
    wide = predict_rounding(get_recipe("fast", pv="int8x2"), 4096, 64)
    assert wide == pytest.approx(fine * 255 / 65535, rel=0.03)


@pytest.mark.parametrize("preset", ["fast", "precise"])
def test_noise_model_agrees_where_steps_are_small(preset: str) -> None:
    recipe = PRESETS[preset]
    # The noise model takes every score's variance as 1 and every rounding as uniform: D large, levels many.
    model = math.sqrt(p_noise(recipe, 1024, 4096, KEY_TILE))
    assert predict_rounding(recipe, 1024, 4096) == pytest.approx(model, rel=0.05)


@pytest.mark.parametrize(
    "changes", [{"pv": "float16", "p_levels": 1, "v_granularity": "tensor"}, {"v_granularity": "token"}]
)
def test_what_it_does_not_model_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected integers P, not folded"):
        predict_rounding(get_recipe("fast", **changes), 1024, 64)


def test_row_sum_of_rounded_weights_costs_where_rows_are_sharp() -> None:
    # With D = 4 the scores of some rows are twice as wide: weights are lost, and with them a part of the row sum.
    quantised, exact = (predict_rounding(get_recipe("paper", row_sum=s), 4096, 4) for s in ("quantised", "exact"))
    assert quantised > 1.05 * exact
    drawn = [round_rows(127, False, of_rounded, 4096, rows=400, head_dim=4) for of_rounded in (True, False)]
    assert drawn[0] > 1.05 * drawn[1]
