"""The study of errors through layers."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from study.runs import quick

from cupy_intfa import Recipe
from cupy_intfa.reference import oracle
from cupy_intfa.study import depth
from cupy_intfa.study.study import one, pick


def small_stack(**changes: Any) -> depth.Settings:
    return depth.Settings(heads=2, head_dim=8, tokens=6, seeds=(0,), **changes)


def test_stack_reads_attention_and_nothing_ahead() -> None:
    settings = small_stack()
    seen: list[tuple[np.ndarray, ...]] = []

    def spoil_the_last(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        seen.append((q, k, v))
        out = depth._exactly(q, k, v)
        out[:, :, -1] += 1.0
        return out

    streams = depth.run_stack(settings, 3, 0, {"exact": depth._exactly, "spoiled": spoil_the_last})
    assert [x.shape for x in streams["exact"]] == [(6, 16)] * 3
    assert seen[0][0].shape == (1, 2, 6, 8)
    for x, y in zip(*streams.values(), strict=True):
        assert_array_equal(x[:-1], y[:-1])  # causal: no row reads the last one
        assert (x[-1] != y[-1]).any()
    q, k, v = seen[0]
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(8)
    assert np.std(scores) == pytest.approx(settings.sharpness, rel=0.5)
    assert np.std(v) == pytest.approx(1.0, rel=0.3)


def test_first_layer_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng((1, 0))
    x = rng.standard_normal((6, 16))
    wq, wk, wv, wo, wu, wd = (rng.standard_normal((16, 16)) / 4 for _ in range(6))
    rms = np.sqrt((x**2).mean(axis=1, keepdims=True))
    attended = np.empty((6, 16))
    for h in range(2):
        own = slice(8 * h, 8 * h + 8)
        q, k, v = (x / rms @ w[:, own] for w in (2.0 * wq, wk, wv))
        for i in range(6):
            p = np.exp(k[: i + 1] @ q[i] / math.sqrt(8))
            attended[i, own] = p @ v[: i + 1] / p.sum()
    x = x + attended @ wo
    rms = np.sqrt((x**2).mean(axis=1, keepdims=True))
    x = x + np.maximum(x / rms @ wu, 0) @ wd
    (stream,) = depth.run_stack(small_stack(), 1, 0, {"exact": depth._exactly})["exact"]
    assert_allclose(stream, x, rtol=1e-10)


def test_errors_travel_and_keep_their_order() -> None:
    rows = quick("depth").rows
    for name in depth.deep_recipes():
        first, last = (one(rows, "relative_rmse", recipe=name, layer=layer) for layer in (1, 4))
        assert first < last < 4 * first  # more than one layer's error, less than the sum of four in line
    order = [row["recipe"] for row in sorted(pick(rows, layer=4), key=lambda row: float(row["relative_rmse"]))]
    assert order[0] == "fp16"
    assert list(order[-3:-1]) == ["fp8_e4m3", "fp8_e5m2"]
    assert order[-1] == "half, 4 bits"
    assert order.index("half") < order.index("fast") < order.index("paper")


def test_exact_attention_gives_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "deep_recipes", lambda: {"fp16": Recipe()})
    monkeypatch.setattr(depth, "attention", lambda q, k, v, **_: oracle.attention(q, k, v, is_causal=True)[0])
    for row in depth.STUDY.measure(small_stack(depths=(2,)), "numpy"):
        assert row["relative_rmse"] < 1e-6  # q, k and v were float32
        assert row["cosine"] == pytest.approx(1.0, abs=1e-9)
