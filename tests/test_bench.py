"""The benchmark's arithmetic, bookkeeping and text. Nothing here takes a time: timers are made up."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from cupy_intfa import PRESETS, attention, cli
from cupy_intfa.bench import bandwidth, cited, first_call, plots, runner, stamp, tables
from cupy_intfa.bench.accuracy import choose_rows, expected_rows, relative_rmse
from cupy_intfa.bench.cases import SUITES, Case, Suite, square
from cupy_intfa.bench.contenders import OURS, Contender, Forms, first_line
from cupy_intfa.bench.report import CaseResult, Entry, Measured, Report, from_json, load_reports, save_report
from cupy_intfa.bench.rivals import RIVALS
from cupy_intfa.bench.timing import Budget, Timing, interleave, summarise
from cupy_intfa.data.families import make_qkv
from cupy_intfa.device import DeviceInfo
from cupy_intfa.reference import oracle

CHECKOUT = Path(__file__).parents[1]
H200 = DeviceInfo(name="NVIDIA H200", ordinal=0, capability=(9, 0), multiprocessors=132, shared_per_block=232448)
SMALL = square(batch=2, heads=4, length=128, head_dim=32)


def timing(ms: float) -> Timing:
    return Timing(median_ms=ms, min_ms=0.9 * ms, q1_ms=0.98 * ms, q3_ms=1.05 * ms, rounds=5)


def speed(case: Case, **tops: float) -> Entry:
    """Make an entry of so many TOPS by form, with a time that gives them."""
    return Entry(
        forms={
            form: Measured(timing=timing(case.operations / x / 1e9), tops=x, relative_rmse=0.0123)
            for form, x in tops.items()
        }
    )


SHORT, LONG = (square(batch=4, heads=32, length=n, head_dim=128) for n in (1024, 16384))
REPORT = Report(
    suite="prefill",
    measures="speed",
    date="2026-11-21T12:00:00+00:00",
    commit="0123456789ab",
    dirty=True,
    gpu="NVIDIA H200",
    before={"driver_version": "580.1"},
    after={"power.draw": "400 W"},
    versions={"python": "3.12.3", "torch": "2.11.0"},
    results=(
        CaseResult(
            case=SHORT,
            entries={
                "fast": speed(SHORT, kernel=500.0, e2e=250.4),
                "FA2 fp16": speed(SHORT, e2e=319.0),
                "FA3 fp8": speed(SHORT, kernel=710.0),
                "comfy-kitchen INT8": Entry(missing="comfy-kitchen is not installed"),
                "SageAttention 2": Entry(cited={"kernel": 648.0}, source="on another day", missing="too old"),
            },
        ),
        CaseResult(
            case=LONG,
            entries={
                "fast": speed(LONG, kernel=602.0, e2e=550.0),
                "FA2 fp16": speed(LONG, e2e=350.0),
                "FA3 fp8": Entry(missing="out of memory"),
                "comfy-kitchen INT8": Entry(missing="comfy-kitchen is not installed"),
                "SageAttention 2": Entry(cited={"kernel": 834.0, "e2e": 740.0}, source="on another day"),
            },
        ),
    ),
)


# Cases


@pytest.mark.parametrize(("causal", "share"), [(False, 1.0), (True, 0.5)])
def test_operations_are_two_products_and_half_of_them_when_causal(causal: bool, share: float) -> None:
    case = replace(square(batch=3, heads=8, length=256, head_dim=40, causal=causal), kv_heads=2)
    score_elements = 3 * 8 * 256 * 256
    multiply_add, products = 2, 2
    assert case.operations == share * multiply_add * products * score_elements * 40
    assert case.tops(2.0) == pytest.approx(case.operations / 2e-3 / 1e12, rel=1e-15)


def test_a_causal_case_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="5 queries and 7 keys: expected equal lengths"):
        Case(batch=1, heads=1, kv_heads=1, q_len=5, kv_len=7, head_dim=8, causal=True)


def test_cases_are_named_by_their_shape() -> None:
    case = Case(batch=2, heads=8, kv_heads=2, q_len=100, kv_len=4096, head_dim=64)
    assert str(case) == "B2 H8/2 S100×4k D64"
    assert (case.q_shape, case.kv_shape) == ((2, 8, 100, 64), (2, 2, 4096, 64))


def test_suites_hold_the_shapes_that_are_published() -> None:
    shapes = {name: [(c.head_dim, c.q_len) for c in suite.cases] for name, suite in SUITES.items()}
    assert shapes["paper"] == [(64, 1024 << n) for n in range(5)]
    assert shapes["prefill"] == [
        *((64, n) for n in (1024, 4096, 16384)),
        *((128, 1024 << n) for n in range(5)),
        (256, 8192),
    ]
    assert shapes["causal"] == [(128, 1024), (128, 4096), (128, 16384), (64, 4096), (64, 16384)]
    assert shapes["quantise"] == [(128, 16384)]
    for name in ("paper", "prefill", "causal", "quantise"):
        for case in SUITES[name].cases:
            assert (case.batch, case.heads) == ((2, 16) if case.head_dim == 256 else (4, 32))
            assert case.causal is (name == "causal")


# Timing


def test_summary_is_median_minimum_and_quartiles() -> None:
    found = summarise([5.0, 1.0, 3.0, 2.0, 400.0])
    assert found == Timing(median_ms=3.0, min_ms=1.0, q1_ms=2.0, q3_ms=5.0, rounds=5)
    assert summarise([7.0]) == Timing(median_ms=7.0, min_ms=7.0, q1_ms=7.0, q3_ms=7.0, rounds=1)


@pytest.mark.parametrize(
    ("budget", "round_ms", "rounds"),
    [
        (Budget(seconds=2.0), 40.0, 50),
        (Budget(seconds=2.0, least=4), 1900.0, 4),
        (Budget(seconds=2.0, most=60), 0.01, 60),
        (Budget(seconds=2.0, most=60), 0.0, 60),
        (Budget(rounds=1), 1e9, 1),
    ],
)
def test_rounds_fill_the_budget_within_bounds(budget: Budget, round_ms: float, rounds: int) -> None:
    assert budget.rounds_for(round_ms) == rounds


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_budget_for_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Budget(**wrong)


class Tape:
    """A timer that writes down what it is given; a call returns its own name and its milliseconds."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, call: Callable[[], Any]) -> float:
        name, ms = call()
        self.names.append(name)
        return float(ms)


def test_contenders_take_turns_in_changing_order() -> None:
    tape, names = Tape(), "abcde"
    interleave({name: [partial(lambda n: (n, 1.0), name)] for name in names}, tape, Budget(rounds=20))
    rounds = [tape.names[i : i + 5] for i in range(0, len(tape.names), 5)]
    assert len(rounds) == 1 + 20
    assert all(sorted(one) == list(names) for one in rounds)
    for name in names:  # 20 shuffles of five: one that never comes first has a chance of 0.8^20
        assert any(one[0] == name for one in rounds[1:])


def test_rounds_go_through_the_sets_of_inputs_and_the_first_does_not_count() -> None:
    tape = Tape()
    calls = {"a": [lambda: ("a0", 100.0), lambda: ("a1", 1.0), lambda: ("a2", 3.0)], "b": [lambda: ("b", 7.0)]}
    found = interleave(calls, tape, Budget(seconds=0.6, least=1))  # of 107 ms each: five rounds, on sets 0 1 2 0 1
    assert [name for name in tape.names if name != "b"] == ["a0", "a0", "a1", "a2", "a0", "a1"]
    assert found["a"] == summarise([100.0, 1.0, 3.0, 100.0, 1.0])
    assert found["b"] == summarise([7.0] * 5)
    assert list(found) == ["a", "b"]


# Accuracy


@pytest.mark.parametrize("length", [1, 5, 64, 100, 1024])
def test_sampled_rows_exist_and_reach_both_ends(length: int) -> None:
    case = replace(SMALL, q_len=length)
    samples = choose_rows(case)
    assert {(s.batch, s.head) for s in samples} == {(0, 0), (1, 3)}
    rows = [row for s in samples[: len(samples) // 2] for row in range(s.start, s.stop)]
    assert len(set(rows)) == len(rows) == min(64, length if length < 8 else length // 8 * 8)
    assert 0 <= min(rows) <= length // 8
    assert length - 1 - length // 4 <= max(rows) < length


@pytest.mark.parametrize("causal", [False, True])
def test_expected_rows_are_those_of_the_whole(causal: bool) -> None:
    case = replace(SMALL, kv_heads=2, causal=causal)
    inputs = make_qkv("normal", batch=2, heads=4, kv_heads=2, q_len=128, head_dim=32)
    samples = choose_rows(case)
    whole = oracle.attention(*inputs, is_causal=causal)[0]
    cut = np.concatenate([whole[s.batch, s.head, s.start : s.stop] for s in samples])
    np.testing.assert_allclose(expected_rows(case, samples, inputs), cut, rtol=1e-12, atol=1e-14)
    noisy = whole + 0.01 * np.linalg.norm(cut) / np.sqrt(cut.size) * np.sign(whole)
    assert relative_rmse(noisy, samples, cut) == pytest.approx(0.01, rel=1e-9)


def test_an_output_that_is_not_finite_has_no_error() -> None:
    samples = choose_rows(SMALL)
    expected = np.ones((sum(s.stop - s.start for s in samples), 32))
    out = np.ones(SMALL.q_shape)
    out[samples[3].batch, samples[3].head, samples[3].start, 5] = np.inf
    with pytest.raises(ArithmeticError, match="infinity in the wrong place"):
        relative_rmse(out, samples, expected)


# Contenders


def test_rivals_and_presets_have_names_of_their_own() -> None:
    names = [contender.name for contender in runner.CONTENDERS]
    assert names[: len(PRESETS)] == list(PRESETS)
    assert len(set(names)) == len(names) == len(OURS) + len(RIVALS)
    with pytest.raises(ValueError, match="contender 'slow' is unknown: expected paper, paper_half, fast"):
        runner.choose_contenders(["fast", "slow"])


def test_a_missing_rival_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def rival(package: str, *modules: str, version: str = "") -> Contender:
        return Contender("rival", package, lambda case, inputs: Forms(), modules, version)

    assert rival("numpy", "numpy").missing() is None
    assert rival("no-such-rival").missing() == "no-such-rival is not installed"
    assert rival("numpy", version="9.").missing() == f"numpy is {np.__version__}: expected 9.x"
    monkeypatch.setitem(sys.modules, "broken", None)  # what makes an import raise ImportError
    assert str(rival("numpy", "broken").missing()).startswith("broken: ModuleNotFoundError")
    assert all(contender.missing() is None for contender in OURS)


def test_first_line_is_short() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "RuntimeError: one"
    assert first_line(KeyError()) == "KeyError: "
    assert len(first_line(RuntimeError("x" * 1000))) == 200


# Running


def exact(case: Case, inputs: Any, factor: float = 1.0) -> Forms:
    q, k, v = inputs
    out = factor * oracle.attention(q, k, v, is_causal=case.causal)[0]
    return Forms(e2e=lambda: out.swapaxes(1, 2), decode=lambda x: x.swapaxes(1, 2))


def emulated(case: Case, inputs: Any) -> Forms:
    return Forms(kernel=partial(attention, *inputs, backend="numpy"), e2e=partial(attention, *inputs, backend="numpy"))


def cannot(case: Case, inputs: Any) -> Forms:
    raise NotImplementedError("no causal mask")


def breaks(case: Case, inputs: Any) -> Forms:
    raise RuntimeError("CUDA error: no kernel image\nand much more")


def test_attend_measures_who_can_and_says_why_others_cannot() -> None:
    contenders = [
        Contender("exact", None, exact),
        Contender("emulated", None, emulated),
        Contender("twice", None, partial(exact, factor=1.5)),
        Contender("nan", None, partial(exact, factor=np.nan)),
        Contender("cannot", None, cannot),
        Contender("breaks", None, breaks),
        Contender("absent", "no-such-rival", exact),
    ]
    times = iter(range(1, 1000))

    def timer(call: Callable[[], Any]) -> float:
        call()
        return float(next(times))

    sets = [make_qkv("normal", batch=2, heads=4, q_len=128, head_dim=32, seed=seed) for seed in range(2)]
    found = runner.attend(SMALL, contenders, Budget(rounds=3), timer, sets)
    assert list(found) == [contender.name for contender in contenders]
    forms = {name: list(entry.forms) for name, entry in found.items()}
    expected = {name: ["e2e"] if name in ("exact", "twice") else [] for name in found}
    assert forms == {**expected, "emulated": ["kernel", "e2e"]}
    assert next(times) == 1 + 4 * (1 + 3)  # four forms, a round that does not count and three that do
    errors = {name: entry.forms["e2e"].relative_rmse for name, entry in found.items() if entry.forms}
    assert errors["exact"] == pytest.approx(0.0, abs=1e-12)
    assert errors["twice"] == pytest.approx(0.5, rel=1e-9)
    assert errors["emulated"] == found["emulated"].forms["kernel"].relative_rmse
    for entry in found.values():
        for one in entry.forms.values():
            assert one.tops == SMALL.tops(one.timing.median_ms)
            assert one.timing.rounds == 3
    reasons = {name: entry.missing for name, entry in found.items()}
    assert str(reasons["nan"]).startswith("ArithmeticError: NaN or infinity in the wrong place")
    assert reasons["cannot"] == "no causal mask"
    assert reasons["breaks"] == "RuntimeError: CUDA error: no kernel image"
    assert reasons["absent"] == "no-such-rival is not installed"


def test_there_are_more_inputs_than_the_cache_holds() -> None:
    mib = 1 << 20
    for length, sets in ((16384, 1), (2048, 2), (1024, 3), (64, 8)):
        case = square(batch=4, heads=32, length=length, head_dim=64)
        assert runner.count_sets(case, 60 * mib) == sets
    case = square(batch=4, heads=32, length=1024, head_dim=64)  # 48 MiB of q, k and v
    assert 3 * 48 * mib >= 2 * 60 * mib > 2 * 48 * mib


def test_a_benchmark_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "default_device", lambda: "it fell out")
    with pytest.raises(NotImplementedError, match=r"needs an NVIDIA GPU and CuPy: there is no GPU \(it fell out\)"):
        runner.run_suite(SUITES["prefill"])


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a suite of speeds run without a GPU: our kernels take 2 ms, and SageAttention 2 is missing."""

    def measure(case: Case, contenders: Sequence[Contender], budget: Budget) -> dict[str, Entry]:
        assert budget.rounds == 2
        return {
            "fast": Entry(forms={"kernel": Measured(timing=timing(2.0), tops=case.tops(2.0), relative_rmse=0.01)}),
            "SageAttention 2": Entry(missing="not built"),
        }

    monkeypatch.setattr(runner, "default_device", lambda: H200)
    monkeypatch.setattr(runner, "_MEASURE", {"speed": measure})


def test_a_report_is_stamped_and_cites_who_is_missing(faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    found = runner.run_suite(SUITES["prefill"], budget=Budget(rounds=2), tell=told.append, commit="abc-dirty")
    assert told[0] == "prefill: B4 H32 S1k D64: 1 contenders"
    assert len(told) == len(found.results) == len(SUITES["prefill"].cases)
    assert (found.suite, found.gpu, found.commit, found.dirty) == ("prefill", "NVIDIA H200", "abc", True)
    assert found.versions["numpy"] == np.__version__
    assert found.file_name == "prefill_nvidia-h200.json"
    first = found.results[0].entries
    assert first["SageAttention 2"].cited == {"kernel": 451.0, "e2e": 152.0}
    assert first["SageAttention 2"].missing == "not built"
    assert first["INT-FlashAttention authors, INT8"].missing == "not in this run"
    assert "earlier date, not in this run" in str(first["SageAttention 2"].source)
    assert found.results[-1].entries["SageAttention 2"].cited == {}  # nothing on record for D256
    monkeypatch.setattr(runner, "default_device", lambda: replace(H200, name="Another GPU"))
    other = runner.run_suite(SUITES["prefill"], budget=Budget(rounds=2))
    assert other.results[0].entries["SageAttention 2"].cited == {}


def test_what_was_measured_is_not_replaced_by_a_citation() -> None:
    own = speed(SHORT, e2e=700.0)
    assert "SageAttention 2" not in runner._cite({"SageAttention 2": own}, {"SageAttention 2": Entry(cited={"e2e": 1})})


def test_cited_rows_are_cases_of_the_suites() -> None:
    cases = {case for suite in SUITES.values() for case in suite.cases}
    stored = json.loads(Path(cited.__file__).with_name("cited.json").read_text(encoding="utf-8"))
    for row in stored["rows"]:
        assert Case(**row["case"]) in cases
        assert set(row["tops"]) <= {"kernel", "e2e"}


# First calls and bandwidth


def test_first_calls_share_a_cache_that_starts_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[Path]]] = []

    def run(command: list[str], *, input: str, env: dict[str, str], **options: Any) -> SimpleNamespace:
        cache = Path(env["CUPY_CACHE_DIR"])
        seen.append((env["CUPY_CACHE_DIR"], list(cache.iterdir())))
        (cache / "kernel.cubin").touch()
        assert command[1:] == ["-m", "cupy_intfa.bench.first_call", "fast"]
        assert Case(**json.loads(input)) == SHORT
        return SimpleNamespace(returncode=0, stdout=f"{1.5 / len(seen)}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    found = first_call.measure(SHORT, "fast")
    assert {form: one.median_ms for form, one in found.items()} == {"compile": 1500.0, "disk_cache": 750.0}
    assert seen[0][1] == []
    assert seen[1] == (seen[0][0], [Path(seen[0][0]) / "kernel.cubin"])


def test_a_first_call_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nNotImplementedError: no kernel for fp8")
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: failed)
    entry = runner._first_call(SHORT, [OURS[0], RIVALS[0]], Budget())
    assert list(entry) == [OURS[0].name]
    assert str(entry[OURS[0].name].missing).startswith("OSError: the process of the first call failed: Traceback")


def test_bandwidth_counts_each_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def explain(q: Any, k: Any, v: Any, *, recipe: str, backend: str) -> SimpleNamespace:
        if recipe == "fp8_e4m3":
            raise NotImplementedError("no kernel")
        cuda = SimpleNamespace(packing=SimpleNamespace(nbytes=3000))
        return SimpleNamespace(cuda=cuda, workspace=lambda: "a workspace")

    def quantise(plan: Any, cuda: Any, arrays: Any, workspace: str) -> None:
        done.append(workspace)

    monkeypatch.setitem(sys.modules, "cupy", np)
    monkeypatch.setattr(bandwidth, "explain", explain)
    monkeypatch.setattr(bandwidth, "quantize_into", quantise)
    inputs = make_qkv("normal", batch=1, heads=2, q_len=16, head_dim=32, dtype=np.float16)

    def timer(call: Callable[[], Any]) -> float:
        call()
        return 0.5

    found = bandwidth.measure(inputs, ["fast", "fp8_e4m3"], timer, Budget(rounds=2))
    nbytes = 3 * 2 * 16 * 32 * 2  # q, k and v of two heads in float16
    assert found[bandwidth.COPY].forms["copy"].gbps == pytest.approx(2 * nbytes / 0.5e-3 / 1e9, rel=1e-12)
    assert found["fast"].forms["quantise"].gbps == pytest.approx((nbytes + 3000) / 0.5e-3 / 1e9, rel=1e-12)
    assert found["fp8_e4m3"].missing == "NotImplementedError: no kernel"
    assert done == ["a workspace"] * 4  # warmed up, a round that does not count, two that do


# The stamp


def test_gpu_state_is_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA H200, 580.159.04, 1965 MHz, 3201 MHz, 1980 MHz, 404.35 W, 700.00 W, 42\n"
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: SimpleNamespace(stdout=line))
    found = stamp.gpu_state(1)
    assert (found["driver_version"], found["clocks.sm"], found["power.draw"]) == ("580.159.04", "1965 MHz", "404.35 W")

    def fail(*command: Any, **options: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", fail)
    assert stamp.gpu_state() == {"missing": "nvidia-smi: FileNotFoundError"}
    assert stamp.commit() == {"commit": None, "dirty": None}


def test_versions_name_what_is_installed() -> None:
    found = stamp.versions(["no-such-rival", "pytest"])
    assert found["pytest"] == pytest.__version__
    assert "no-such-rival" not in found
    assert None not in found.values()


# Reports


def test_reports_survive_json(tmp_path: Path) -> None:
    file = save_report(REPORT, tmp_path / "new" / "folder")
    assert file.name == "prefill_nvidia-h200.json"
    (file.parent / "accuracy.json").write_text('{"table": {}}')
    assert load_reports(file.parent) == (REPORT,)
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["results"][0]["entries"]["fast"]["forms"]["kernel"]["tops"] == 500.0
    assert stored["results"][0]["case"]["head_dim"] == 128


def test_reports_that_cannot_be_read_or_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a benchmark report of schema 1, found 99: measure again"):
        from_json({**REPORT.to_json(), "schema": 99})
    nan = CaseResult(case=SHORT, entries={"fast": speed(SHORT, kernel=float("nan"))})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_report(replace(REPORT, results=(nan,)), tmp_path)


# Tables


def test_speed_table_has_a_row_for_everyone_with_a_number() -> None:
    table = tables.make_table(REPORT)
    assert table.head == ("TOPS", "S1k D128", "S16k D128", "error")
    assert table.rows == (
        ("`fast`", "500 / 250", "602 / 550", "0.012"),
        ("FA2 fp16", "319", "350", "0.012"),
        ("FA3 fp8", "710 / –", "–", "0.012"),
        ("SageAttention 2", "648* / –", "834* / 740*", "–"),
    )
    notes = "\n".join(table.notes)
    assert "Times as fast as FA2 fp16 of the same run, S16k D128, kernel: `fast` 1.72." in notes
    assert "* on another day." in notes
    assert "Not measured: comfy-kitchen INT8 (comfy-kitchen is not installed)." in notes
    commit = "commit 0123456789ab-dirty, 2026-11-21"
    assert table.stamp == f"Measured on an NVIDIA H200, driver 580.1, {commit}: python 3.12.3, torch 2.11.0."


def test_a_rate_whose_quartiles_lie_far_apart_is_marked() -> None:
    times = replace(timing(1.0), q3_ms=1.2)
    shaky = Entry(forms={"kernel": Measured(timing=times, tops=500.0), "e2e": Measured(timing=timing(1.0), tops=250.0)})
    table = tables.make_table(replace(REPORT, results=(CaseResult(case=LONG, entries={"fast": shaky}),)))
    assert table.rows[0][1] == "500~ / 250"
    assert any(note.startswith("~ quartiles more than 10 %") for note in table.notes)


def test_without_the_yardstick_there_is_no_ratio() -> None:
    entries = {"fast": speed(LONG, kernel=602.0)}
    assert list(tables.ratios(replace(REPORT, results=(CaseResult(case=LONG, entries=entries),)))) == []
    assert list(tables.ratios(replace(REPORT, measures="host"))) == []


def report_of(measures: str, **entries: Entry) -> Report:
    results = (CaseResult(case=SHORT, entries={name.replace("_", " "): entry for name, entry in entries.items()}),)
    return replace(REPORT, suite="another", measures=measures, commit=None, dirty=None, results=results)


def test_other_suites_have_tables_of_their_own() -> None:
    forms = {form: Measured(timing=timing(ms)) for form, ms in (("kernel", 0.02), ("e2e", 0.05))}
    host = report_of("host", fast=Entry(forms=forms))
    table = tables.make_table(host)
    assert table.head == ("µs of the host for a call", "S1k D128, kernel / e2e")
    assert table.rows == (("`fast`", "20 / 50"),)
    assert "outside of a checkout" in table.stamp

    first = report_of(
        "first_call",
        fast=Entry(forms={"compile": Measured(timing=timing(1234.5)), "disk_cache": Measured(timing=timing(99.0))}),
    )
    table = tables.make_table(first)
    assert table.head[1:] == ("S1k D128, compiled", "S1k D128, from disk")
    assert table.rows == (("`fast`", "1234", "99"),)

    copied = report_of(
        "bandwidth",
        device_copy=Entry(forms={"copy": Measured(timing=timing(1.0), gbps=4000.0)}),
        fast=Entry(forms={"quantise": Measured(timing=timing(1.0), gbps=3300.0)}),
    )
    table = tables.make_table(copied)
    assert table.head == ("GB/s", "S1k D128", "S1k D128, of the copy")
    assert table.rows == (("device copy", "4000", "100 %"), ("`fast`", "3300", "82 %"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Load tools/update_readme.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("update_readme", CHECKOUT / "tools" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_the_reports(tool: ModuleType) -> None:
    assert "Not measured yet. `make bench`" in tool.speed_tables(())
    paper = replace(REPORT, suite="paper")
    text = tool.speed_tables((REPORT, paper))
    assert text.index(SUITES["paper"].text) < text.index(SUITES["prefill"].text)  # in the order of the suites
    assert "| TOPS | S1k D128 | S16k D128 | error |\n| --- | ---: | ---: | ---: |\n| `fast` | 500 / 250 |" in text
    assert text.count("Measured on an") == 1  # both reports have one stamp
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    accuracy = json.loads((CHECKOUT / "notebooks" / "results" / "accuracy.json").read_text(encoding="utf-8"))
    odd = replace(REPORT, versions={"torch": r"2\1.0"})  # a backslash in the data is no escape
    filled = tool.render(readme, accuracy, (odd,))
    assert r"torch 2\1.0." in filled.split("<!-- table:speed -->")[1].split("<!-- /table -->")[0]
    assert tool.render(filled, accuracy, (odd,)) == filled


# Pictures


def test_curves_are_the_numbers_of_the_report(tmp_path: Path) -> None:
    assert plots.curve(REPORT, "fast", 128, "e2e") == [(1024, 250.4), (16384, 550.0)]
    assert plots.curve(REPORT, "FA2 fp16", 128, "kernel") == [(1024, 319.0), (16384, 350.0)]
    assert plots.curve(REPORT, "FA3 fp8", 128, "kernel") == [(1024, 710.0)]
    assert plots.curve(REPORT, "SageAttention 2", 128, "e2e") == [(16384, 740.0)]
    assert plots.curve(REPORT, "fast", 64, "kernel") == []
    above, below = plots.draw(REPORT).axes
    drawn = {str(line.get_label()): list(line.get_ydata()) for line in above.get_lines()}  # type: ignore[arg-type]
    assert drawn["fast"] == [500.0, 602.0]
    assert drawn["SageAttention 2 (earlier date)"] == [648.0, 834.0]
    assert len(below.get_lines()) == 3
    plots.save_picture(REPORT, tmp_path / "a.png")
    picture: np.ndarray = imread(tmp_path / "a.png")
    assert picture.shape[0] > 500


def test_a_report_without_lengths_is_not_drawn() -> None:
    for report in (replace(REPORT, measures="host"), replace(REPORT, results=REPORT.results[:1])):
        with pytest.raises(ValueError, match="no speeds over length"):
            plots.draw(report)


# The command


def test_command_writes_reports_and_prints_tables(
    faked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = Suite("prefill", "speed", "two lengths", (SHORT, LONG))
    monkeypatch.setattr(cli, "SUITES", {"prefill": suite})
    arguments = ("bench", "--suite", "prefill", "--rounds", "2", "--output", str(tmp_path))
    assert cli.main([*arguments, "--plot"]) == 0
    (report,) = load_reports(tmp_path)
    printed = capsys.readouterr()
    assert tables.as_text(tables.make_table(report)) in printed.out
    assert f"written: {tmp_path / report.file_name}" in printed.out
    assert printed.err.splitlines() == [f"prefill: {case}: 1 contenders" for case in suite.cases]
    assert (tmp_path / "prefill_nvidia-h200.png").is_file()
    assert cli.main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert from_json(found).results == report.results


def test_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == {contender.name: contender.missing() for contender in runner.CONTENDERS}
    assert {name: tuple(Case(**case) for case in cases) for name, cases in found["suites"].items()} == {
        name: suite.cases for name, suite in SUITES.items()
    }
    assert cli.main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    for contender in runner.CONTENDERS:
        assert contender.name in text
        assert (contender.missing() or "here") in text
    assert all(str(case) in text for suite in SUITES.values() for case in suite.cases)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "there is no GPU (it fell out)"),
        (("--suite", "train"), "invalid choice: 'train'"),
        (("--only", "fastest"), "contender 'fastest' is unknown"),
        (("--rounds", "0"), "rounds=0: expected at least 1"),
        (("--rounds", "3", "--seconds", "2"), "not allowed with argument"),
    ],
)
def test_command_that_cannot_run_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.setattr(runner, "default_device", lambda: "it fell out")
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *arguments])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


# On a GPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # those of the rivals are theirs
@pytest.mark.parametrize("causal", [False, True])
def test_everyone_who_is_here_computes_attention(causal: bool) -> None:
    """float8 with one scale per tensor errs by 6 % on N(0, 1); a wrong layout, mask or scale errs by 40 % and more."""
    case = square(batch=2, heads=4, length=512, head_dim=64, causal=causal)
    inputs = runner.make_inputs(case, 0)
    samples = choose_rows(case)
    expected = expected_rows(case, samples, inputs)
    for contender in runner.CONTENDERS:
        if contender.missing():
            continue
        try:
            forms = contender.prepare(case, inputs)
        except NotImplementedError:
            continue
        for name, call in forms.named.items():
            assert relative_rmse(forms.decode(call()), samples, expected) < 0.15, f"{contender.name}, {name}"
