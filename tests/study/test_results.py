"""The committed results: whole runs of the studies that are here, which can be measured again, and what they decide."""

import json
from dataclasses import asdict

import pytest

from cupy_intfa import PRESETS, Recipe
from cupy_intfa.study import ablation, adversarial, error_tables, length, memory, v_quantisation
from cupy_intfa.study.errors import measure_error, run_trials, study_recipes
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import RESULTS, load_study
from cupy_intfa.study.study import distinct, one, pick
from cupy_intfa.study.trials import REAL, make_trials

STORED = {name: load_study(name) for name in STUDIES}
AGAIN = 5e-3  # another exp2 or BLAS moves one P in thousands by a level, far less than the third digit


def test_there_is_a_result_of_every_study_and_no_other() -> None:
    assert {file.stem for file in RESULTS.glob("study_*")} == {f"study_{name}" for name in STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_result_is_a_whole_run_of_the_study_as_it_is(name: str) -> None:
    study, report = STUDIES[name], STORED[name]
    assert report.size in ("small", "full")
    assert json.loads(json.dumps(asdict(study.sizes[report.size]))) == report.settings, (
        f"python -m cupy_intfa study {name}"
    )
    for row in report.rows:
        assert set(row) == {*study.keys, *study.values}
    assert report.commit
    assert report.seconds < 240 or report.driver  # minutes on two cores


def test_seeds_are_five_and_the_spread_is_stated() -> None:
    report = STORED["error_tables"]
    assert len(report.settings["seeds"]) == 5
    assert {(row["family"], row["head_dim"], row["keys"]) for row in report.rows} == {
        *((f, d, 1024 << i) for f in ("normal", "uniform", "uniform01") for d in (64, 128) for i in range(5)),
        error_tables.REAL_SET,
    }
    measured = [row for row in report.rows if row["ran"] != error_tables.CITED]
    assert distinct(measured, "recipe") == [*PRESETS, "int8x2"]
    assert all(row[f"{value}_spread"] >= 0 for row in measured for value in (*error_tables.MEASURES, "cosine"))


def test_ours_err_as_the_published_code_does() -> None:
    rows = STORED["error_tables"].rows
    for ours, theirs in error_tables.TWINS.items():
        for row in pick(rows, recipe=theirs):
            found = one(rows, "relative_rmse", recipe=ours, family="normal", keys=4096, head_dim=row["head_dim"])
            # Theirs round K and Q as ours do, and P in tiles of their own; their e5m2 has one more rounding, of P.
            assert found == pytest.approx(row["relative_rmse"], rel=0.15)
    assert {row["head_dim"] for row in pick(rows, recipe="FA3 fp8")} == {64, 128}


def again(recipe: Recipe) -> float:
    """Tell how well NumPy meets a result.

    P relative to a running maximum depends on the kernel's tile, 96 to 192 keys where the emulator's has 64, and on its
    polynomial (.097 for .084 where V is not centred); what float16 is off by, on the order of its sums.
    """
    return AGAIN if recipe.integer_pv and recipe.p_reference == "tile" else 0.2


def test_errors_on_real_activations_can_be_measured_again() -> None:
    trials, recipes = make_trials(REAL, ()), study_recipes()
    for row in pick(STORED["error_tables"].rows, family=REAL):
        found = error_tables.errors_of(run_trials(recipes[row["recipe"]], trials, "numpy"), trials)
        for value in (*error_tables.MEASURES, "cosine"):
            assert found[value] == pytest.approx(row[value], rel=again(recipes[row["recipe"]]))
    knobs = {(r["base"], r["knob"], r["setting"]): r for r in pick(STORED["ablation"].rows, data=REAL)}
    for base, knob, setting in (("paper", "p_levels", "255"), ("fast", "smooth_v", "False")):
        recipe = ablation.turned(base)[knob, setting]
        found = measure_error(recipe, trials, "numpy")
        assert found["relative_rmse"] == pytest.approx(knobs[base, knob, setting]["relative_rmse"], rel=again(recipe))


def test_one_more_seed_stays_within_the_spread() -> None:
    # Of five seeds the range misses a sixth draw one time in three; twice the range around the mean does not.
    settings = STORED["error_tables"].settings
    rows = settings["queries"] or 1024
    shape = {"heads": settings["heads"], "q_len": rows, "kv_len": 1024, "head_dim": 64}
    trials = make_trials("normal", (77,), shape)
    for name in ("precise", "half", "fp8_e4m3"):  # whose errors no tile of a kernel changes
        (row,) = pick(STORED["error_tables"].rows, family="normal", head_dim=64, keys=1024, recipe=name)
        found = measure_error(study_recipes()[name], trials, "numpy")["relative_rmse"]
        # One head a seed: its output's norm, which errors are divided by, moves all recipes' errors by 13 % at once.
        assert abs(found - row["relative_rmse"]) < max(2 * row["relative_rmse_spread"], 0.15 * row["relative_rmse"])


# What the results decide. A change of numerics that turns one of these over is news, not noise.


def test_claim_of_the_paper_holds_on_uniform_numbers_alone() -> None:
    rows = STORED["error_tables"].rows
    for metric in error_tables.MEASURES:
        for float8 in error_tables.FLOAT8:
            for family in ("uniform", "uniform01"):
                assert min(error_tables.reductions(rows, family, float8, metric)) > error_tables.PUBLISHED_REDUCTION
            for family in ("normal", REAL):
                assert max(error_tables.reductions(rows, family, float8, metric)) < error_tables.PUBLISHED_REDUCTION
    last_four = error_tables.reductions(rows, "normal", "fp8_e4m3", "mre_last_four")
    assert max(last_four) - min(last_four) > 0.5  # of the same two recipes on the same kind of numbers


def test_running_reference_grows_as_predicted_and_the_tile_reference_does_not() -> None:
    rows = STORED["length"].rows
    first, last = length.growth(rows, "paper")
    assert last > 2 * first
    first, last = length.growth(rows, "precise")
    assert last < 1.2 * first  # 1.13: a channel's scale of V grows with its largest of more and more values
    for name, bound in (("paper", 0.15), ("fast", 0.1), ("precise", 0.05)):
        for row in length.series(rows, name):
            assert row["relative_rmse"] == pytest.approx(row["predicted"], rel=bound)


def test_running_reference_of_the_paper_breaks_on_sinks_and_the_default_does_not() -> None:
    rows = STORED["adversarial"].rows
    for case in ("sink first", "one dominant key", "outliers", "heavy tails"):
        broken = {row["recipe"] for row in pick(rows, case=case) if adversarial.is_broken(row)}
        assert "paper" in broken
        assert not broken & {"fast", "precise", "half"}
    assert all(row["not_finite"] == 0 for row in rows)
    measured = [row for row in pick(rows, case="all × 100") if row["relative_rmse"] is not None]
    assert {row["recipe"] for row in measured} >= {*study_recipes()}
    fine = {row["recipe"] for row in measured if not adversarial.is_broken(row)}
    assert fine == {"fp16"}  # thousands of nats apart: no 8-bit score is good enough, of a rival neither


def test_levels_of_p_and_its_reference_are_what_the_paper_loses_by() -> None:
    for data in STORED["ablation"].settings["data"]:
        shares = ablation.effects(STORED["ablation"].rows, "paper", data)
        assert shares["p_levels", "255"] < 0.8
        assert shares["p_reference", "tile"] < 0.65
    assert ablation.effects(STORED["ablation"].rows, "paper", "channel")["row_sum", "exact"] > 2.0


def test_finer_scales_of_v_are_better_in_both_references() -> None:
    rows = STORED["v_quantisation"].rows
    for reference in v_quantisation.REFERENCES:
        shares = v_quantisation.means(rows, reference)
        assert shares["block_channel, centred"] < shares["channel, centred"] < shares["tensor, centred"]
        on_outliers = pick(rows, reference=reference, data="outlier_token")
        error = {row["scheme"]: row["relative_rmse"] for row in on_outliers}
        assert error["token"] < 0.5 * error["tensor"]


def test_four_bits_cost_an_order_of_magnitude() -> None:
    rows = STORED["low_bits"].rows
    for row in pick(rows, bits=4):
        eight = one(rows, "relative_rmse", **{**{key: row[key] for key in STUDIES["low_bits"].keys}, "bits": 8})
        assert 5 * eight < row["relative_rmse"] < 30 * eight


def test_depth_keeps_the_order_of_the_recipes() -> None:
    rows = STORED["depth"].rows
    for depth in distinct(rows, "layers"):
        at_the_end = {row["recipe"]: row["relative_rmse"] for row in pick(rows, layers=depth, layer=depth)}
        assert at_the_end["fp16"] < at_the_end["half"] < at_the_end["fast"] < at_the_end["paper"]
        assert at_the_end["paper"] < at_the_end["fp8_e4m3"] < at_the_end["fp8_e5m2"]


def test_memory_is_a_third_of_the_inputs_until_sums_must_be_emptied() -> None:
    rows = STORED["memory"].rows
    for name in ("paper", "fast", "precise", "half"):
        for row in pick(rows, recipe=name):
            if row["keys"] <= 65536:
                assert row["planned_bytes"] < 0.4 * row["own_bytes"]
    longest = max(distinct(rows, "keys"))
    assert longest == 131072
    assert one(rows, "planned_bytes", recipe=memory.PLAIN, keys=longest) > 100 * rows[-1]["own_bytes"]


def test_speeds_of_two_runs_agree() -> None:
    rows = pick(STORED["speed"].rows, mask="no mask", head_dim=128, keys=16384, form="kernel")
    for reference, name in v_quantisation.REFERENCES.items():
        scheme = next(s for s, recipe in v_quantisation.schemes(reference).items() if recipe == PRESETS[name])
        found = pick(STORED["v_quantisation"].rows, reference=reference, scheme=scheme)[0]
        # Other neighbours heat the chip otherwise: the limits of the study of speeds say by how much that can matter.
        assert found["tops"] == pytest.approx(one(rows, "tops", contender=name), rel=0.08)
