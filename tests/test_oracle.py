"""The oracle, against the definition of attention written as loops over Python floats."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from scipy.special import logsumexp
from strategies import Array, Case, cases
from tolerances import assert_within

from cupy_intfa.reference import oracle

EPS = 2.0**-52
TINY_LENGTHS = (1, 2, 3, 5, 8)


def by_definition(case: Case) -> tuple[Array, Array]:
    """Evaluate softmax(scale · Q Kᵀ) V and its log-sum-exp, one sum at a time, each sum exact before it is rounded."""
    q, k, v = (x.astype(np.float64).tolist() for x in case.arrays())
    out = np.zeros((case.batch, case.heads, case.q_len, case.head_dim))
    lse = np.full(out.shape[:3], -math.inf)
    for b, h, i in np.ndindex(*lse.shape):
        g = h * case.kv_heads // case.heads
        last = case.kv_len - 1 if case.causal_offset is None else min(case.kv_len - 1, i + case.causal_offset)
        scores = [
            case.softmax_scale * math.fsum(x * y for x, y in zip(q[b][h][i], k[b][g][j], strict=True))
            for j in range(last + 1)
        ]
        if scores:
            top = max(scores)
            weights = [math.exp(s - top) for s in scores]
            total = math.fsum(weights)
            lse[b, h, i] = top + math.log(total)
            for d in range(case.head_dim):
                out[b, h, i, d] = math.fsum(w * v[b][g][j][d] for j, w in enumerate(weights)) / total
    return out, lse


@given(cases(lengths=TINY_LENGTHS, head_dims=(1, 2, 3, 5), dtypes=("float16", "float64")))
def test_agrees_with_definition(case: Case) -> None:
    out, lse = oracle.attention(*case.arrays(), **case.keywords)
    wanted_out, wanted_lse = by_definition(case)
    q, k, v = (np.abs(x.astype(np.float64)) for x in case.arrays())
    # A score is off by D + 2 roundings of Σ|q·k|; p by twice that and the exponential's; out by Skv more roundings.
    reach = case.softmax_scale * case.head_dim * q.max() * k.max()
    off = EPS * (2 * (case.head_dim + 2) * reach + case.kv_len + 8)
    assert_within(out, wanted_out, 2 * off * v.max() + 1e-300, "out")
    assert_within(lse, wanted_lse, off + 8 * EPS * (reach + 8), "lse")


@pytest.mark.parametrize("alignment", ["top_left", "bottom_right"])
@pytest.mark.parametrize(("q_len", "kv_len"), [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_alignment_says_which_keys_are_seen(alignment: str, q_len: int, kv_len: int) -> None:
    """With equal scores the output is the mean of the visible values: here their indices' mean."""
    q, k = np.zeros((1, 1, q_len, 2)), np.zeros((1, 1, kv_len, 2))
    v = np.arange(kv_len, dtype=np.float64).reshape(1, 1, kv_len, 1).repeat(2, axis=3)
    out, lse = oracle.attention(q, k, v, is_causal=True, causal_alignment=alignment)
    for i in range(q_len):
        last = i if alignment == "top_left" else kv_len - q_len + i
        seen = min(last + 1, kv_len)
        expected = (0.0, -math.inf) if seen <= 0 else ((seen - 1) / 2, math.log(seen))
        assert out[0, 0, i].tolist() == pytest.approx([expected[0]] * 2, rel=1e-15)
        assert lse[0, 0, i] == pytest.approx(expected[1], rel=1e-15)


def test_unequal_lengths_need_an_alignment() -> None:
    x, y = np.zeros((1, 1, 2, 4)), np.zeros((1, 1, 3, 4))
    with pytest.raises(ValueError, match="2 queries and 3 keys needs causal_alignment"):
        oracle.attention(x, y, y, is_causal=True)


@given(cases(causal=True))
def test_lse_is_scipys(case: Case) -> None:
    q, k, v = (x.astype(np.float64) for x in case.arrays())
    _, lse = oracle.attention(q, k, v, **case.keywords)
    scores = case.softmax_scale * np.einsum("bhid,bhjd->bhij", q, np.repeat(k, case.heads // case.kv_heads, axis=1))
    assert case.causal_offset is not None
    visible = np.tri(case.q_len, case.kv_len, case.causal_offset, dtype=np.bool_)
    expected = logsumexp(np.where(visible, scores, -np.inf), axis=-1)
    reach = case.softmax_scale * case.head_dim * np.abs(q).max() * np.abs(k).max()
    assert_within(lse, expected, EPS * ((case.head_dim + 8) * reach + 32))
    assert np.isneginf(lse).sum() == case.batch * case.heads * (~visible.any(axis=1)).sum()


def test_softmax_is_shift_invariant_at_a_million() -> None:
    """K + c with q·c the same for every key moves all logits by 10⁶: the output stays, lse moves by it."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, 1, 2, 50, 8))
    q[..., 0] = 1.0  # so that a shift of channel 0 of K shifts every logit of every row alike
    shifted = k.copy()
    shifted[..., 0] += 1e6
    (out, lse), (out_shifted, lse_shifted) = (oracle.attention(q, x, v, scale=1.0) for x in (k, shifted))
    off = 1e6 * EPS * 10  # ten roundings of a sum near 10⁶
    assert_within(out_shifted, out, 4 * off * np.abs(v).max())
    assert_within(lse_shifted - 1e6, lse, 2 * off)


def test_a_logit_of_a_million_takes_all() -> None:
    q, v = np.ones((1, 1, 1, 1)), np.arange(5.0).reshape(1, 1, 5, 1)
    k = np.array([0.0, 1e6, -1e6, 0.5, 2.0]).reshape(1, 1, 5, 1)
    out, lse = oracle.attention(q, k, v, scale=1.0)
    assert out.item() == 1.0
    assert lse.item() == 1e6


def test_imports_numpy_alone() -> None:
    code = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('oracle', {oracle.__file__!r});"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec));"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy']"
