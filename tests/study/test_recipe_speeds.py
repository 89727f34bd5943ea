"""How fast recipes are beside their error: measured, or read from the reports."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from cupy_intfa import get_recipe
from cupy_intfa.bench.cases import SUITES
from cupy_intfa.bench.contenders import Contender, Forms
from cupy_intfa.bench.report import Entry, Measured
from cupy_intfa.bench.timing import summarise as summarise_times
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import recipe_speeds, v_quantisation
from cupy_intfa.study.report import RESULTS


def test_speeds_are_those_of_the_report() -> None:
    case = v_quantisation.SPEED
    place = SUITES["prefill"].cases.index(case)
    stored = json.loads((RESULTS / "prefill_nvidia-h200.json").read_text(encoding="utf-8"))
    assert stored["results"][place]["case"] == asdict(case)
    kernel = stored["results"][place]["entries"]["fast"]["forms"]["kernel"]
    recipes = {"a": get_recipe("fast"), "b": get_recipe("fast", rotate=True)}
    found = recipe_speeds.find_speeds(recipes, case, "numpy")
    assert found["a"] == {"tops": kernel["tops"], "tops_from": f"{stored['gpu']}, {stored['date'][:10]}"}
    assert found["b"] == recipe_speeds.UNKNOWN
    assert recipe_speeds.find_speeds(recipes, replace(case, head_dim=96), "numpy")["a"] == recipe_speeds.UNKNOWN


def test_speeds_are_measured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    case, timing = v_quantisation.SPEED, summarise_times([2.0, 2.0])

    prepared: list[Any] = []

    def attend(case: Any, contenders: Any, *_: Any) -> dict[str, Entry]:
        first, second = (contender.name for contender in contenders)
        kernel = {form: Measured(timing=timing, tops=tops) for form, tops in (("kernel", 500.0), ("e2e", 400.0))}
        return {first: Entry(forms=kernel), second: Entry(missing="no kernel for it")}

    for name, fake in (
        ("gpu_for", lambda backend: simulated_device("sm_90a")),
        ("compile_ahead", lambda recipes, *rest: prepared.append((list(recipes), *rest))),
        ("attend", attend),
        ("EventTimer", lambda: None),
        ("make_inputs", lambda *_: None),
    ):
        monkeypatch.setattr(recipe_speeds, name, fake)
    recipes = {"a": get_recipe("fast"), "b": get_recipe("fast", v_granularity="token")}
    found = recipe_speeds.find_speeds(recipes, case, "auto")
    assert prepared == [([*recipes.values()], [(case.q_shape, case.kv_shape)], "auto", "float16")]
    assert found["a"] == {"tops": 500.0, "tops_from": "simulated sm_90a"}
    assert found["b"] == {"tops": None, "tops_from": "no kernel for it"}


def test_only_the_kernel_is_timed() -> None:
    both = Contender("a", None, lambda case, inputs: Forms(kernel=lambda: case, e2e=lambda: inputs))
    forms = recipe_speeds._from_codes(both).prepare(v_quantisation.SPEED, (1, 2, 3))
    assert list(forms.named) == ["kernel"]
    assert forms.named["kernel"]() == v_quantisation.SPEED
