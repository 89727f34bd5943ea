"""The studies: what they measure is what their names say, and what they print comes from their rows."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from cupy_intfa import PRESETS, Recipe, attention, get_recipe
from cupy_intfa.bench.cases import SUITES
from cupy_intfa.bench.contenders import Contender, Forms
from cupy_intfa.bench.report import Entry, Measured, save_report
from cupy_intfa.bench.timing import summarise as summarise_times
from cupy_intfa.data.families import make_qkv
from cupy_intfa.metrics import compare
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.reference import oracle
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import (
    ablation,
    adversarial,
    depth,
    error_tables,
    length,
    low_bits,
    memory,
    recipe_speeds,
    v_quantisation,
)
from cupy_intfa.study.errors import REAL, Trial, make_trial, make_trials, measure_error, summarise
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import RESULTS, StudyReport, from_json, load_study
from cupy_intfa.study.runner import choose_size, run_study
from cupy_intfa.study.study import SIZES, Pivot, distinct, one, pick
from cupy_intfa.study.tables import make_study_table
from cupy_intfa.study.theory import predict_rounding


@cache
def quick(name: str) -> StudyReport:
    """Run a study once for all tests."""
    return run_study(STUDIES[name], "quick", "numpy", commit="0123456789ab")


def tiny(exact: list[float]) -> Trial:
    """Make a trial of which only the output matters."""
    return Trial(*(np.zeros((1, 1, 1, 1)),) * 3, np.array(exact).reshape(1, 1, -1, 1))


# Of every study


@pytest.mark.parametrize("name", STUDIES)
def test_rows_have_the_columns_that_the_study_names(name: str) -> None:
    study, report = STUDIES[name], quick(name)
    keys = [tuple(row[key] for key in study.keys) for row in report.rows]
    assert len(set(keys)) == len(keys) > 0
    for row in report.rows:
        assert set(row) == {*study.keys, *study.values}
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers)
        spreads = [row[value] for value in row if value.endswith("_spread")]
        assert all(spread is None or spread >= 0.0 for spread in spreads)
    assert set(study.sizes) == set(SIZES)


@pytest.mark.parametrize("name", STUDIES)
def test_report_is_the_same_after_a_file(name: str, tmp_path: Path) -> None:
    report = quick(name)
    file = save_report(report, tmp_path)
    assert file.name == f"study_{name}_quick.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    read = from_json(stored)
    assert read.rows == report.rows
    assert read.to_json() == stored
    assert save_report(read, tmp_path / "again").read_text() == file.read_text()
    assert json.loads(json.dumps(asdict(STUDIES[name].sizes["quick"]))) == stored["settings"]


@pytest.mark.parametrize("name", ["v_quantisation", "memory", "depth"])
def test_a_second_run_gives_the_same_rows(name: str) -> None:
    study = STUDIES[name]
    assert tuple(study.measure(study.sizes["quick"], "numpy")) == quick(name).rows


@pytest.mark.parametrize("name", STUDIES)
def test_findings_are_made_of_the_rows(name: str) -> None:
    study, rows = STUDIES[name], quick(name).rows
    measured = {value for value in study.values if isinstance(rows[0][value], float | int)} - {"cosine", "not_finite"}
    # Every row by a factor of its own, or ratios would stay what they are.
    changed = [
        {key: x * (1.5 + 0.01 * i) if key in measured and x else x for key, x in row.items()}
        for i, row in enumerate(rows)
    ]
    sentences = list(study.findings(rows))
    assert sentences == list(study.findings(json.loads(json.dumps(rows))))
    numbered = [text for text in sentences if any(c.isdigit() for c in text) and "not run" not in text]
    assert numbered
    kept = set(study.findings(changed)) & set(numbered)
    assert len(kept) <= len(numbered) // 4, kept


@pytest.mark.parametrize("name", STUDIES)
def test_table_prints_the_rows(name: str) -> None:
    study, report = STUDIES[name], quick(name)
    table = make_study_table(study, report)
    cells = [cell for row in table.rows for cell in row[len(study.table.rows) :]]
    printed = sorted(float(cell) for cell in cells if cell != "–")
    values = sorted(row[study.table.value] for row in report.rows if row[study.table.value] is not None)
    assert_allclose(printed, values, rtol=5e-3)  # three digits
    assert table.notes == tuple(study.findings(report.rows))
    assert "commit 0123456789ab, " in table.stamp
    assert report.date[:10] in table.stamp


def test_table_can_be_laid_out_otherwise() -> None:
    study, report = STUDIES["error_tables"], quick("error_tables")
    pivot = Pivot(rows=("recipe",), columns=("keys",), value="cosine", where={"family": "normal"})
    table = make_study_table(study, report, pivot)
    assert table.head == ("recipe", "S256", "S512")
    assert [row[0] for row in table.rows] == [*(f"`{name}`" for name in PRESETS), "int8x2"]
    assert float(table.rows[0][2]) == pytest.approx(
        one(report.rows, "cosine", family="normal", keys=512, recipe="paper"), rel=5e-3
    )


def test_report_says_where_it_ran() -> None:
    report = quick("memory")
    assert (report.commit, report.dirty, report.driver) == ("0123456789ab", False, None)
    assert report.machine.endswith("NumPy")
    assert {"numpy", "scipy", "ml_dtypes", "cupy-intfa"} <= set(report.versions)
    assert choose_size("numpy") == "small"


def test_another_schema_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    stored = quick("memory").to_json()
    for wrong in ({**stored, "schema": 2}, {"schema": 1, "suite": "paper"}):
        with pytest.raises(ValueError, match="expected the report of a study in schema 1"):
            from_json(wrong)
    with pytest.raises(FileNotFoundError, match="run python -m cupy_intfa study memory --output"):
        load_study("memory", tmp_path)


def test_one_row_is_one_row() -> None:
    with pytest.raises(LookupError, match=r"2 rows with \{'a': 1\}: expected one"):
        one([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "b", a=1)


# Errors


def test_summary_is_the_mean_and_the_range() -> None:
    found = [compare([1.0, 3.0], [1.0, 2.0]), compare([2.0, 2.0], [1.0, 2.0]), compare([1.0, 2.0], [1.0, 2.0])]
    summary = summarise(found, "relative_l1", "mean_relative_error")
    assert summary["relative_l1"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert summary["relative_l1_spread"] == pytest.approx(1 / 3)
    assert summary["mre"] == pytest.approx((0.5 / 2 + 1.0 / 2 + 0) / 3, rel=1e-4)  # the 1e-5 beside |b|
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        summarise([compare([math.nan], [1.0])], "relative_l1")


def test_trials_are_seeds_or_layers() -> None:
    trials = make_trials("outlier", (3, 4), heads=1, q_len=5, kv_len=9, head_dim=16)
    q, k, v = make_qkv("outlier", heads=1, q_len=5, kv_len=9, head_dim=16, seed=4)
    assert_array_equal(trials[1].q, q)
    assert_array_equal(trials[1].exact, oracle.attention(q, k, v)[0])
    assert [trial.q.shape for trial in make_trials(REAL, (3, 4))] == [(1, 12, 224, 32)] * 6
    error = measure_error(PRESETS["paper"], trials, "numpy")
    each = [compare(attention(t.q, t.k, t.v, recipe="paper"), t.exact).relative_rmse for t in trials]
    assert error == {
        "relative_rmse": pytest.approx(sum(each) / 2),
        "relative_rmse_spread": pytest.approx(abs(each[0] - each[1])),
        "ran": "emulator",
    }


# Error tables


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


# Ablation


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


# Adversarial


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
    assert adversarial.damage(found) == {"relative_rmse": 0.375, "relative_rmse_spread": 0.25, "not_finite": 1}
    nothing = adversarial.damage(found[2:])
    assert nothing == {"relative_rmse": None, "relative_rmse_spread": None, "not_finite": 1}
    assert adversarial.is_broken(nothing)


def test_rivals_stand_beside_ours_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(case: Any, inputs: tuple[np.ndarray, ...]) -> Forms:
        assert (case.q_len, case.kv_len, inputs[0].dtype.name) == (16, 256, "float16")
        exact = oracle.attention(*inputs)[0]
        return Forms(kernel=lambda: exact, decode=lambda out: 1.25 * out)

    here = Contender("FA3 fp8", None, prepare)
    absent = Contender("SageAttention 2", "no-such-distribution", prepare)
    monkeypatch.setattr(adversarial, "RIVALS", (here, absent))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=np.asarray, ndarray=type(None)))
    settings = replace(adversarial.STUDY.sizes["quick"], seeds=(0,))
    rows = list(adversarial.STUDY.measure(settings, "numpy"))
    for row in pick(rows, recipe="FA3 fp8"):
        assert row["relative_rmse"] == pytest.approx(0.25, rel=1e-9)
        assert row["missing"] is None
    assert {row["missing"] for row in pick(rows, recipe=absent.name)} == {"no-such-distribution is not installed"}
    said = list(adversarial.STUDY.findings(rows))
    assert any("SageAttention 2 was not run (no-such-distribution is not installed)" in text for text in said)
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


# V


def test_schemes_of_v_are_the_presets_with_another_v() -> None:
    for reference, preset in v_quantisation.REFERENCES.items():
        base = get_recipe(preset)
        for scheme, recipe in v_quantisation.schemes(reference).items():
            assert recipe.p_reference == reference
            changed = {name for name, value in asdict(recipe).items() if value != asdict(base)[name]}
            assert changed <= {"v_granularity", "smooth_v"} | (
                {"pv", "p_levels"} if scheme in v_quantisation.WIDE else set()
            )
            if scheme not in v_quantisation.WIDE:
                assert scheme == f"{recipe.v_granularity}{', centred' * recipe.smooth_v}"


def test_scales_of_v_follow_the_outliers() -> None:
    rows = pick(quick("v_quantisation").rows, data="outlier_token", reference="tile")
    error = {row["scheme"]: row["relative_rmse"] for row in rows}
    assert error["token"] < 0.8 * error["block_channel"] < 0.64 * error["tensor"]
    means = v_quantisation.means(quick("v_quantisation").rows, "tile")
    assert means["tensor"] == 1.0
    assert means["block_channel"] < means["channel"] < 1.0


def test_speeds_are_those_of_the_report() -> None:
    case = SUITES["prefill"].cases[5]
    assert case == v_quantisation.SPEED
    stored = json.loads((RESULTS / "prefill_nvidia-h200.json").read_text(encoding="utf-8"))
    kernel = stored["results"][5]["entries"]["fast"]["forms"]["kernel"]
    recipes = {"a": get_recipe("fast"), "b": get_recipe("fast", rotate=True)}
    found = recipe_speeds.find_speeds(recipes, case, "numpy")
    assert found["a"] == {"tops": kernel["tops"], "tops_from": f"{stored['gpu']}, {stored['date'][:10]}"}
    assert found["b"] == recipe_speeds.UNKNOWN
    assert recipe_speeds.find_speeds(recipes, replace(case, head_dim=96), "numpy")["a"] == recipe_speeds.UNKNOWN


def test_speeds_are_measured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    case, timing = v_quantisation.SPEED, summarise_times([2.0, 2.0])

    def attend(case: Any, contenders: Any, *_: Any) -> dict[str, Entry]:
        first, second = (contender.name for contender in contenders)
        kernel = {form: Measured(timing=timing, tops=tops) for form, tops in (("kernel", 500.0), ("e2e", 400.0))}
        return {first: Entry(forms=kernel), second: Entry(missing="no kernel for it")}

    for name, fake in (
        ("gpu_for", lambda backend: simulated_device("sm_90a")),
        ("attend", attend),
        ("EventTimer", lambda: None),
        ("make_inputs", lambda *_: None),
    ):
        monkeypatch.setattr(recipe_speeds, name, fake)
    found = recipe_speeds.find_speeds(
        {"a": get_recipe("fast"), "b": get_recipe("fast", v_granularity="token")}, case, "auto"
    )
    assert found == {"a": {"tops": 500.0, "tops_from": "simulated sm_90a"}, "b": recipe_speeds.UNKNOWN}


# Length


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


# Bits


def test_fewer_bits_err_more() -> None:
    rows = quick("low_bits").rows
    for smooth, rotated in ((False, False), (True, True)):
        eight, four, two = (
            one(rows, "relative_rmse", bits=bits, scales="token", smooth_k=smooth, rotate=rotated) for bits in (8, 4, 2)
        )
        assert 5 * eight < four < two
    smoothed, plain = (
        one(rows, "relative_rmse", bits=4, scales="token", smooth_k=on, rotate=False) for on in (True, False)
    )
    assert smoothed < 0.7 * plain  # channels of K far from 0


@pytest.mark.parametrize(("smooth", "rotated"), [(False, False), (True, False), (False, True)])
def test_two_bits_are_three_levels(smooth: bool, rotated: bool) -> None:
    q, k, v = make_qkv("channel", heads=1, q_len=3, kv_len=8, head_dim=4, seed=1)
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    q2, k2 = q.astype(float), k.astype(float) - (k.mean(axis=2, keepdims=True) if smooth else 0.0)
    if rotated:
        q2, k2 = q2 @ hadamard, k2 @ hadamard
    largest = [np.abs(x).max(axis=3, keepdims=True) for x in (q2, k2)]
    q2, k2 = (top * np.rint(x / top) for x, top in zip((q2, k2), largest, strict=True))
    expected = oracle.attention(q2, k2, v)[0]
    assert_allclose(low_bits.in_two_bits(make_trial(q, k, v), smooth, rotated), expected, rtol=1e-5)


def test_only_q_and_k_lose_bits() -> None:
    for scales in low_bits.SCALES:
        for recipe in (low_bits.make_recipe(bits, scales, True, True) for bits in (8, 4)):
            assert (recipe.pv, recipe.p_levels, recipe.rotate, recipe.smooth_k) == ("float16", 1, True, True)
            assert recipe.k_granularity == scales


# Memory


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


# Depth


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


def test_distinct_keeps_the_order() -> None:
    assert distinct(quick("ablation").rows, "base") == list(ablation.BASES)
