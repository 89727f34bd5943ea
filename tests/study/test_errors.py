"""What the error of a recipe is, and the trials that it is taken over."""

import math
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from cupy_intfa import PRESETS, attention
from cupy_intfa.data.families import make_qkv
from cupy_intfa.metrics import compare
from cupy_intfa.reference import oracle
from cupy_intfa.study import trials
from cupy_intfa.study.errors import measure_error, summarise
from cupy_intfa.study.trials import REAL, Samples, make_trials, real_shapes


def test_summary_is_the_mean_and_the_range() -> None:
    found = [compare([1.0, 3.0], [1.0, 2.0]), compare([2.0, 2.0], [1.0, 2.0]), compare([1.0, 2.0], [1.0, 2.0])]
    summary = summarise(found, "relative_l1", "mean_relative_error")
    assert summary["relative_l1"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert summary["relative_l1_spread"] == pytest.approx(1 / 3)
    assert summary["mre"] == pytest.approx((0.5 / 2 + 1.0 / 2 + 0) / 3, rel=1e-4)  # the 1e-5 beside |b|
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        summarise([compare([math.nan], [1.0])], "relative_l1")


def test_trials_are_seeds_or_layers() -> None:
    shape: dict[str, Any] = {"heads": 1, "q_len": 5, "kv_len": 9, "head_dim": 16}
    drawn = make_trials("outlier", (3, 4), shape)
    q, k, v = make_qkv("outlier", **shape, seed=4)
    assert_array_equal(drawn[1].q, q)
    assert_array_equal(drawn[1].exact, oracle.attention(q, k, v)[0])
    real = make_trials(REAL, (3, 4))
    assert [trial.q.shape for trial in real] == [(1, 12, 224, 32)] * 6
    assert real_shapes() == (real[0].q.shape, real[0].v.shape)
    few = drawn[0].first(2)
    assert_array_equal(few.exact, drawn[0].exact[:, :, :2])
    assert_array_equal(attention(few.q, few.k, few.v), attention(drawn[0].q, few.k, few.v)[:, :, :2])
    error = measure_error(PRESETS["paper"], drawn, "numpy")
    each = [compare(attention(t.q, t.k, t.v, recipe="paper"), t.exact).relative_rmse for t in drawn]
    assert error == {
        "relative_rmse": pytest.approx(sum(each) / 2),
        "relative_rmse_spread": pytest.approx(abs(each[0] - each[1])),
        "ran": "emulator",
    }


@pytest.mark.parametrize("data", ["normal", REAL])
def test_float64_runs_where_the_recipes_do(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    asked: list[str] = []

    def attend(q: Any, k: Any, v: Any, backend: str) -> Any:
        asked.append(backend)
        return q.astype(float)

    monkeypatch.setattr(trials, "attend_exactly", attend)
    samples = Samples(data=(data,), heads=1, queries=2, keys=3, head_dim=4)
    assert len(samples.draw(data, "cuda")) == len(asked) == (6 if data == REAL else 5)
    assert set(asked) == {"cuda"}
