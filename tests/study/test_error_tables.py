"""The study of the paper's tables, and how its claim is decided."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from study.runs import quick

from cupy_intfa import Recipe
from cupy_intfa.study import error_tables
from cupy_intfa.study.errors import EMULATOR, study_recipes
from cupy_intfa.study.study import one
from cupy_intfa.study.trials import REAL, Trial


def tiny(exact: list[float]) -> Trial:
    """Make a trial of which only the output matters."""
    return Trial(*(np.zeros((1, 1, 1, 1)),) * 3, np.array(exact).reshape(1, 1, -1, 1))


def test_measures_of_error_are_the_published_ones() -> None:
    out = np.array([1.0, 2.2, 0.0, 4.0, -5.5]).reshape(1, 1, 5, 1)
    found = error_tables.errors_of([out], [tiny([1.0, 2.0, 0.1, 4.0, -5.0])])
    relative = [0.0, 0.2 / 2.00001, 0.1 / 0.10001, 0.0, 0.5 / 5.00001]
    assert found["mre"] == pytest.approx(sum(relative) / 5)  # |a − b| / (|b| + 1e-5), the mean of all elements
    assert found["mre_last_four"] == pytest.approx(sum(relative[1:]) / 4)
    assert found["relative_l1"] == pytest.approx(0.8 / 12.1)
    assert found["relative_rmse"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.25) / (1 + 4 + 0.01 + 16 + 25)))
    assert found["mre_last_four_spread"] == found["cosine_spread"] == 0.0


def test_cited_numbers_stand_where_they_were_measured() -> None:
    rows = list(error_tables.cited_rows("normal", 64, 4096))
    assert {row["recipe"] for row in rows} > {*error_tables.TWINS.values()}
    for row in rows:
        assert row["ran"] == error_tables.CITED
        assert [name for name in error_tables.VALUES if row[name] is not None] == ["relative_rmse", "ran"]
    for elsewhere in (("normal", 64, 8192), ("uniform", 64, 4096), ("normal", 96, 4096)):
        assert list(error_tables.cited_rows(*elsewhere)) == []


def made_up_rows(paper: float, float8: float, keys: int = 1024) -> list[dict[str, Any]]:
    """Make rows of one family and length, in which every measure of error is that of the recipe."""
    errors = {"paper": paper, "fast": 0.01, "precise": 0.01, "fp8_e4m3": float8, "fp8_e5m2": 2 * float8}
    shape = {"family": "normal", "head_dim": 64, "keys": keys}
    measures = ("mre", "relative_l1", "relative_rmse", "mre_last_four")
    return [{**shape, "ran": "emulator", "recipe": name, **dict.fromkeys(measures, x)} for name, x in errors.items()]


def test_claim_of_the_paper_is_decided_by_the_rows() -> None:
    first, second, *_ = error_tables.STUDY.findings(made_up_rows(paper=0.03, float8=0.1))
    assert "reduced by: normal 70 %" in first
    assert "reached on no set as a whole" in first
    assert "reduced by: normal 85 %" in second
    assert "reached everywhere on normal." in second
    first, *_ = error_tables.STUDY.findings(made_up_rows(0.015, 0.1) + made_up_rows(0.03, 0.1, keys=2048))
    assert "reduced by: normal 70 to 85 %" in first
    assert "reached on no set as a whole" in first  # where it is not reached at every length


def test_paper_beats_fp8_where_values_are_bounded() -> None:
    rows = quick("error_tables").rows
    for float8 in error_tables.FLOAT8:
        assert min(error_tables.reductions(rows, "uniform", float8, "relative_rmse")) > 0.8
    assert max(error_tables.reductions(rows, REAL, "fp8_e4m3", "relative_rmse")) < 0.2
    # One rounding of each format: a step of 1/127 of the largest, or 2⁻³ and 2⁻² of the number itself.
    e4m3, e5m2 = (one(rows, "relative_rmse", family=REAL, recipe=name) for name in error_tables.FLOAT8)
    assert 1.7 < e5m2 / e4m3 < 2.2


def test_a_gpu_compares_all_rows_and_the_emulator_some(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    compiled: list[Any] = []

    def run(recipe: Recipe, trials: list[Trial], backend: str) -> list[np.ndarray]:
        for trial in trials:
            assert trial.exact.shape == trial.q.shape
            seen.setdefault(recipe.pv, set()).add(trial.q.shape)
        return [trial.exact.astype(np.float32) for trial in trials]

    def find_kernel(recipe: Recipe, trial: Trial, backend: str) -> str:
        return EMULATOR if recipe.pv == "int8x2" else "attention_sm90"

    monkeypatch.setattr(error_tables, "EMULATED", 200)
    monkeypatch.setattr(error_tables, "run_trials", run)
    monkeypatch.setattr(error_tables, "find_kernel", find_kernel)
    monkeypatch.setattr(error_tables, "compile_ahead", lambda *given: compiled.append(given))
    settings = replace(error_tables.STUDY.sizes["full"], lengths=(64, 300), head_dims=(16,), seeds=(0,))
    rows = list(error_tables.STUDY.measure(settings, "numpy"))
    drawn = {(1, 1, 64, 16), (1, 1, 300, 16)}
    assert seen["int8"] == seen["float16"] == drawn | {(1, 12, 224, 32)}
    assert seen["int8x2"] == {(1, 1, 64, 16), (1, 1, 200, 16), (1, 12, 200, 32)}
    assert all(row["relative_rmse"] < 1e-6 for row in rows)
    ((recipes, shapes, backend),) = compiled
    assert list(recipes) == list(study_recipes().values())
    assert {shape for shape, _ in shapes} == drawn | {(1, 12, 224, 32)}
    assert backend == "numpy"


def test_full_settings_are_those_of_the_paper() -> None:
    full = error_tables.STUDY.sizes["full"]
    assert full.lengths == tuple(1024 << i for i in range(5))
    assert (full.head_dims, len(full.seeds), full.queries) == ((64, 128), 5, None)
    assert full.shape(64, 8192) == {"heads": 1, "q_len": 8192, "kv_len": 8192, "head_dim": 64}
