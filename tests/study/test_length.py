"""The study of length."""

import math
from dataclasses import replace

import pytest
from study.runs import quick

from cupy_intfa import Recipe, get_recipe
from cupy_intfa.study import length
from cupy_intfa.study.theory import predict_rounding
from cupy_intfa.study.trials import Trial


def test_series_is_one_head_over_length() -> None:
    rows = quick("length").rows
    assert [(row["head_dim"], row["keys"]) for row in length.series(rows, "fast")] == [(128, 256), (128, 1024)]
    assert length.growth(rows, "fast") == tuple(row["relative_rmse"] for row in length.series(rows, "fast"))
    for row in rows:
        if row["predicted"] is not None:
            assert row["predicted"] == pytest.approx(math.hypot(row["rounding"], row["fine_p"]), rel=1e-12)
            assert row["rounding"] == predict_rounding(get_recipe(row["recipe"]), row["keys"], row["head_dim"])
            assert row["fine_p"] < row["relative_rmse"]
    for name in ("paper", "fast", "precise"):
        fine = get_recipe(name, pv="int8x2", p_levels=255)
        assert length.compared()[name] == (get_recipe(name), fine)


def test_full_settings_are_rows_of_1k_to_128k_and_the_layouts_of_models() -> None:
    cases = length.list_cases(length.STUDY.sizes["full"])
    series = [shape for layout, shape in cases if layout == length.SERIES]
    assert {shape["kv_len"] for shape in series if shape["head_dim"] == 128} == {1024 << i for i in range(8)}
    assert {shape["head_dim"] for shape in series if shape["kv_len"] == 2048} == {32, 64, 128, 256}
    assert len(series) == 8 + 3
    layouts = {name: shape for name, shape in cases if name != length.SERIES}
    assert {name: (s["heads"], s["kv_heads"], s["head_dim"]) for name, s in layouts.items()} == length.LAYOUTS


def test_theory_stands_beside_one_head_and_integers() -> None:
    for row in quick("length").rows:
        known = row["layout"] == length.SERIES and row["recipe"] in ("paper", "fast", "precise")
        assert [row[name] is not None for name in ("fine_p", "rounding", "predicted")] == [known] * 3


def test_fine_p_is_measured_on_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []

    def measure(recipe: Recipe, trials: list[Trial], backend: str) -> dict[str, object]:
        seen.append((recipe.pv == "int8x2", trials[0].exact.shape[2]))
        return {"relative_rmse": 0.1, "relative_rmse_spread": 0.0, "ran": "a kernel"}

    monkeypatch.setattr(length, "measure_error", measure)
    settings = replace(length.STUDY.sizes["quick"], queries=length.EMULATED + 10, lengths=(64,), layouts=())
    list(length.STUDY.measure(replace(settings, head_dims=()), "numpy"))
    assert set(seen) == {(True, length.EMULATED), (False, length.EMULATED + 10)}
