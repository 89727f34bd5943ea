"""The study of memory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from study.runs import quick

from cupy_intfa import PRESETS
from cupy_intfa.data.families import make_qkv
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.reference import oracle
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import memory
from cupy_intfa.study.study import one


def test_bytes_are_those_of_the_plan() -> None:
    rows = quick("memory").rows
    shapes = (1, 32, 4096, 128), (1, 8, 4096, 128), (1, 8, 4096, 128)
    plan = make_plan(make_problem(*shapes, ("float16",) * 3), PRESETS["fast"], "cuda", simulated_device())
    assert plan.cuda is not None
    assert one(rows, "planned_bytes", recipe="fast", keys=4096) == plan.cuda.workspace_bytes
    assert one(rows, "own_bytes", recipe="fast", keys=4096) == 2 * 128 * 4096 * (2 * 32 + 2 * 8)
    assert one(rows, "planned_bytes", recipe=memory.PLAIN, keys=4096) == 2 * 2 * 32 * 4096**2
    for name in (*PRESETS, memory.PLAIN):
        short, long = (one(rows, "planned_bytes", recipe=name, keys=keys) for keys in (1024, 4096))
        assert long / short == pytest.approx(16 if name == memory.PLAIN else 4, rel=0.01)


def test_plain_attention_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", np)
    q, k, v = make_qkv("normal", heads=4, kv_heads=2, q_len=5, kv_len=9, head_dim=8, dtype=np.float64)
    assert_allclose(memory._plain(q, k, v), oracle.attention(q, k, v)[0], rtol=1e-12)


def test_peak_is_the_pool_without_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(malloc=object(), total_bytes=lambda: 5000)
    entered = []

    @contextmanager
    def using_allocator(malloc: object) -> Iterator[None]:
        entered.append(malloc)
        yield

    cuda = SimpleNamespace(MemoryPool=lambda: pool, using_allocator=using_allocator)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert memory._peak(lambda: np.zeros(100, np.float16)) == 5000 - 200
    assert entered == [pool.malloc]


def test_memory_is_measured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fake in (
        ("gpu_for", lambda backend: simulated_device("sm_90a")),
        ("_arrays", lambda problem: (None, None, None)),
        ("_peak", lambda call: 54321),
    ):
        monkeypatch.setattr(memory, name, fake)
    rows = list(memory.STUDY.measure(memory.STUDY.sizes["quick"], "auto"))
    for row in rows:
        runs = row["recipe"] != memory.PLAIN or row["keys"] <= 1024
        assert row["measured_bytes"] == (54321 if runs else None)
    planned = [one(rows, "planned_bytes", recipe="fast", keys=keys) for keys in (4096, 1024)]
    ratios = " to ".join(f"{54321 / bytes_:.2f}" for bytes_ in planned)
    assert f"`fast`: measured {ratios} times what the plan says." in list(memory.STUDY.findings(rows))
    assert not any("no GPU" in text for text in memory.STUDY.findings(rows))
