"""A bug planted in a shipped kernel is found, each in the same runs that the kernel passes as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from kernels.test_quantize import Inputs
from ptxsim.mutations import MUTATIONS, Mutation
from ptxsim.simulated import Setting, check_attention, check_quantise
from strategies import Case

from cupy_intfa import PRESETS
from cupy_intfa.kernels import kernels_dir
from cupy_intfa.ptxsim import SimulationError

Run = Callable[[Path | None], None]
CASE = Case(heads=2, kv_heads=1, q_len=70, kv_len=200, head_dim=64, is_causal=True, causal_alignment="bottom_right")


def _attention(name: str, recipes: tuple[str, ...], case: Case, arch: str = "sm_80") -> Run:
    def run(folder: Path | None) -> None:
        for recipe in recipes:
            check_attention(Setting(name, arch, folder=folder, small=name == "sm90"), PRESETS[recipe], case)

    return run


def _quantise(head_dim: int) -> Run:
    def run(folder: Path | None) -> None:
        drawn = Inputs(heads=2, kv_heads=1, q_len=70, kv_len=130, head_dim=head_dim, dtype="float32")
        for recipe in ("fast", "paper", "half"):
            check_quantise(Setting("sm80", "sm_80", folder=folder), PRESETS[recipe], drawn.problem(), drawn.arrays())

    return run


ROW = Case(heads=4, kv_heads=2, q_len=2, kv_len=130, head_dim=50, is_causal=True, causal_alignment="bottom_right")
RUNS: Mapping[str, Run] = MappingProxyType(
    {
        "naive": _attention("naive", ("fast",), ROW),
        "dp4a": _attention("dp4a", ("fast",), CASE),
        "sm80": _attention("sm80", ("fast", "precise"), CASE),
        "sm80-32": _attention("sm80", ("fast",), replace(CASE, head_dim=32)),
        "sm80-mbarriers": _attention("sm80", ("fast",), replace(CASE, kv_len=700), "sm_90a"),
        "sm90": _attention("sm90", ("paper", "half"), replace(CASE, kv_len=330), "sm_90a"),
        "quantise": _quantise(64),
        "quantise-96": _quantise(80),
    }
)


@pytest.mark.parametrize("run", RUNS)
def test_the_kernels_as_they_are_pass(run: str) -> None:
    RUNS[run](None)


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[Mutation], Path]:
    """Copy the kernels, with a bug."""

    def plant(mutation: Mutation) -> Path:
        folder = tmp_path / "kernels_cu"
        shutil.copytree(kernels_dir(), folder)
        source = folder / mutation.file
        text = source.read_text("utf-8")
        assert mutation.right in text, f"{mutation.file} has changed: plant this bug anew"
        source.write_text(text.replace(mutation.right, mutation.wrong, 1), "utf-8")
        return folder

    return plant


def what_finds(run: Run, folder: Path) -> str:
    """Tell what finds the bug in a folder: a check of the simulator, the twin, or nothing."""
    try:
        run(folder)
    except SimulationError as error:
        return error.check
    except AssertionError:
        return "twin"
    return ""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_planted_bug_is_found(mutation: Mutation, planted: Callable[[Mutation], Path]) -> None:
    found = what_finds(RUNS[mutation.run], planted(mutation))
    assert found in mutation.found.split("|"), f"{mutation}: found by {found or 'nothing'}"


def test_forty_bugs_and_more_are_found_in_every_kernel() -> None:
    found = [mutation for mutation in MUTATIONS if mutation.found]
    assert len(found) >= 40
    sources = {path.name for path in kernels_dir().glob("attention_*.cu")}
    sources |= {path.name for path in kernels_dir().glob("quantize_*.cu")}
    assert sources <= {mutation.file for mutation in found}
