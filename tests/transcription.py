"""What a recipe means, written a second time: float64, all keys at once, no running state.

`algorithm_1` is the paper's loop, letter by letter. `evaluate` states what any recipe computes on given codes and
scales, and how far float32 arithmetic may take the emulator from it: P is bracketed, so a probability within the
arithmetic's error of a rounding tie may differ by one level and no other may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag, hadamard

from cupy_intfa import QuantizedQKV, Recipe

Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

U = 2.0**-24  # unit roundoff of float32
EXP2 = 8 * U  # np.exp2 of float32 is within 4 ulp on every platform
TINY = 2.0**-126  # below it float32 is subnormal, and may be flushed
LN_2 = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Output and log-sum-exp of a recipe, and how far from them float32 arithmetic may be."""

    out: Float64  # (B, Hq, Sq, D)
    lse: Float64  # (B, Hq, Sq)
    out_slack: Float64
    lse_slack: Float64


def rotation(head_dim: int) -> Float64:
    """Give the block-diagonal orthonormal Hadamard matrix (D, D)."""
    block = max(b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if head_dim % b == 0)
    matrix: Float64 = block_diag(*[hadamard(block) / np.sqrt(block)] * (head_dim // block))
    return matrix


def stored_order(qkv: QuantizedQKV, b: int, head: int) -> npt.NDArray[np.intp]:
    """Original index of the key at each stored position."""
    length = qkv.k.shape[2]
    return np.arange(length) if qkv.key_index is None else np.asarray(qkv.key_index[b, head], np.intp)


def token_scales(scale: Array, granularity: str, order: npt.NDArray[np.intp], block: int) -> Float64:
    """Scale of each stored token of one head, from the scales as `QuantizedQKV` keeps them."""
    position = np.arange(len(order))
    index: dict[str, Any] = {
        "tensor": (np.zeros_like(position),),
        "token": (order,),  # in the original order
        "block": (position // block,),
        "group": (position // block, (position % 8) // 2),
    }
    return np.atleast_1d(scale).astype(np.float64)[index[granularity]]


def value_scales(qkv: QuantizedQKV, b: int, head: int, order: npt.NDArray[np.intp]) -> Float64:
    """Scale of each element of V in stored order, (Skv, D) or (Skv, 1)."""
    scale = np.asarray(qkv.v_scale[b, head], np.float64)
    kind = qkv.recipe.v_granularity
    if kind == "channel":
        return np.broadcast_to(scale, (len(order), scale.size))
    if kind == "block_channel":
        return scale[np.arange(len(order)) // qkv.recipe.key_block]
    return token_scales(scale, kind, order, qkv.recipe.key_block)[:, None]


def round_p(p: Float64, recipe: Recipe) -> Float64:
    """Round P to its format: by way of float16 to a one-byte integer, else in one step."""
    if recipe.pv == "int8":
        return np.rint(p.astype(np.float16).astype(np.float64))
    if recipe.pv == "int8x2":
        return np.rint(p)
    dtypes = {"float16": np.float16, "float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
    return p.astype(np.float32).astype(dtypes[recipe.pv]).astype(np.float64)


def algorithm_1(
    qkv: QuantizedQKV, *, scale: float, key_tile: int, causal_offset: int | None = None
) -> tuple[Float64, Float64, Float64]:
    """Run arXiv 2409.16997, Algorithm 1, as it is printed, one query row at a time.

    Returns the output, its distance allowed by the rounding of P, and the smallest distance of any P·R from a tie
    relative to what one rounding to float16 may move it.
    """
    (batch, heads, q_len, head_dim), (kv_heads, kv_len) = qkv.q.shape, qkv.k.shape[1:3]
    out, slack = np.zeros((2, batch, heads, q_len, head_dim))
    r, ties = 127.0, 0
    for b, h, i in np.ndindex(batch, heads, q_len):
        g = h // (heads // kv_heads)
        o, o_slack = np.zeros((2, head_dim))
        l, l_slack, m = 0.0, 0.0, -np.inf  # noqa: E741 (the paper's letter)
        seen = kv_len if causal_offset is None else min(kv_len, i + causal_offset + 1)
        for j in range(0, seen, key_tile):
            cols = slice(j, min(j + key_tile, seen))
            q8, k8, v8 = (x.astype(np.float64) for x in (qkv.q[b, h, i], qkv.k[b, g, cols], qkv.v[b, g, cols]))
            s = scale * float(qkv.q_scale[b, h, i]) * (k8 @ q8) * qkv.k_scale[b, g, cols].astype(np.float64)
            m_new = max(m, s.max())
            exact = r * np.exp(s - m_new)
            p = np.rint(exact)
            # One rounding to float16 before the integer moves P by 2^-11 of it, float32 arithmetic by far less.
            near = np.abs(np.abs(exact - np.floor(exact)) - 0.5) <= exact * (2.0**-11 + 2.0**-15)
            ties += int(near.sum())
            past = np.exp(m - m_new)
            l, l_slack = past * l + p.sum(), past * l_slack + near.sum()  # noqa: E741
            o, o_slack = past * o + p @ v8, past * o_slack + near @ np.abs(v8)
            m = m_new
        if seen > 0:
            s_v = float(qkv.v_scale[b, g])
            out[b, h, i] = o / l * s_v
            slack[b, h, i] = (o_slack + np.abs(o / l) * l_slack) / max(l - l_slack, r) * s_v
    return out, slack, np.array(ties / max(1, batch * heads * q_len * kv_len))


def evaluate(qkv: QuantizedQKV, *, scale: float, key_tile: int, causal_offset: int | None = None) -> Evaluation:
    """Evaluate any recipe on its codes and scales."""
    batch, heads, q_len, head_dim = qkv.q.shape
    out, out_slack = np.zeros((2, batch, heads, q_len, head_dim))
    lse, lse_slack = np.zeros((2, batch, heads, q_len))
    for b, h in np.ndindex(batch, heads):
        o, o_slack, log_sum, log_slack = _evaluate_head(qkv, b, h, float(np.float32(scale)), key_tile, causal_offset)
        out[b, h], out_slack[b, h], lse[b, h], lse_slack[b, h] = o, o_slack, log_sum, log_slack
    return Evaluation(out, lse, out_slack, lse_slack)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores in nats of one head against the stored keys, hidden ones −inf, and bounds of their float32 error."""

    s: Float64  # (Sq, Skv)
    error: Float64  # (Sq, Skv), absolute
    mean: Float64  # (Sq,) what centring K took from every score of a row
    mean_error: Float64


def _scores(qkv: QuantizedQKV, b: int, h: int, scale: float, causal_offset: int | None) -> _Scores:
    recipe, head_dim = qkv.recipe, qkv.q.shape[3]
    g = h // (qkv.q.shape[1] // qkv.k.shape[1])
    order, rows = stored_order(qkv, b, g), np.arange(qkv.q.shape[2])
    q = (
        qkv.q[b, h].astype(np.float64)
        * token_scales(qkv.q_scale[b, h], recipe.q_granularity, rows, recipe.key_block)[:, None]
    )
    k = qkv.k[b, g].astype(np.float64)[order]
    k *= token_scales(qkv.k_scale[b, g], recipe.k_granularity, order, recipe.key_block)[:, None]
    s = scale * q @ k.T
    # Rounded: log2 e, scale · log2 e, · s_q, · s_k. A product of floats also rounds each of its D additions.
    additions = 0 if recipe.qk == "int8" else head_dim + 1
    error = 5 * U * np.abs(s) + additions * U * scale * (np.abs(q) @ np.abs(k).T)
    if causal_offset is not None:
        hidden = order[None, :] > rows[:, None] + causal_offset
        s = np.where(hidden, -np.inf, s)
        error = np.where(hidden, 0.0, error)
    mean = mean_error = np.zeros(len(rows))
    if qkv.k_mean is not None:
        turn = rotation(head_dim) if recipe.rotate else np.eye(head_dim)
        k_mean = qkv.k_mean[b, g].astype(np.float64)
        mean = scale * q @ (turn @ k_mean)
        mean_error = (head_dim + 14) * U * scale * (np.abs(q) @ (np.abs(turn) @ np.abs(k_mean)))
    return _Scores(s, error, mean, mean_error)


def _evaluate_head(
    qkv: QuantizedQKV, b: int, h: int, scale: float, key_tile: int, causal_offset: int | None
) -> tuple[Float64, Float64, Float64, Float64]:
    recipe, top = qkv.recipe, float(qkv.recipe.p_top)
    g = h // (qkv.q.shape[1] // qkv.k.shape[1])
    order = stored_order(qkv, b, g)
    scores = _scores(qkv, b, h, scale, causal_offset)
    empty = np.isneginf(scores.s).all(axis=1)
    v = qkv.v[b, g].astype(np.float64)[order]
    folded = scores.s
    if recipe.v_granularity == "token":  # a value of zeros adds nothing and has no scale to lead the maximum with
        folded = scores.s + np.where(v.any(axis=1), np.log(value_scales(qkv, b, g, order)[:, 0]), -np.inf)
    else:
        v *= value_scales(qkv, b, g, order)

    # The reference of each key: the maximum of its tile, or of all tiles up to its own.
    size = recipe.key_block if recipe.p_reference == "tile" else key_tile
    tile = np.arange(len(order)) // size
    count = int(tile[-1]) + 1
    m_tile = np.stack([folded[:, tile == t].max(axis=1) for t in range(count)], axis=1)
    turn = slice(None) if recipe.key_order == "first_to_last" else slice(None, None, -1)
    m_run = np.maximum.accumulate(m_tile[:, turn], axis=1)[:, turn]
    m_last = m_tile.max(axis=1, keepdims=True)
    reference = (m_run if recipe.p_reference == "running" else m_tile)[:, tile]
    safe_ref, safe_last = (np.where(np.isneginf(m), 0.0, m) for m in (reference, m_last))
    exact = top * np.exp(folded - safe_ref)
    weight = np.exp(np.minimum(safe_ref - safe_last, 0.0)) * ~np.isneginf(reference)

    # Float32 error of P's exponent: its score, its reference (rounded up), R's logarithm (rounded down), their sum.
    error = scores.error + scores.error.max(axis=1, keepdims=True)
    size_of = np.abs(np.where(np.isneginf(folded), 0.0, folded)) + np.abs(safe_ref)
    error = error + 4 * U * (size_of + 24.0)
    off = np.expm1(error) + EXP2
    p = round_p(exact, recipe)
    p_low = round_p(np.maximum(exact * (1 - off) - TINY, 0.0), recipe)
    p_high = round_p(np.minimum(exact * (1 + off) + TINY, top), recipe)
    p_slack = np.maximum(p_high - p, p - p_low)

    # Float32 error of the weights: one exponential per tile passed, both maxima off as above, sums per tile.
    weight_off = count * (EXP2 + 3 * U) + 2 * (
        scores.error.max(axis=1, keepdims=True) + 4 * U * (np.abs(safe_last) + np.abs(safe_ref))
    )
    numerator = (weight * p) @ v
    absolute = (weight * p) @ np.abs(v)
    sums = count + 6 + (0 if recipe.integer_pv else min(size, len(order)))
    numerator_slack = (weight * (p_slack + p * weight_off)) @ np.abs(v) + sums * U * absolute

    if recipe.v_granularity == "token":
        m_l = scores.s.max(axis=1)
        safe_l = np.where(np.isneginf(m_l), 0.0, m_l)
        terms, terms_slack = np.exp(scores.s - safe_l[:, None]), np.zeros_like(exact)
        terms_slack = terms * (off + weight_off)
        l, l_off = terms.sum(axis=1), 0.0
        log_l, back = np.log(np.where(empty, 1.0, l)) + safe_l, safe_last[:, 0] - safe_l
        numerator, numerator_slack = (x * (np.exp(back) / top)[:, None] for x in (numerator, numerator_slack))
        l_off = terms_slack.sum(axis=1) + len(order) * U * l + l * np.abs(back) * 4 * U
    else:
        counted, counted_slack = (p, p_slack) if recipe.row_sum == "quantised" else (exact, exact * off + TINY)
        l = (weight * counted).sum(axis=1)
        l_off = (weight * (counted_slack + counted * weight_off)).sum(axis=1) + (min(size, len(order)) + count) * U * l
        log_l = np.log(np.where(empty, 1.0, l / top)) + safe_last[:, 0]
    l = np.where(empty, 1.0, l)  # noqa: E741
    out = numerator / l[:, None]
    relative = l_off / l
    slack = (numerator_slack / l[:, None] + np.abs(out) * relative[:, None]) / np.maximum(1 - relative, 0.5)[:, None]
    slack += 8 * U * np.abs(out) + TINY
    if qkv.v_mean is not None:
        v_mean = qkv.v_mean[b, g].astype(np.float64)
        out = out + v_mean
        slack = slack + 2 * U * (np.abs(out) + np.abs(v_mean))
    lse = log_l + scores.mean
    lse_slack = relative / np.maximum(1 - relative, 0.5) + scores.error.max(axis=1) + scores.mean_error
    lse_slack += 8 * U * (np.abs(safe_last[:, 0]) + np.abs(lse) + 24.0)
    out[empty], lse[empty] = 0.0, -np.inf
    slack[empty], lse_slack[empty] = 0.0, 0.0
    return out, slack, lse, lse_slack
