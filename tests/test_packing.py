"""The workspace: where each array lies, what stands in its padding, and every bit back out of it."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_matrix import PV_PARTS, QK_PARTS, Part
from strategies import Case, cases, recipes

from cupy_intfa import PRESETS, QuantizedQKV, Recipe
from cupy_intfa.packing import ALIGNMENT, KEY_BLOCK, V_ORDER, Packing, has_offset_values, make_packing, pack, unpack
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.quantize.rotate import rotate

UNTOUCHED = 0xAB

packed_recipes = recipes(
    pv=("int8", "float16", "float8_e4m3", "float8_e5m2"),
    v_granularities=("tensor", "channel", "block", "block_channel"),
).map(lambda recipe: replace(recipe, key_block=KEY_BLOCK, key_window=KEY_BLOCK if recipe.key_window else 0))


def problem_of(case: Case) -> AttentionProblem:
    kv = (case.batch, case.kv_heads, case.kv_len, case.head_dim)
    return make_problem((case.batch, case.heads, case.q_len, case.head_dim), kv, kv, (case.dtype,) * 3)


def packed(case: Case, recipe: Recipe, bad: bool = False) -> tuple[QuantizedQKV, Packing, np.ndarray]:
    """Quantise a case and pack it into memory that holds something else."""
    q, k, v = case.arrays()
    if bad:
        q[..., -1, 0], v[0, 0, 0, 0] = np.nan, np.inf
    qkv = quantize_arrays(q, k, v, recipe=recipe)
    packing = make_packing(problem_of(case), recipe)
    workspace = np.full(packing.nbytes, UNTOUCHED, np.uint8)
    pack(qkv, packing, workspace, np)
    return qkv, packing, workspace


def assert_same_bits(a: QuantizedQKV, b: QuantizedQKV) -> None:
    for field in fields(QuantizedQKV):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (y.dtype, y.shape) == (x.dtype, x.shape), field.name
            assert y.tobytes() == x.tobytes(), field.name
        else:
            assert y == x, field.name


@given(cases(), packed_recipes)
def test_regions_are_aligned_and_lie_one_behind_the_other(case: Case, recipe: Recipe) -> None:
    problem, packing = problem_of(case), make_packing(problem_of(case), recipe)
    end = 0
    for name, region in packing.regions.items():
        assert region.offset % ALIGNMENT == 0, name
        assert 0 <= region.offset - end < ALIGNMENT, f"{name} overlaps what is before it, or leaves more than alignment"
        assert region.nbytes == np.empty(region.shape, region.dtype).nbytes > 0
        end = region.offset + region.nbytes
    assert 0 <= packing.nbytes - end < ALIGNMENT
    assert packing.nbytes % ALIGNMENT == 0, "the scratch behind it is aligned too"
    for padded, length, multiple in ((packing.q_len, problem.q_len, 128), (packing.kv_len, problem.kv_len, 128)):
        assert 0 <= padded - length < multiple
        assert padded % multiple == 0
    assert packing.head_dim >= problem.head_dim


@given(cases(), packed_recipes, st.booleans())
def test_every_bit_comes_back(case: Case, recipe: Recipe, bad: bool) -> None:
    qkv, packing, workspace = packed(case, recipe, bad)
    assert_same_bits(qkv, unpack(packing, workspace, problem_of(case), recipe, np))


def test_every_bit_comes_back_from_every_kind_of_packing() -> None:
    """All formats and granularities, without and with everything that adds an array or moves keys."""
    case = Case(batch=2, heads=4, kv_heads=2, q_len=65, kv_len=130, head_dim=40)
    more: Part = {"smooth_k": True, "smooth_v": True, "rotate": True, "key_window": KEY_BLOCK}
    for qk, pv, rest in itertools.product(QK_PARTS, PV_PARTS, ({}, more)):
        recipe = Recipe(**qk, **pv, **rest)
        qkv, packing, workspace = packed(case, recipe, bad=True)
        assert_same_bits(qkv, unpack(packing, workspace, problem_of(case), recipe, np))


def test_result_keeps_its_packing_where_asked_to() -> None:
    _, packing, workspace = packed(Case(), PRESETS["fast"])
    arguments = (packing, workspace, problem_of(Case()), PRESETS["fast"], np)
    assert unpack(*arguments).packed is None
    assert unpack(*arguments, keep=True).packed is workspace


@given(cases(), packed_recipes)
def test_padding_holds_codes_0_scales_1_and_no_marks(case: Case, recipe: Recipe) -> None:
    _, packing, workspace = packed(case, recipe)
    views = packing.views(workspace)
    used = np.zeros(packing.nbytes, np.bool_)
    for region in packing.regions.values():
        used[region.offset : region.offset + region.nbytes] = True
    assert (workspace[~used] == UNTOUCHED).all(), "written between the arrays"
    rows, keys = np.s_[:, :, case.q_len :], np.s_[:, :, case.kv_len :]
    blocks = np.s_[:, :, -(-case.kv_len // KEY_BLOCK) :]
    for name, padding, value in (
        ("q", rows, 0),
        ("q", np.s_[..., case.head_dim :], 0),
        ("q_scale", rows, 1),
        ("q_mark", rows, 0),
        ("k", keys, 0),
        ("k", np.s_[..., case.head_dim :], 0),
        ("k_scale", keys if recipe.k_granularity == "token" else blocks, 1),
        ("v_scale", np.s_[..., case.head_dim :], 1),
        ("v", keys if recipe.pv == "float16" else blocks, 128 if has_offset_values(recipe) else 0),
    ):
        assert (views[name][padding].astype(np.float32) == value).all(), name


@pytest.mark.parametrize(("pv", "reference"), [("int8", "running"), ("int8", "tile"), ("float8_e4m3", "tile")])
def test_values_are_transposed_with_the_keys_of_each_16_in_their_order(pv: str, reference: str) -> None:
    case = Case(batch=2, heads=2, kv_heads=2, kv_len=70, head_dim=33)
    recipe = Recipe(pv=pv, p_levels=127 if pv == "int8" else 1, p_reference=reference)
    offset = 128 * (pv == "int8" and reference == "tile")
    qkv, packing, workspace = packed(case, recipe)
    stored, codes = packing.views(workspace)["v"].view(np.uint8), qkv.v.view(np.uint8)
    for b, h, block, d, p in np.ndindex(*stored.shape):
        key = KEY_BLOCK * block + p // 16 * 16 + V_ORDER[p % 16]
        code = int(codes[b, h, key, d]) if key < 70 and d < 33 else 0
        assert stored[b, h, block, d, p] == (code + offset) % 256, (b, h, block, d, p)


def test_order_of_values_turns_score_accumulators_into_fragments() -> None:
    """Lane t has the scores of keys 2t, 2t + 1 in each 8 keys: of two such tiles, the bytes 4t ... 4t + 3 of its A."""
    for t in range(4):
        assert V_ORDER[4 * t : 4 * t + 4] == (2 * t, 2 * t + 1, 8 + 2 * t, 8 + 2 * t + 1)


@given(cases(families=("normal", "channel")), st.booleans())
def test_product_of_query_and_mean_key_is_that_of_float64(case: Case, rotated: bool) -> None:
    """Of the terms' sizes: u for each product, u for each of log2(D) sums, u for the scale; and what underflows."""
    qkv, packing, workspace = packed(case, Recipe(smooth_k=True, rotate=rotated))
    assert qkv.k_mean is not None
    mean = (rotate(qkv.k_mean, np) if rotated else qkv.k_mean).astype(np.float64)
    mean = np.repeat(mean, case.heads // case.kv_heads, axis=1)[:, :, None]
    scale = qkv.q_scale.astype(np.float64)
    terms = scale[..., None] * qkv.q.astype(np.float64) * mean
    roundings = 3 + np.ceil(np.log2(case.head_dim))
    bound = roundings * 2.0**-24 * np.abs(terms).sum(axis=-1) + (1 + 2 * case.head_dim * scale) * 2.0**-126
    got = packing.views(workspace)["q_kmean"][:, :, : case.q_len]
    assert (np.abs(got - terms.sum(axis=-1)) <= bound).all()
