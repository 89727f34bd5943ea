"""A row's bits depend on its own q, its heads' k and v and the call's options: on nothing else, and not on chance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array, Case, cases, recipes
from tolerances import assert_within
from transcription import evaluate

from cupy_intfa import PRESETS, QuantizedQKV, Recipe
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import emulator

LENGTHS = (1, 8, 65, 129, 257)


def run(qkv: QuantizedQKV, case: Case, causal_offset: int | None = None) -> tuple[Array, Array]:
    offset = case.causal_offset if causal_offset is None else causal_offset
    return emulator.attention(qkv, scale=case.softmax_scale, key_tile=64, causal_offset=offset)


def rows_of(qkv: QuantizedQKV, rows: slice) -> QuantizedQKV:
    """Keep some query rows of inputs whose Q is scaled per token."""
    return replace(qkv, q=qkv.q[:, :, rows], q_scale=qkv.q_scale[:, :, rows], q_mark=qkv.q_mark[:, :, rows])


@given(cases(lengths=LENGTHS), recipes(qk=("int8",), pv=("int8", "int8x2")), st.data())
def test_a_row_alone_has_the_bits_it_has_among_others(case: Case, recipe: Recipe, data: st.DataObject) -> None:
    qkv = quantize_arrays(*case.arrays(), recipe=replace(recipe, q_granularity="token"))
    out, lse = run(qkv, case)
    first = data.draw(st.integers(0, case.q_len - 1))
    rows = slice(first, data.draw(st.integers(first + 1, case.q_len)))
    offset = None if case.causal_offset is None else case.causal_offset + first
    part_out, part_lse = run(rows_of(qkv, rows), case, offset)
    assert (part_out == out[:, :, rows]).all()
    assert (part_lse == lse[:, :, rows]).all()


@pytest.mark.parametrize("name", ["paper_half", "half"])
def test_a_row_alone_is_within_float32_of_itself_among_others(name: str) -> None:
    """P and V in float16 meet in BLAS, whose order of additions depends on the number of rows."""
    case = Case(family="channel", q_len=100, kv_len=300)
    qkv = quantize_arrays(*case.arrays(), recipe=PRESETS[name])
    out, _ = run(qkv, case)
    slack = evaluate(qkv, scale=case.softmax_scale, key_tile=64).out_slack
    for i in (0, 57, 99):
        alone, _ = run(rows_of(qkv, slice(i, i + 1)), case)
        assert_within(alone[0, 0, 0], out[0, 0, i], 2 * slack[0, 0, i])


@pytest.mark.parametrize("name", PRESETS)
def test_heads_and_batches_do_not_see_each_other(name: str) -> None:
    case = Case(family="outlier", batch=2, heads=6, kv_heads=2, q_len=70, kv_len=130, head_dim=40, is_causal=True)
    case = replace(case, causal_alignment="bottom_right")
    q, k, v = case.arrays()
    out, lse = run(quantize_arrays(q, k, v, recipe=PRESETS[name]), case)
    for b, h in ((0, 0), (0, 5), (1, 2), (1, 3)):
        g = h // 3
        one = (q[b : b + 1, h : h + 1], k[b : b + 1, g : g + 1], v[b : b + 1, g : g + 1])
        alone_out, alone_lse = run(quantize_arrays(*one, recipe=PRESETS[name]), case)
        assert alone_out[0, 0].tobytes() == out[b, h].tobytes()
        assert alone_lse[0, 0].tobytes() == lse[b, h].tobytes()


@given(cases(lengths=LENGTHS), recipes())
def test_the_same_call_gives_the_same_bits(case: Case, recipe: Recipe) -> None:
    results = [run(quantize_arrays(*case.arrays(), recipe=recipe), case) for _ in range(2)]
    assert results[0][0].tobytes() == results[1][0].tobytes()
    assert results[0][1].tobytes() == results[1][1].tobytes()


def test_many_heads_on_many_threads_give_the_bits_of_one_at_a_time() -> None:
    case = Case(batch=4, heads=8, kv_heads=8, q_len=130, kv_len=130, head_dim=16)
    q, k, v = case.arrays()
    out, _ = run(quantize_arrays(q, k, v, recipe=PRESETS["fast"]), case)
    for b, h in np.ndindex(4, 8):
        one = (x[b : b + 1, h : h + 1] for x in (q, k, v))
        assert run(quantize_arrays(*one, recipe=PRESETS["fast"]), case)[0][0, 0].tobytes() == out[b, h].tobytes()
