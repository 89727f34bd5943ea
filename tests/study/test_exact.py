"""Attention in float64: by rows as by the oracle, and on the GPU where there is one."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from cupy_intfa.data.families import make_qkv
from cupy_intfa.reference import oracle
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import exact

SHAPE: dict[str, Any] = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 7, "kv_len": 11, "head_dim": 8}


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("family", ["normal", "sink_first", "huge"])
def test_rows_at_a_time_are_the_oracle(family: str, rows: int) -> None:
    q, k, v = make_qkv(family, **SHAPE)
    found = exact.attend_by_rows(q, k, v, np, rows)
    assert found.dtype == np.float64
    # Scores are scaled before the product here and after it there: an ulp of a score of up to 10³ nats.
    assert_allclose(found, oracle.attention(q, k, v)[0], rtol=1e-9, atol=1e-12 * np.abs(v).max())


def test_a_gpu_computes_it_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make_qkv("normal", **SHAPE)
    moved: list[str] = []

    def asarray(x: np.ndarray) -> np.ndarray:
        moved.append("there")
        return x

    def asnumpy(x: np.ndarray) -> np.ndarray:
        moved.append("back")
        return x

    fake = SimpleNamespace(asarray=asarray, asnumpy=asnumpy, empty=np.empty, exp=np.exp)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(exact, "gpu_for", lambda backend: simulated_device() if backend == "auto" else None)
    assert_array_equal(exact.attend_exactly(q, k, v, "numpy"), oracle.attention(q, k, v)[0])
    assert moved == []
    assert_array_equal(exact.attend_exactly(q, k, v, "auto"), exact.attend_by_rows(q, k, v, np))
    assert moved == ["there"] * 3 + ["back"]
