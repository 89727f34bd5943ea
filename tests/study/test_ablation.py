"""The study that turns knobs."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from study.runs import quick

from cupy_intfa import get_recipe
from cupy_intfa.bench.report import Entry, Measured
from cupy_intfa.bench.timing import summarise as summarise_times
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import ablation, recipe_speeds, trials
from cupy_intfa.study.study import one


@pytest.mark.parametrize("base", ablation.BASES)
def test_every_knob_is_turned_alone(base: str) -> None:
    recipes = ablation.turned(base)
    whole = asdict(get_recipe(base))
    assert recipes.pop((ablation.UNTURNED, base)) == get_recipe(base)
    for (knob, setting), recipe in recipes.items():
        assert {name for name, value in asdict(recipe).items() if value != whole[name]} == {knob}
        assert str(getattr(recipe, knob)) == setting
    assert {knob for knob, _ in recipes} == set(ablation.KNOBS)


def test_levels_and_references_do_what_the_readme_says() -> None:
    rows = quick("ablation").rows
    found = ablation.effects(rows, "paper", "sink_first")
    assert max(found[knob] for knob in (("p_levels", "255"), ("key_order", "last_to_first"))) < 0.7
    assert found["p_reference", "tile"] < 0.7
    assert list(found.values()) == sorted(found.values())
    plain = one(rows, "relative_rmse", base="paper", knob="none", data="sink_first")
    wide = one(rows, "relative_rmse", base="paper", setting="255", data="sink_first")
    assert found["p_levels", "255"] == wide / plain


def test_a_gpu_measures_every_knob_that_has_a_kernel_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    compiled: list[int] = []

    def attend(case: Any, contenders: Any, *_: Any) -> dict[str, Entry]:
        asked.append([contender.name for contender in contenders])
        timing = summarise_times([1.0, 2.0, 3.0])
        measured = Measured(timing=timing, tops=case.tops(timing.median_ms))
        alone = {name: Entry(missing="only NumPy") for name in asked[0] if name.endswith("key_window 256")}
        return {name: Entry(forms={"kernel": measured}) for name in asked[0]} | alone

    monkeypatch.setattr(recipe_speeds, "gpu_for", lambda backend: simulated_device("sm_90a"))
    monkeypatch.setattr(recipe_speeds, "attend", attend)
    monkeypatch.setattr(recipe_speeds, "EventTimer", lambda: None)
    monkeypatch.setattr(recipe_speeds, "make_inputs", lambda *_: None)
    for module in (recipe_speeds, trials):
        monkeypatch.setattr(module, "compile_ahead", lambda recipes, *_: compiled.append(len(list(recipes))))
    settings = replace(ablation.STUDY.sizes["quick"], data=("normal",), keys=64, queries=4)
    rows = list(ablation.STUDY.measure(settings, "numpy"))
    ((*names,),) = asked
    assert len(rows) == len(names) == len(set(names)) == sum(len(ablation.turned(base)) for base in ablation.BASES)
    assert compiled == [len(names)] * 2  # for the case that is timed, and for the trials
    for row in rows:
        none = (row["knob"], row["setting"]) == ("key_window", "256")
        expected = None if none else ablation.SPEED.tops(2.0)
        assert row["tops"] == expected
        assert row["tops_from"] == ("only NumPy" if none else "simulated sm_90a")


def test_speeds_are_shares_of_the_preset() -> None:
    def row(setting: str, tops: float | None, knob: str = "p_levels") -> dict[str, Any]:
        return {"base": "paper", "knob": knob, "setting": setting, "tops": tops, "tops_from": "a GPU"}

    rows = [row("paper", 500.0, ablation.UNTURNED), row("255", 510.0), row("7", 250.0), row("256", None, "key_window")]
    assert ablation.speeds(rows, "paper") == {("p_levels", "7"): 0.5, ("p_levels", "255"): 1.02}
    assert list(ablation._say_speeds(rows, "paper")) == [
        "`paper`, 500 TOPS on a GPU; rate times: p_levels 7 0.50, p_levels 255 1.02. "
        "Not measured: key_window 256 (a GPU)."
    ]
    for unknown in (rows[:1], rows[1:]):
        assert ablation.speeds(unknown, "paper") == {}
        assert list(ablation._say_speeds(unknown, "paper")) == ["`paper`: the speed of no turned knob was measured."]
