"""The study of rivals on the same inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from study.runs import quick

from cupy_intfa import PRESETS, attention
from cupy_intfa.demo import layer_samples
from cupy_intfa.metrics import compare
from cupy_intfa.reference import oracle
from cupy_intfa.study import peers, sage
from cupy_intfa.study.study import distinct, one, pick


def test_channels_of_zeros_change_no_answer() -> None:
    q, k, v = (x[:, :2, :40] for x in (layer_samples()[2].q, layer_samples()[2].k, layer_samples()[2].v))
    wide = peers.widen(q, k, v, 64)
    assert [x.shape[-1] for x in wide] == [64] * 3
    out, lse = oracle.attention(*wide)
    exact, exact_lse = oracle.attention(q, k, v)
    assert_allclose(out[..., :32], exact, rtol=1e-6, atol=1e-7)  # √2 is rounded to float32
    assert (out[..., 32:] == 0).all()
    assert_allclose(lse, exact_lse, rtol=1e-6)
    np.testing.assert_array_equal(np.stack(peers.widen(q, q, q, 32)), np.stack([q] * 3))


def test_a_layer_is_that_of_the_packaged_activations() -> None:
    sample = layer_samples()[4]
    found = attention(sample.q, sample.k, sample.v, recipe=PRESETS["paper"], backend="numpy")
    error = compare(found, oracle.attention(sample.q, sample.k, sample.v)[0]).relative_rmse
    assert one(quick("peers").rows, "relative_rmse", case="layer 4", recipe="paper") == pytest.approx(error, rel=0.05)


def test_everyone_is_asked_on_every_case() -> None:
    rows = quick("peers").rows
    assert distinct(rows, "case") == ["layer 4", "normal", "outlier"]
    for case in distinct(rows, "case"):
        asked = [row["recipe"] for row in pick(rows, case=case)]
        assert asked == [*peers.OURS, sage.NAME, *peers.RIVALS]
    for row in rows:
        assert (row["relative_rmse"] is None) == bool(row["missing"])
        assert row["not_finite"] == 0


def made(**errors: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """Make rows of two cases; None is for who was not run."""
    return [
        {"case": case, "recipe": name, "relative_rmse": x, "missing": "gone" if x is None else None}
        for name, both in errors.items()
        for case, x in zip(("layer 0", "normal"), both, strict=True)
    ]


def test_rivals_are_compared_case_by_case_and_stood_in_for() -> None:
    ours = {"fast": (0.01, 0.02), "precise": (0.01, 0.01), "half": (0.005, 0.008), "fp8_e4m3": (0.05, 0.05)}
    others = {
        "FA3 fp8": (None, None),
        "comfy-kitchen INT8": (0.008, 0.04),
        "SageAttention 1": (None, None),
        "SageAttention 2": (0.02, 0.02),
    }
    assert list(peers.STUDY.findings(made(**ours, **others))) == [
        "Error in units of that of FA3 fp8, for which `fp8_e4m3` stands, `fast` 0.20 to 0.40 (less on all), "
        "`precise` 0.20 to 0.20 (less on all), `half` 0.10 to 0.16 (less on all).",
        "Error in units of that of comfy-kitchen INT8 `fast` 0.50 to 1.25 (more on layer 0), `precise` 0.25 to 1.25 "
        "(more on layer 0), `half` 0.20 to 0.62 (less on all).",
        "Error in units of that of SageAttention 2 `fast` 0.50 to 1.00 (more on normal), `precise` 0.50 to 0.50 (less "
        "on all), `half` 0.25 to 0.40 (less on all).",
        "These were not run: FA3 fp8 (gone), SageAttention 1 (gone).",
    ]


def test_a_rival_without_a_finite_answer_is_not_divided_by() -> None:
    ours = made(fast=(0.01, 0.02), precise=(0.01, 0.01), half=(0.005, 0.008), fp8_e4m3=(0.05, 0.05))
    broken = [{**row, "missing": None} for row in made(**{"FA3 fp8": (None, None), "cuDNN fp8": (None, None)})]
    others = made(**{sage.NAME: (0.03, 0.04)})
    said = list(peers.STUDY.findings(ours + others + broken))
    assert [text.split(" stands")[0] for text in said] == [
        "Error in units of that of FA3 fp8, for which `fp8_e4m3`",
        f"Error in units of that of SageAttention 2, for which `{sage.NAME}`",
    ]
