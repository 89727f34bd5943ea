"""The problem: what is derived from shapes and masks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALIGNMENTS, Case, cases

from cupy_intfa.problem import AttentionProblem, make_problem


def problem_of(case: Case, layout: str = "bhsd", batched: bool = True) -> AttentionProblem:
    def shape(heads: int, length: int) -> tuple[int, ...]:
        inner = (heads, length) if layout == "bhsd" else (length, heads)
        return ((case.batch,) if batched else ()) + (*inner, case.head_dim)

    q, k = shape(case.heads, case.q_len), shape(case.kv_heads, case.kv_len)
    return make_problem(q, k, k, (case.dtype,) * 3, layout=layout, **case.keywords)


@given(cases(), st.sampled_from(("bhsd", "bshd")), st.booleans())
def test_shapes_are_read_in_the_callers_layout(case: Case, layout: str, batched: bool) -> None:
    problem = problem_of(case, layout, batched)
    assert (problem.heads, problem.kv_heads, problem.head_dim) == (case.heads, case.kv_heads, case.head_dim)
    assert (problem.q_len, problem.kv_len) == (case.q_len, case.kv_len)
    assert problem.batch == (case.batch if batched else 1)
    assert (problem.dtype, problem.scale) == (case.dtype, case.softmax_scale)
    assert problem.causal_offset == case.causal_offset
    batch = (case.batch,) if batched else ()
    inner = (case.heads, case.q_len) if layout == "bhsd" else (case.q_len, case.heads)
    assert problem.out_shape == (*batch, *inner, case.head_dim)
    assert problem.lse_shape == (*batch, case.heads, case.q_len), "lse is (B, Hq, Sq) in both layouts"


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(ALIGNMENTS))
def test_visible_pairs_are_those_of_the_mask(q_len: int, kv_len: int, alignment: str) -> None:
    case = Case(q_len=q_len, kv_len=kv_len, is_causal=True, causal_alignment=alignment)
    i, j = np.arange(q_len)[:, None], np.arange(kv_len)
    visible = j <= (i if alignment == "top_left" else i + kv_len - q_len)
    assert problem_of(case).visible_pairs == visible.sum()
    assert problem_of(Case(q_len=q_len, kv_len=kv_len)).visible_pairs == q_len * kv_len


@pytest.mark.parametrize("alignment", [None, *ALIGNMENTS])
def test_alignments_agree_on_equal_lengths(alignment: str | None) -> None:
    assert problem_of(Case(is_causal=True, causal_alignment=alignment)).causal_offset == 0


@pytest.mark.parametrize("is_causal", [np.bool_(True), np.bool_(False)])
def test_a_mask_is_asked_for_with_a_bool_of_numpy_as_well(is_causal: Any) -> None:
    asked = problem_of(Case(q_len=3, kv_len=5, is_causal=is_causal, causal_alignment="top_left"))
    assert asked.causal_offset == (0 if is_causal else None)


def test_an_alignment_without_a_mask_is_no_mask() -> None:
    case = Case(q_len=3, kv_len=5, is_causal=False, causal_alignment="bottom_right")
    assert problem_of(case).causal_offset is None


@pytest.mark.parametrize("scale", [2, 0.5, np.float32(0.5), np.float64(3.0), np.int64(2), np.float16(0.25)])
def test_any_real_scale_becomes_a_float(scale: float) -> None:
    problem = problem_of(Case(scale=scale))
    assert type(problem.scale) is float
    assert problem.scale == float(scale)


@pytest.mark.parametrize("head_dim", [1, 3, 64, 256])
def test_scale_is_one_over_root_d_unless_given(head_dim: int) -> None:
    assert problem_of(Case(head_dim=head_dim)).scale == pytest.approx(head_dim**-0.5, rel=1e-15)


def test_a_problem_is_a_value() -> None:
    """Plans are memorised by problem: equal calls must be equal and hashable."""
    case = Case(q_len=3, is_causal=True, causal_alignment="top_left")
    assert problem_of(case) == problem_of(case)
    assert hash(problem_of(case)) == hash(problem_of(case))
    assert problem_of(case) != problem_of(Case(q_len=3))
