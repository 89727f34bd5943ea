"""The record's own code: questions that tell integers, what is asked of a GPU, and what `compare` sees."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from ptxsim.confirm import ask, compare
from ptxsim.fake_cupy import FakeCupy
from ptxsim.integers import Question, ask_products, ask_scores
from ptxsim.probes import Answer, Probe, instruction_probes
from ptxsim.probes_kernels import attend, kernel_probes
from ptxsim.simulated import Setting

from cupy_intfa import PRESETS
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.kernels import reload

PRESET = {"sm90": "fast", "sm80": "paper", "dp4a": "precise", "naive": "fast"}
assert PRESET.keys() == NAMED_KERNELS.keys()


@pytest.mark.parametrize("name", PRESET)
def test_outputs_tell_the_integers_inside_a_kernel(name: str) -> None:
    """Every score and every sum of products is what int32 arithmetic has on the codes."""
    recipe, rows = PRESETS[PRESET[name]], 3 if name == "naive" else 70
    for question in (ask_scores(recipe, (0, 69), rows, 70), ask_products(recipe, rows, 70)):
        found = question.read(*attend(Setting(name, "sm_90a"), question.codes, question.case))
        for what, wanted in question.exact.items():
            assert np.abs(wanted).max() > 2**14, "integers so small that any arithmetic has them"
            np.testing.assert_array_equal(found[what], wanted)


def test_what_is_between_two_integers_is_none() -> None:
    question: Question = ask_scores(PRESETS["paper"], (0,), 1, 64)
    lse = np.full((1, 1, 1), np.log(2) * 1000.5, np.float32)
    with pytest.raises(ValueError, match=r"from an integer: expected less than 0\.25"):
        question.read(np.zeros((1, 1, 1, 64), np.float32), lse)


def cheap() -> list[Probe]:
    """Take instructions, small kernels, quantise and GEMM kernels: one of each."""
    small = {probe.name.split()[0]: probe for probe in instruction_probes()}
    kernels = {probe.name.split()[0]: probe for probe in islice(kernel_probes(), 7)}
    return [*small.values(), *kernels.values()]


def test_a_record_is_of_answers_that_are_the_same(tmp_path: Path) -> None:
    probes, file = cheap(), tmp_path / "answers.npz"
    ask(file, probes, lambda probe: probe.simulated())
    record = compare(file, probes)
    assert [row["name"] for row in record["results"]] == [probe.name for probe in probes]
    assert all(row["equal"] == row["elements"] > 0 for row in record["results"])
    assert (record["bit_for_bit"], record["within_bound"], record["missing"]) == (True, True, [])


def test_a_record_has_what_differs_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, file = next(instruction_probes()), tmp_path / "answers.npz"
    near = replace(right, name="near", limit=lambda: {f"o{i}": np.full(256, 2.0) for i in range(10)})
    answers: dict[str, Answer] = {}
    failing = replace(right, name="failing", on_gpu=lambda: answers["nothing"])

    def wrong(probe: Probe) -> Answer:
        if probe.name == "failing":
            return probe.on_gpu()
        answer = probe.simulated()
        return answer | {"o0": answer["o0"] + np.uint32(3) * (np.arange(256, dtype=np.uint32) == 7)}

    ask(file, [right, near, failing], wrong)
    assert "failing: KeyError: 'nothing'" in capsys.readouterr().err
    record = compare(file, [right, near, failing])
    assert (record["bit_for_bit"], record["within_bound"], record["missing"]) == (False, False, ["failing"])
    rows = {row["name"]: row for row in record["results"]}
    assert rows[right.name]["elements"] - rows[right.name]["equal"] == 1
    assert (rows["near"]["farthest"], rows["near"]["of_bound"]) == (3, 1.5)


@pytest.mark.parametrize(
    "probe", [p for p in instruction_probes() if not p.name.startswith("tensor")], ids=lambda p: p.name
)
def test_a_gpu_is_asked_what_the_simulator_is(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for tensor maps, which a driver makes."""
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    asked, wanted = probe.on_gpu(), probe.simulated()
    assert asked.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(asked[name], x)


@pytest.mark.parametrize("rung", ["naive", "sm80 3"])
def test_a_gpu_multiplies_what_the_simulator_does(rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    probes = [probe for probe in islice(kernel_probes(), 30) if probe.name.startswith(f"gemm_{rung}")]
    assert len(probes) == 3
    reload()  # kernels that a GPU would have loaded
    for probe in probes:
        np.testing.assert_array_equal(probe.on_gpu()["out"], probe.simulated()["out"])
    reload()
