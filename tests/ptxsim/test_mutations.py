"""A bug planted in a shipped kernel is found, each in the same runs that the kernel passes as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from kernels.test_quantize import Inputs
from ptxsim import mutations, mutations_formats, mutations_gemm, mutations_quantise
from ptxsim.mutations import Mutation
from ptxsim.simulated import Setting, check_attention, check_quantise
from ptxsim.simulated_toolbox import Product, check_codebook, check_codes
from ptxsim.test_hopper import MISTAKES
from strategies import Case

from cupy_intfa import PRESETS, Recipe
from cupy_intfa.gemm_ladder import Tile
from cupy_intfa.kernels import kernels_dir
from cupy_intfa.ptxsim import SimulationError
from cupy_intfa.quantize.bits import ENCODINGS
from cupy_intfa.simulator import Simulator, simulated_device

_FILES = (mutations, mutations_quantise, mutations_gemm, mutations_formats)
MUTATIONS = tuple(mutation for file in _FILES for mutation in file.MUTATIONS)
Run = Callable[[Path | None], None]
CASE = Case(heads=2, kv_heads=1, q_len=70, kv_len=200, head_dim=64, is_causal=True, causal_alignment="bottom_right")


def _attention(name: str, recipes: tuple[str, ...], case: Case, arch: str = "sm_80") -> Run:
    def run(folder: Path | None) -> None:
        for recipe in recipes:
            check_attention(Setting(name, arch, folder=folder, small=name == "sm90"), PRESETS[recipe], case)

    return run


def _quantise(head_dim: int, *recipes: Recipe, **options: Any) -> Run:
    def run(folder: Path | None) -> None:
        drawn = Inputs(heads=2, q_len=70, kv_len=130, head_dim=head_dim, dtype="float32", **options)
        for recipe in recipes or (PRESETS["fast"], PRESETS["paper"], PRESETS["half"]):
            check_quantise(Setting("sm80", "sm_80", folder=folder), recipe, drawn.problem(), drawn.arrays())

    return run


def _gemm(*products: Product) -> Run:
    def run(folder: Path | None) -> None:
        for one in products:
            one.check(folder)

    return run


def _codes(folder: Path | None) -> None:
    simulator = Simulator(simulated_device("sm_80"), folder=folder)
    for (rows, length), bits, encoding in product(((3, 5), (5, 48)), (4, 2), ENCODINGS):
        check_codes(simulator, rows, length, bits, encoding)


def _codebook(folder: Path | None) -> None:
    simulator = Simulator(simulated_device("sm_80"), folder=folder)
    for count, dtype in ((700, "float32"), (4165, "float16")):
        check_codebook(simulator, count, dtype)


# Small tiles in short rings: two blocks each way, the ring comes round, rows, columns and depth end inside a tile.
_SMALL = Tile(m=32, n=32, k=64, warps_m=2, warps_n=1, ring=3)
_WIDE = replace(_SMALL, n=64)
_SHAPE = (37, 40, 336)
ROW = Case(heads=4, kv_heads=2, q_len=2, kv_len=130, head_dim=50, is_causal=True, causal_alignment="bottom_right")
RUNS: Mapping[str, Run] = MappingProxyType(
    {
        "naive": _attention("naive", ("fast",), ROW),
        "dp4a": _attention("dp4a", ("fast",), CASE),
        "sm80": _attention("sm80", ("fast", "precise"), CASE),
        "sm80-32": _attention("sm80", ("fast",), replace(CASE, head_dim=32)),
        "sm80-mbarriers": _attention("sm80", ("fast",), replace(CASE, kv_len=700), "sm_90a"),
        "sm90": _attention("sm90", ("paper", "half"), replace(CASE, kv_len=330), "sm_90a"),
        "sm90-tile": _attention("sm90", ("precise",), replace(CASE, kv_len=330), "sm_90a"),
        # Values of one sign and P near R: O is 2^22 after half of the keys, and maxima still grow.
        "sm90-far": _attention(
            "sm90", ("paper",), Case(family="uniform01", q_len=30, kv_len=1000, scale=0.01), "sm_90a"
        ),
        "naive-tile": _attention("naive", ("precise",), ROW),
        "dp4a-tile": _attention("dp4a", ("precise",), CASE),
        "quantise": _quantise(64),
        "quantise-tile": _quantise(64, PRESETS["precise"]),
        "quantise-96": _quantise(80),
        "quantise-rotate": _quantise(64, replace(PRESETS["fast"], rotate=True), kv_heads=2),
        "quantise-spoilt": _quantise(64, PRESETS["fast"], spoilt=("not finite",) * 3),
        "gemm-naive": _gemm(
            Product("naive", "sm_80", (17, 19, 33)), Product("naive", "sm_80", (17, 19, 33), "float32")
        ),
        "gemm-dp4a": _gemm(Product("dp4a", "sm_80", (37, 70, 336), tile=_WIDE)),
        "gemm-wmma": _gemm(Product("wmma", "sm_80", (37, 40, 400), tile=_SMALL)),
        "gemm-sm80": _gemm(
            Product("sm80", "sm_80", (37, 41, 336), tile=_SMALL), Product("sm80", "sm_80", _SHAPE, "float16", _SMALL)
        ),
        "gemm-sm90": _gemm(Product("sm90", "sm_90a", (70, 258, 400), grid=1)),
        "gemm-pack": _gemm(Product("dp4a", "sm_80", (37, 44, 70), tile=_WIDE, layouts=("odd", "row"))),
        "formats-codes": _codes,
        "formats-codebook": _codebook,
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
    sources = {path.name for path in kernels_dir().glob("*.cu")}
    assert sources <= {mutation.file for mutation in found}


def test_the_page_counts_them() -> None:
    page = (kernels_dir() / "README.md").read_text("utf-8")
    missed = sum(not mutation.found for mutation in MUTATIONS)
    words = {6: "Six"}
    assert f"plants {len(MUTATIONS)} bugs in these kernels, one line each, and {len(MISTAKES)} in a small ring" in page
    assert f"{words[missed]} of the {len(MUTATIONS)} nothing\nfinds" in page
