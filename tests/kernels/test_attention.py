"""Every attention kernel against its twin, the emulator, on the same codes, and against exact attention.

A kernel is compiled per recipe and padded head dimension: those are parameters, and hypothesis draws the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.bounds import MOST_DIFFER, share_that_differs
from kernels.harness import ROWS, TILES, assert_twins, every_kernel, planned, run, runs, twin
from noise_model import predicted_rmse
from strategies import DTYPES, LENGTHS, Case, cases
from tolerances import assert_within, output_rounding, worst_case

from cupy_intfa import PRESETS, Recipe
from cupy_intfa.metrics import compare
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import oracle

pytestmark = pytest.mark.gpu

GPU_LENGTHS = (*LENGTHS, 1025)
WHERE = st.sampled_from(("host", "device", "spread"))
LAYOUT = st.sampled_from(("bhsd", "bshd"))
few = settings(max_examples=max(3, settings().max_examples // 10))  # a tenth: there are hundreds of parameters


def assert_computes(name: str, recipe: Recipe, case: Case, layout: str, where: str) -> None:
    """Quantise on the host; the kernel's answer is its twin's within rounding, and exact attention's within budget."""
    what, arrays = f"{name}, {recipe.name}, {where}", case.arrays()
    qkv = replace(quantize_arrays(*arrays, recipe=recipe), layout=layout)
    out, lse = run(name, qkv, case, where)
    expected = twin(name, qkv, case)
    assert_twins((out, lse), expected, case.dtype, what)

    exact_out, exact_lse = oracle.attention(*arrays, **case.keywords)
    budget, lse_budget = worst_case(*arrays, qkv, scale=case.softmax_scale, causal_offset=case.causal_offset)
    budget += expected[2].out + output_rounding(np.abs(expected[0]) + expected[2].out, case.dtype)
    assert_within(out, exact_out, budget, f"out against the oracle, {what}")
    assert_within(lse, exact_lse, lse_budget + expected[2].lse, f"lse against the oracle, {what}")


PRESET_BUILDS = [
    pytest.param(name, preset, tile, id=f"{name}-{preset}-{tile}")
    for name, preset, tile in itertools.product(ROWS, PRESETS, TILES)
    if runs(name, PRESETS[preset], tile)
]


@pytest.mark.parametrize(("name", "preset", "tile"), PRESET_BUILDS)
@few
@given(st.data(), LAYOUT, WHERE)
def test_a_preset_is_its_twin(name: str, preset: str, tile: int, data: st.DataObject, layout: str, where: str) -> None:
    case = data.draw(cases(dtypes=DTYPES, lengths=GPU_LENGTHS, head_dims=TILES[tile]))
    assert_computes(name, PRESETS[preset], case, layout, where)


# What a kernel is compiled for, beside the head dimension: formats, kind of K scale and V scale, reference, row sum.
FORMATS = (
    ("int8", "int8"),
    ("int8", "float16"),
    ("float16", "float16"),
    ("int8", "float8_e4m3"),
    ("float8_e4m3", "float8_e4m3"),
    ("float8_e5m2", "float8_e5m2"),
)
P_LEVELS = {"int8": (127, 255), "float16": (1,), "float8_e4m3": (1, 256), "float8_e5m2": (1, 256)}


@dataclass(frozen=True)
class Kind:
    """One build of a kernel at some head dimension."""

    qk: str
    pv: str
    k_granularities: tuple[str, ...]
    v_granularities: tuple[str, ...]
    p_reference: str
    row_sum: str

    @property
    def simplest(self) -> Recipe:
        """One of its recipes."""
        return Recipe(
            qk=self.qk,
            pv=self.pv,
            q_granularity="tensor",
            k_granularity=self.k_granularities[0],
            v_granularity=self.v_granularities[0],
            p_levels=P_LEVELS[self.pv][0],
            p_reference=self.p_reference,
            row_sum=self.row_sum,
        )

    def __str__(self) -> str:
        """Name a test."""
        k, v = self.k_granularities[0], self.v_granularities[0]
        return f"{self.qk}-{self.pv}-k_{k}-v_{v}-{self.p_reference}-{self.row_sum}"


KINDS = [
    Kind(qk, pv, k, v, reference, row_sum)
    for (qk, pv), k, v, reference, row_sum in itertools.product(
        FORMATS,
        (("tensor", "block", "group"), ("token",)),
        (("tensor", "channel"), ("block", "block_channel")),
        ("running", "tile"),
        ("quantised", "exact"),
    )
    if (qk == "int8" or k[0] == "tensor") and (pv == "int8" or v[0] == "tensor")
]
KIND_BUILDS = [
    # The kinds go round the head dimensions that a kernel runs them at, from another start for each kernel.
    pytest.param(name, kind, tiles[(i + start) % len(tiles)], id=f"{name}-{kind}")
    for start, name in enumerate(ROWS)
    for i, kind in enumerate(KINDS)
    if (tiles := [tile for tile in TILES if runs(name, kind.simplest, tile)])
]


@st.composite
def recipes_of(draw: st.DrawFn, kind: Kind) -> Recipe:
    """Draw a recipe that a build runs."""
    integer_qk, integer_pv = kind.qk == "int8", kind.pv == "int8"
    return replace(
        kind.simplest,
        qk_bits=draw(st.sampled_from((8, 4))) if integer_qk else 8,
        q_granularity=draw(st.sampled_from(("tensor", "block", "token"))) if integer_qk else "tensor",
        k_granularity=draw(st.sampled_from(kind.k_granularities)) if integer_qk else "tensor",
        v_granularity=draw(st.sampled_from(kind.v_granularities)) if integer_pv else "tensor",
        p_levels=draw(st.sampled_from(P_LEVELS[kind.pv])),
        key_order=draw(st.sampled_from(("first_to_last", "last_to_first"))),
        smooth_k=draw(st.booleans()),
        smooth_v=draw(st.booleans()),
        rotate=draw(st.booleans()),
        key_window=draw(st.sampled_from((0, 64))),
    )


@pytest.mark.parametrize(("name", "kind", "tile"), KIND_BUILDS)
@few
@given(st.data(), LAYOUT, WHERE)
def test_any_recipe_is_its_twin(name: str, kind: Kind, tile: int, data: st.DataObject, layout: str, where: str) -> None:
    recipe = data.draw(recipes_of(kind))
    case = data.draw(cases(dtypes=DTYPES, lengths=GPU_LENGTHS, head_dims=TILES[tile]))
    assert_computes(name, recipe, case, layout, where)


@every_kernel
def test_few_elements_differ_from_the_twins(name: str, preset: str) -> None:
    recipe, case = PRESETS[preset], Case(heads=2, q_len=256, kv_len=1024)
    arrays = case.arrays()
    qkv = quantize_arrays(*arrays, recipe=recipe)
    out, lse = run(name, qkv, case)
    wanted, wanted_lse, bound = twin(name, qkv, case)
    assert share_that_differs(out, wanted, bound, arrays[2]) <= MOST_DIFFER[recipe.qk], np.abs(out - wanted).max()
    assert_within(lse, wanted_lse, bound.lse, "lse")


@every_kernel
def test_error_on_normal_input_is_the_predicted_one(name: str, preset: str) -> None:
    recipe, case = PRESETS[preset], Case(heads=2, q_len=256, kv_len=1024)
    arrays = case.arrays()
    out, _ = run(name, quantize_arrays(*arrays, recipe=recipe), case)
    measured = compare(out, oracle.attention(*arrays)[0]).relative_rmse
    key_tile = planned(name, recipe, case).key_tile
    predicted = predicted_rmse(recipe, length=1024, head_dim=64, key_tile=key_tile)
    assert measured == pytest.approx(predicted, rel=0.1)  # of 32 768 elements, which share 1024 rows of K and V
