"""The bound of `bounds.py` itself, on the CPU: it holds for a kernel's arithmetic, and no other algorithm passes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from kernels.bounds import MOST_DIFFER, Bound, kernel_bound, share_that_differs
from strategies import Array, Case, cases, recipes
from tolerances import assert_within
from transcription import U

from cupy_intfa import PRESETS, QuantizedQKV, Recipe, get_recipe
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import emulator

exp2 = np.exp2
packable = recipes(
    pv=("int8", "float16", "float8_e4m3", "float8_e5m2"),
    v_granularities=("tensor", "channel", "block", "block_channel"),
)


def approximate(x: Array, out: Array | None = None, **_: Any) -> Array:
    """2^x as a GPU gives it: off by 2 ulp one way or the other, subnormal results 0, and exact at 0."""
    exact = exp2(x)
    if exact.dtype != np.float32:
        return exact
    sign = np.where(x.view(np.uint32) & 1, 1, -1)  # by the last bit of x: as good as chance, and the same every time
    rough = np.where(x == 0, exact, exact * (1 + 3.9 * U * sign)).astype(np.float32)
    rough = np.where(rough < 2.0**-126, np.float32(0), rough)
    if out is None:
        return rough
    out[...] = rough
    return out


def run(qkv: QuantizedQKV, case: Case, key_tile: int = 64, recipe: Recipe | None = None) -> tuple[Array, Array]:
    qkv = qkv if recipe is None else replace(qkv, recipe=recipe)
    return emulator.attention(qkv, scale=case.softmax_scale, key_tile=key_tile, causal_offset=case.causal_offset)


def bound_of(qkv: QuantizedQKV, case: Case) -> Bound:
    return kernel_bound(qkv, scale=case.softmax_scale, key_tile=64, causal_offset=case.causal_offset)


@given(cases(), packable)
def test_holds_for_a_rough_exponential(case: Case, recipe: Recipe) -> None:
    qkv = quantize_arrays(*case.arrays(), recipe=recipe)
    out, lse = run(qkv, case)
    bound = bound_of(qkv, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "exp2", approximate)
        rough_out, rough_lse = run(qkv, case)
    assert_within(rough_out, out, bound.out, recipe.name)
    assert_within(rough_lse, lse, bound.lse, recipe.name)


CASE = Case(heads=2, q_len=100, kv_len=1025)


@pytest.mark.parametrize("name", ["paper", "fast", "precise"])
def test_is_tight_for_integers(name: str) -> None:
    """The row sum is R·exp(m_ref)⁻¹·1025, a P is decided by chance once in 10⁵ keys, and else 10⁻⁵ is left."""
    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS[name])
    bound = bound_of(qkv, CASE)
    assert (bound.ties > 0).mean() < 0.1
    assert np.quantile(bound.out, 0.9) < 2e-5
    assert bound.out.max() < 5e-4, "a level of P or two"
    assert bound.lse.max() < (5e-4 if name == "paper" else 5e-5)


def direct(p: Array, fmt: object) -> Array:
    return p


def towards_zero(x: Array) -> Array:
    return np.floor(x)


WRONG: dict[str, tuple[tuple[str, ...], Callable[[pytest.MonkeyPatch], None]]] = {
    # What is wrong → presets that it is wrong for, and how to make it so.
    "P not rounded to float16 first": (
        ("paper", "fast", "precise"),
        lambda patch: patch.setattr(emulator, "round_to_format", direct),
    ),
    "P rounded towards 0": (("paper", "fast", "precise"), lambda patch: patch.setattr(np, "rint", towards_zero)),
    "the constant rounded to nearest": (
        ("paper", "fast"),
        lambda patch: patch.setattr(emulator, "_round_down", lambda x: x.astype(np.float32) + np.float32(2e-6)),
    ),
}


@pytest.mark.parametrize(("wrong", "name"), [(wrong, name) for wrong, (names, _) in WRONG.items() for name in names])
def test_refuses_another_rounding(wrong: str, name: str) -> None:
    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS[name])
    out, _ = run(qkv, CASE)
    with pytest.MonkeyPatch.context() as patch:
        WRONG[wrong][1](patch)
        other, _ = run(qkv, CASE)
    assert (np.abs(other - out) > bound_of(qkv, CASE).out).mean() > 0.001


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper", {"p_levels": 255}),
        ("paper", {"row_sum": "exact"}),
        ("paper", {"p_reference": "tile"}),
        ("paper", {"key_order": "last_to_first"}),
        ("fast", {"p_levels": 127}),
        ("fast", {"row_sum": "quantised"}),
        ("fast", {"p_reference": "tile"}),
        ("fast", {"key_order": "first_to_last"}),
        ("precise", {"p_levels": 127}),
        ("precise", {"row_sum": "quantised"}),
        ("precise", {"p_reference": "running"}),
        ("fp8_e4m3", {"p_reference": "tile"}),
        ("fp8_e5m2", {"row_sum": "quantised"}),
    ],
    ids=str,
)
def test_refuses_another_recipe(name: str, changes: dict[str, Any]) -> None:
    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS[name])
    out, _ = run(qkv, CASE)
    other, _ = run(qkv, CASE, recipe=get_recipe(name, **changes))
    assert (np.abs(other - out) > bound_of(qkv, CASE).out).mean() > 0.05


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *itertools.product(("paper_half", "half", "fp16", "fp8_e4m3", "fp8_e5m2"), ("p_reference", "key_order")),
        # Of 1025 P in float16 the sum is off by 10⁻⁵ only, and with float Q and K that is what scores are off by.
        *itertools.product(("paper_half", "half", "fp8_e4m3", "fp8_e5m2"), ("row_sum",)),
    ],
)
def test_another_recipe_makes_many_elements_differ(name: str, field: str) -> None:
    """Where float sums leave the bound wide, it shows in how many elements differ: P is rounded otherwise."""
    opposite = {"running": "tile", "exact": "quantised", "first_to_last": "last_to_first"}
    opposite |= {after: before for before, after in opposite.items()}
    recipe = PRESETS[name]
    other_recipe = get_recipe(recipe, **{field: opposite[getattr(recipe, field)]})
    qkv = quantize_arrays(*CASE.arrays(), recipe=recipe)
    out, _ = run(qkv, CASE)
    other, _ = run(qkv, CASE, recipe=other_recipe)
    share = share_that_differs(other, out, bound_of(qkv, CASE), CASE.arrays()[2])
    assert share > 1.3 * MOST_DIFFER[recipe.qk]


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_refuses_another_tile(name: str) -> None:
    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS[name])
    out, _ = run(qkv, CASE)
    other, _ = run(qkv, CASE, key_tile=128)
    assert (np.abs(other - out) > bound_of(qkv, CASE).out).mean() > 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_refuses_a_lost_key(name: str) -> None:
    """One key of 1025, an ordinary one, is not seen; also where float products leave the bound wide."""
    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS[name])
    out, lse = run(qkv, CASE)
    lost = replace(qkv, k=qkv.k.copy())
    lost.k[:, :, 77] = 0
    other, other_lse = run(lost, CASE)
    bound = bound_of(qkv, CASE)
    assert (np.abs(other - out) > bound.out).any(axis=-1).mean() > 0.5
    assert (np.abs(other_lse - lse) > bound.lse).mean() > 0.3
