"""What is compiled before a study starts: every kernel that it will launch, once."""

import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import TracebackType
from typing import Any

import pytest

from cupy_intfa import PRESETS, get_recipe
from cupy_intfa.data.families import make_qkv
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import compile_ahead
from cupy_intfa.study.compile_ahead import Kernel, list_kernels, shapes_of

FIRST = shapes_of(heads=4, kv_heads=2, q_len=100, kv_len=300, head_dim=64)
DEVICE = simulated_device("sm_90a")
ATTENTION = import_module("cupy_intfa.attention")  # not the function of the same name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls be planned for a GPU that is not there."""
    monkeypatch.setattr(ATTENTION, "default_device", lambda: DEVICE)


def launched(name: str, dtype: str) -> set[Kernel]:
    """Give what a call of a preset launches, from its plan."""
    q_shape, kv_shape = FIRST
    plan = make_plan(make_problem(q_shape, kv_shape, kv_shape, (dtype,) * 3), PRESETS[name], "cuda", DEVICE)
    assert plan.cuda is not None
    attends = plan.cuda.source, plan.cuda.defines, 0, plan.cuda.shared_bytes
    return {attends, *((one.source, one.defines, 0, 0) for one in plan.quantize[True].launches)}


def test_shapes_are_those_of_the_inputs() -> None:
    for shape in ({"heads": 3, "q_len": 2, "kv_len": 5, "head_dim": 4}, {"heads": 4, "kv_heads": 2, "q_len": 1}):
        whole: dict[str, Any] = {"kv_len": 7, "head_dim": 8, **shape}
        q, k, v = make_qkv("normal", **whole)
        assert shapes_of(**whole) == (q.shape, k.shape) == (q.shape, v.shape)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kernels_are_those_that_a_call_launches(dtype: str) -> None:
    for name in ("paper", "half", "fp8_e4m3"):
        found = list_kernels([PRESETS[name]], [FIRST], "auto", dtype)
        assert len(found) == len(set(found))
        assert set(found) == launched(name, dtype)


@pytest.mark.usefixtures("gpu")
def test_a_kernel_is_listed_once_and_the_long_compilations_first() -> None:
    longer = shapes_of(heads=1, q_len=5, kv_len=500, head_dim=64)
    recipes = [PRESETS["paper"], get_recipe("paper", key_order="last_to_first"), PRESETS["fast"]]
    found = list_kernels(recipes, [FIRST, longer], "auto", "float32")
    assert set(found) == launched("paper", "float32") | launched("fast", "float32")
    kinds = [source.split("_")[0] for source, *_ in found]
    assert kinds == sorted(kinds)  # attention, then quantize
    across = shapes_of(heads=1, q_len=5, kv_len=100_000, head_dim=64)  # empties its sums: another kernel
    assert len(list_kernels(recipes, [FIRST, across], "auto", "float32")) > len(found)


def test_without_a_gpu_or_a_kernel_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "ProcessPoolExecutor", None)
    assert compile_ahead.compile_ahead(PRESETS.values(), [FIRST], "numpy") == []
    monkeypatch.setattr(ATTENTION, "default_device", lambda: DEVICE)
    assert compile_ahead.compile_ahead([get_recipe("fast", pv="int8x2")], [FIRST], "auto") == []
    with pytest.raises(NotImplementedError, match="int8x2"):
        compile_ahead.compile_ahead([get_recipe("fast", pv="int8x2")], [FIRST], "cuda")


@pytest.mark.usefixtures("gpu")
def test_every_kernel_is_compiled_by_as_many_processes_as_help(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Kernel] = []

    class Pool:
        def __init__(self, workers: int, mp_context: Any) -> None:
            # A forked process would share a CUDA context, which no child can use.
            assert mp_context.get_start_method() == "spawn"
            assert workers == min(os.cpu_count() or 1, len(launched("paper", "float32")))

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
            pass

        def map(self, function: Callable[[Kernel], None], kernels: Iterable[Kernel]) -> Iterator[None]:
            assert function is compile_ahead._compile
            compiled.extend(kernels)
            yield

    monkeypatch.setattr(compile_ahead, "ProcessPoolExecutor", Pool)
    assert set(compile_ahead.compile_ahead([PRESETS["paper"]], [FIRST], "auto")) == launched("paper", "float32")
    assert set(compiled) == launched("paper", "float32")
