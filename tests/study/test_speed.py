"""The study of speeds: its rows are those of the benchmark's reports, and what it claims follows from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupy_intfa.bench.cases import SUITES, Case, square
from cupy_intfa.bench.report import CaseResult, Entry, Measured, Report
from cupy_intfa.bench.timing import summarise
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study import speed, speed_rows
from cupy_intfa.study.report import RESULTS, load_study
from cupy_intfa.study.speed import PUBLISHED
from cupy_intfa.study.speed_rows import EARLIER, choose_reports, gains, make_rows, seen_as
from cupy_intfa.study.study import one, pick

SETTINGS = speed.Settings()
OLD, NEW = "2026-11-21T12:54:38+00:00", "2030-01-01T00:00:00+00:00"


def measured(case: Case, **tops: float) -> Entry:
    """Make an entry of forms with some rates."""
    timings = {form: summarise([case.operations / rate / 1e9] * 2) for form, rate in tops.items()}
    return Entry(forms={form: Measured(timing=timings[form], tops=rate) for form, rate in tops.items()})


def report(suite: str, entries: dict[Case, dict[str, Entry]], date: str = NEW) -> Report:
    """Make a report."""
    made: dict[str, Any] = {
        "measures": "speed",
        "commit": "abc",
        "dirty": False,
        "gpu": "NVIDIA H200",
        "before": {},
        "after": {},
    }
    results = tuple(CaseResult(case=case, entries=found) for case, found in entries.items())
    return Report(suite=suite, date=date, versions={}, results=results, **made)


def case(length: int, head_dim: int = 64, causal: bool = False) -> Case:
    return square(batch=4, heads=32, length=length, head_dim=head_dim, causal=causal)


def of_claim(gain: float) -> list[dict[str, Any]]:
    """Make rows in which `paper` is faster than FA2 by a share of what is published, and everything else is alike."""
    entries = {
        case(n): {
            "paper": measured(case(n), kernel=100.0 * (1 + gain * per_cent / 100), e2e=100.0),
            "FA2 fp16": measured(case(n), e2e=100.0),
            "cuDNN fp16": measured(case(n), e2e=200.0),
        }
        for n, per_cent in PUBLISHED.items()
    }
    return [dict(row) for row in make_rows([report("paper", entries)], [])]


def test_rows_are_those_of_the_reports() -> None:
    rows = speed.STUDY.measure(SETTINGS, "numpy")
    for name in ("prefill", "causal"):
        stored = json.loads((RESULTS / f"{name}_nvidia-h200.json").read_text(encoding="utf-8"))
        for result in stored["results"]:
            shape = Case(**result["case"])
            where = {
                "mask": "causal" if shape.causal else "no mask",
                "head_dim": shape.head_dim,
                "keys": shape.kv_len,
                "suite": name,
            }
            for contender, entry in result["entries"].items():
                found = pick(list(rows), contender=contender, **where)
                if pick(list(rows), **where):
                    tops = {form: one_form["tops"] for form, one_form in entry["forms"].items()} or entry["cited"]
                    assert {row["form"]: row["tops"] for row in found} == tops
                    assert {row["measured_on"] == EARLIER for row in found} <= {bool(entry["cited"])}


def test_result_is_that_of_the_reports_that_are_there() -> None:
    stored = load_study("speed")
    assert list(stored.rows) == speed.STUDY.measure(SETTINGS, "numpy"), "python -m cupy_intfa study speed"


def test_who_quantises_nothing_counts_for_both_forms() -> None:
    rows = of_claim(1.0)
    assert [row["contender"] for row in seen_as(pick(rows, keys=1024), "kernel")] == ["paper", "FA2 fp16", "cuDNN fp16"]
    expected = {n: pytest.approx(1 + per_cent / 100) for n, per_cent in PUBLISHED.items()}
    assert gains(rows, "paper", "FA2 fp16", "kernel", 64) == expected
    assert gains(rows, "paper", "FA2 fp16", "e2e", 64) == dict.fromkeys(PUBLISHED, pytest.approx(1.0))
    assert gains(rows, "paper", "cuDNN fp16", "e2e", 64) == dict.fromkeys(PUBLISHED, pytest.approx(0.5))
    assert gains(rows, "paper", "FA3 bf16", "kernel", 64) == {}
    assert gains(rows, "paper", "FA2 fp16", "kernel", 128) == {}
    assert one(rows, "ms", keys=1024, contender="FA2 fp16") == pytest.approx(case(1024).operations / 100e9)


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(1.01, "reached at 1k, 2k, 4k, 8k, 16k"), (0.99, "not reached")],
)
def test_claim_is_decided_by_the_rows(share: float, verdict: str) -> None:
    said = list(speed.STUDY.findings(of_claim(share)))
    (text,) = (text for text in said if text.startswith("`paper` against FA2 fp16, D 64"))
    assert text.endswith(f"The paper's gain, from quantised tensors: {verdict}.")
    assert f"8k +{72 * share:.0f} %" in text
    (other,) = (text for text in said if text.startswith("`paper` against cuDNN fp16, D 64"))
    assert other.endswith("not reached.")
    assert "Not measured: prefill, causal of the benchmark's suites." in said


def test_ranking_names_the_fastest_and_our_place() -> None:
    long = case(16384, 128)
    entries = {name: measured(long, e2e=tops) for name, tops in (("a", 400.0), ("b", 300.0), ("c", 350.0))}
    entries["fast"] = measured(long, kernel=290.0, e2e=360.0)
    entries["SageAttention 2"] = Entry(cited={"kernel": 380.0}, source="elsewhere", missing="not installed")
    rows = make_rows([report("prefill", {long: entries, case(64, 128): {"fast": measured(long, kernel=9.0)}})], [])
    kernels, whole = speed._rank(rows)
    assert kernels == (
        "B4 H32 S16k D128, from quantised tensors, TOPS of 5: a 400, SageAttention 2 380 (an earlier date), c 350; "
        "the first of ours `fast` 290, place 5."
    )
    assert whole == "B4 H32 S16k D128, from 16-bit tensors, TOPS of 4: a 400, `fast` 360, c 350."


def test_cited_rates_do_not_replace_measured_ones() -> None:
    long = case(16384)
    both = replace(measured(long, kernel=500.0), cited={"kernel": 400.0, "e2e": 300.0}, source="elsewhere")
    rows = make_rows([report("paper", {long: {"SageAttention 2": both}})], [])
    assert [(row["form"], row["tops"]) for row in rows] == [("kernel", 500.0)]
    assert rows[0]["measured_on"] == "NVIDIA H200, 2030-01-01, commit abc"


def test_a_case_is_taken_from_the_first_suite_and_a_suite_from_its_latest_report() -> None:
    long = case(16384)
    first, second = (
        report(name, {long: {"fast": measured(long, kernel=t)}}) for name, t in (("paper", 1.0), ("b", 2.0))
    )
    (row,) = make_rows([first, second], [])
    assert (row["tops"], row["tops_again"], row["suite"]) == (pytest.approx(1.0), pytest.approx(2.0), "paper")
    (row,) = make_rows([second], [])
    assert row["tops_again"] is None
    older = replace(first, date=OLD)
    assert choose_reports([first, older, second], ("b", "paper", "prefill")) == [second, first]
    with pytest.raises(FileNotFoundError, match="no report of causal: run python -m cupy_intfa bench"):
        choose_reports([first, second], ("causal",))


def test_bounds_are_those_of_the_kernel_that_ran() -> None:
    long = case(16384, 128)
    entries = {long: {"fast": measured(long, kernel=500.0, e2e=400.0), "FA3 fp8": measured(long, kernel=900.0)}}
    roofline = [
        {"recipe": "fast", "head_dim": 128, "kernel": kernel, "backend": backend}
        | {"tensor_tops": tensor, "exponential_tops": 2000.0, "issue_tops": 1500.0}
        for kernel, backend, tensor in (("attention_sm80", "sm80", 1000.0), ("attention_sm90", "cuda", 1900.0))
    ]
    for date, kernel, nearest, share in ((OLD, "attention_sm80", "tensor", 50), (NEW, "attention_sm90", "issue", 33)):
        rows = make_rows([report("prefill", entries, date)], roofline)
        (row,) = pick(rows, contender="fast", form="kernel")
        assert (row["kernel"], row["nearest"]) == (kernel, nearest)
        assert {row["kernel"] for row in rows if row["contender"] != "fast" or row["form"] == "e2e"} == {None}
        (said,) = speed._say_what_bounds(rows)
        assert said == f"D 128, 16k keys, share of the nearest bound: `fast` {share} % of {nearest}."
    assert make_rows([report("prefill", entries)], [])[0]["nearest"] is None


def test_without_the_other_study_there_are_no_bounds(tmp_path: Path) -> None:
    assert speed_rows.load_roofline(tmp_path) == []
    assert {row["arch"] for row in speed_rows.load_roofline(RESULTS)} == {"sm_90a"}


def test_suites_are_measured_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []

    def run_suite(suite: Any) -> Report:
        run.append(suite.name)
        first = suite.cases[0]
        return report(suite.name, {first: {"fast": measured(first, kernel=123.0)}})

    monkeypatch.setattr(speed, "gpu_for", {"auto": simulated_device("sm_90a")}.get)
    monkeypatch.setattr(speed, "run_suite", run_suite)
    rows = speed.STUDY.measure(SETTINGS, "auto")
    assert run == list(SETTINGS.suites)
    assert all(row["tops"] == pytest.approx(123.0) for row in rows)
    speed.STUDY.measure(SETTINGS, "numpy")
    assert run == list(SETTINGS.suites)
    assert set(SETTINGS.suites) <= set(SUITES)


def test_fastest_of_ours_is_chosen_by_the_longest_rows() -> None:
    rows = make_rows(
        [
            report(
                "paper",
                {
                    case(n): {
                        "paper": measured(case(n), kernel=100.0 + n),
                        "half": measured(case(n), kernel=1000.0),
                        "FA3 fp8": measured(case(n), kernel=9999.0),
                    }
                    for n in (64, 1024)
                },
            )
        ],
        [],
    )
    assert speed.fastest_of_ours(rows) == "paper"
    assert speed.fastest_of_ours(pick(rows, keys=64)) == "half"


def test_spread_is_that_of_the_quartiles_and_of_another_suite() -> None:
    long = case(16384)
    timing = summarise([1.9, 2.0, 2.1])  # quartiles 1.95 and 2.05
    entry = Entry(forms={"kernel": Measured(timing=timing, tops=long.tops(2.0))})
    cited = Entry(cited={"kernel": 7.0}, source="elsewhere")
    again = {"fast": measured(long, kernel=long.tops(1.6)), "b": cited, "c": measured(long, kernel=1.0)}
    rows = make_rows([report("paper", {long: {"fast": entry, "b": cited}}), report("prefill", {long: again})], [])
    assert [row["contender"] for row in rows] == ["fast", "b", "c"]
    assert (rows[0]["tops"], rows[0]["tops_spread"]) == (long.tops(1.6), 0.0), "the one whose quartiles lie closer"
    assert speed.repetitions(rows) == [pytest.approx(0.2)]
    assert (rows[1]["tops_spread"], rows[1]["tops_again"]) == (None, None)
    (said,) = speed._say_how_runs_differ(rows)
    assert said.endswith(
        "suites measured 1 of them, one after the other: they differ by 20.0 % in the middle and 20.0 % at most."
    )
    assert "0.0 % of it apart in the middle of 2. " in said
    alone = make_rows([report("paper", {long: {"fast": entry}})], [])
    assert alone[0]["tops_spread"] == pytest.approx(long.tops(1.95) - long.tops(2.05))


def test_a_measurement_that_something_disturbed_is_no_second_one() -> None:
    long = case(16384)
    timing = summarise([1.0, 2.0, 4.0])  # quartiles 1.5 and 3
    disturbed = Entry(forms={"kernel": Measured(timing=timing, tops=long.tops(2.0))})
    quiet = measured(long, kernel=long.tops(1.6))
    for first, second in ((disturbed, quiet), (quiet, disturbed)):
        (row,) = make_rows([report("paper", {long: {"fast": first}}), report("prefill", {long: {"fast": second}})], [])
        assert (row["tops"], row["tops_again"]) == (long.tops(1.6), None)


def test_two_measurements_of_a_rate_agree() -> None:
    again = speed.repetitions(load_study("speed").rows)
    assert len(again) > 50
    assert again[-1] < 0.08  # of 5 rounds each, on a chip that other contenders have heated: up to 6.7 %
