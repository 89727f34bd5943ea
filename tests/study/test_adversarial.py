"""The study of inputs made to hurt."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from study.runs import quick

from cupy_intfa.bench.contenders import Contender, Forms
from cupy_intfa.metrics import compare
from cupy_intfa.reference import oracle
from cupy_intfa.study import adversarial, beside, sage
from cupy_intfa.study.study import one, pick
from cupy_intfa.study.trials import Trial, make_trial


def weights(trial: Trial) -> np.ndarray:
    scores = trial.q.astype(np.float64) @ np.swapaxes(trial.k, -1, -2) / math.sqrt(trial.q.shape[-1])
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    whole: np.ndarray = p / p.sum(axis=-1, keepdims=True)
    return whole


def test_dominant_key_dominates_and_tails_are_heavy() -> None:
    shape = {"heads": 2, "q_len": 64, "kv_len": 512, "head_dim": 64}
    p = weights(make_trial(*adversarial.CASES["one dominant key"](seed=0, **shape)))
    assert (p[..., 512 // 3] > 0.5).mean() > 0.99
    assert p[..., 512 // 3].mean() > 0.95
    q, k, v = adversarial.CASES["heavy tails"](seed=1, **shape)
    assert (q.shape, k.shape) == ((1, 2, 64, 64), (1, 2, 512, 64))
    assert (np.abs(k) > 5).mean() == pytest.approx(0.0154, rel=0.1)  # P(|t₃| > 5); of N(0, 1) it is 6e-7
    assert not np.array_equal(k, v)
    plain, large = (adversarial.CASES[name](seed=2, **shape) for name in ("normal", "all × 100"))
    for x, y in zip(plain, large, strict=True):
        assert_allclose(y, 100 * x, rtol=1e-6)


def test_damage_counts_what_is_not_finite() -> None:
    found = [compare([1.0], [2.0]), compare([1.5], [2.0]), compare([math.inf], [2.0])]
    assert beside.damage(found) == {"relative_rmse": 0.375, "relative_rmse_spread": 0.25, "not_finite": 1}
    nothing = beside.damage(found[2:])
    assert nothing == {"relative_rmse": None, "relative_rmse_spread": None, "not_finite": 1}
    assert adversarial.is_broken(nothing)


def test_rivals_stand_beside_ours_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(case: Any, inputs: tuple[np.ndarray, ...]) -> Forms:
        assert (case.q_len, case.kv_len, inputs[0].dtype.name) == (16, 256, "float16")
        exact = oracle.attention(*inputs)[0]
        return Forms(kernel=lambda: exact, decode=lambda out: 1.25 * out)

    here = Contender("FA3 fp8", None, prepare)
    absent = Contender("SageAttention 2", "no-such-distribution", prepare)
    monkeypatch.setattr(beside, "RIVALS", (here, absent))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=np.asarray, ndarray=type(None)))
    settings = replace(adversarial.STUDY.sizes["quick"], seeds=(0,))
    rows = list(adversarial.STUDY.measure(settings, "numpy"))
    for row in pick(rows, recipe="FA3 fp8"):
        assert row["relative_rmse"] == pytest.approx(0.25, rel=1e-9)
        assert row["missing"] is None
    emulated = pick(rows, recipe=sage.NAME)
    assert [(row["case"], row["missing"], row["ran"]) for row in emulated] == [
        (case, None, "emulator") for case in adversarial.CASES
    ]
    assert {row["missing"] for row in pick(rows, recipe=absent.name)} == {"no-such-distribution is not installed"}
    said = list(adversarial.STUDY.findings(rows))
    why = "SageAttention 2 was not run (no-such-distribution is not installed); its scheme is emulated as"
    assert any(text.startswith(why) for text in said)
    assert sum("`FA3 fp8` 0.25" in text for text in said) == len(adversarial.CASES)


def test_a_factor_of_v_changes_nothing_and_one_of_the_scores_does() -> None:
    rows = quick("adversarial").rows
    for name in ("paper", "fast", "precise", "half"):
        plain, large, sharp = (
            one(rows, "relative_rmse", case=case, recipe=name) for case in ("normal", "V × 100", "scores × 10")
        )
        # The factor goes through every scale. What is left is how the products of it round to float16, the inputs.
        assert large == pytest.approx(plain, rel=0.01)
        assert sharp > plain
    assert not adversarial.is_broken(pick(rows, case="normal", recipe="paper")[0])


def test_others_are_compared_case_by_case() -> None:
    def rows(**errors: float | None) -> list[dict[str, Any]]:
        return [{"case": case, "recipe": name, "relative_rmse": x} for name, x in errors.items() for case in ("a", "b")]

    made = rows(fp8_e4m3=0.05, fast=0.02) + rows(**{"FA3 fp8": 0.055, sage.NAME: 0.03})
    made[-1]["relative_rmse"] = 0.01
    assert list(adversarial._say_how_others_fare(made)) == [
        "FA3 fp8 errs 1.100 to 1.100 times as much as `fp8_e4m3`.",
        "SageAttention 2, emulated, errs 0.50 to 1.50 times as much as the default; less on b.",
    ]
    assert list(adversarial._say_how_others_fare(rows(fp8_e4m3=0.05, fast=0.02, **{"FA3 fp8": None}))) == []
