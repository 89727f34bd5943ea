"""What a recipe means, written a second time: float64, all keys at once, no running state.

`algorithm_1` is the paper's loop, letter by letter. `evaluate` states what any recipe computes from given codes and
scales, and how far float32 arithmetic may take the emulator from it: P is bracketed, so a probability within the
arithmetic's error of a rounding tie may differ by one level, and no other may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag, hadamard

from cupy_intfa import QuantizedQKV, Recipe

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

U = 2.0**-24  # unit roundoff of float32
EXP2 = 8 * U  # np.exp2 of float32 is off by at most 4 ulp on every platform
TINY = 2.0**-126  # below it float32 is subnormal, and may be flushed


def rotation(head_dim: int) -> Float64:
    """Make the block-diagonal orthonormal Hadamard matrix (D, D)."""
    block = max(b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if head_dim % b == 0)
    matrix: Float64 = block_diag(*[hadamard(block) / np.sqrt(block)] * (head_dim // block))
    return matrix


def stored_order(qkv: QuantizedQKV, b: int, head: int) -> Index:
    """Original index of the key at each stored position."""
    return np.arange(qkv.k.shape[2]) if qkv.key_index is None else np.asarray(qkv.key_index[b, head], np.intp)


def token_scales(scale: Array, granularity: str, order: Index, block: int) -> Float64:
    """Scale of each stored token of one head, from the scales as `QuantizedQKV` keeps them."""
    position = np.arange(len(order))
    index: dict[str, Any] = {
        "tensor": (np.zeros_like(position),),
        "token": (order,),  # kept in original order
        "block": (position // block,),
        "group": (position // block, position % 8 // 2),
    }
    spread: Float64 = np.atleast_1d(scale).astype(np.float64)[index[granularity]]
    return spread


def value_scales(qkv: QuantizedQKV, b: int, head: int, order: Index) -> Float64:
    """Scale of each element of V in stored order: (Skv, D), or (Skv, 1) where channels share."""
    scale = np.asarray(qkv.v_scale[b, head], np.float64)
    if qkv.recipe.v_granularity == "channel":
        return np.broadcast_to(scale, (len(order), scale.size))
    if qkv.recipe.v_granularity == "block_channel":
        return scale[np.arange(len(order)) // qkv.recipe.key_block]
    return token_scales(scale, qkv.recipe.v_granularity, order, qkv.recipe.key_block)[:, None]


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
) -> tuple[Float64, Float64]:
    """Run arXiv 2409.16997, Algorithm 1, as it is printed, one row of Q at a time.

    Returns the output, and how far from it P may take it where P·R stands so near a tie that the one rounding to
    float16 before the integer, 2⁻¹¹ of P, or the error of float32's exponential, below 2⁻¹⁵ of P for scores under 300,
    may pass it.
    """
    (batch, heads, q_len, head_dim), (kv_heads, kv_len) = qkv.q.shape, qkv.k.shape[1:3]
    out, slack = np.zeros((2, batch, heads, q_len, head_dim))
    for b, h, i in np.ndindex(batch, heads, q_len):
        g = h // (heads // kv_heads)
        o, o_slack = np.zeros((2, head_dim))
        l, l_slack, m = 0.0, 0.0, -np.inf  # noqa: E741 (the paper's letter)
        seen = kv_len if causal_offset is None else min(kv_len, i + causal_offset + 1)
        for j in range(0, seen, key_tile):
            cols = slice(j, min(j + key_tile, seen))
            q8, k8, v8 = (x.astype(np.float64) for x in (qkv.q[b, h, i], qkv.k[b, g, cols], qkv.v[b, g, cols]))
            s = scale * float(qkv.q_scale[b, h, i]) * (k8 @ q8) * qkv.k_scale[b, g, cols].astype(np.float64)
            m_new = max(m, float(s.max()))
            exact = 127 * np.exp(s - m_new)
            p = np.rint(exact)
            tie = np.abs(exact - np.floor(exact) - 0.5) <= exact * (2.0**-11 + 2.0**-15)
            past = np.exp(m - m_new)
            l, l_slack = past * l + p.sum(), past * l_slack + tie.sum()  # noqa: E741
            o, o_slack = past * o + p @ v8, past * o_slack + tie @ np.abs(v8)
            m = m_new
        if seen > 0:
            s_v = float(qkv.v_scale[b, g])
            out[b, h, i] = o / l * s_v
            slack[b, h, i] = (o_slack + np.abs(o / l) * l_slack) / max(l - l_slack, 126.0) * s_v
    return out, slack


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Output (B, Hq, Sq, D) and log-sum-exp (B, Hq, Sq) of a recipe, and how far float32 may be from each."""

    out: Float64
    lse: Float64
    out_slack: Float64
    lse_slack: Float64


def evaluate(qkv: QuantizedQKV, *, scale: float, key_tile: int, causal_offset: int | None = None) -> Evaluation:
    """Evaluate any recipe on its codes and scales.

    Where float32 rounds, each time by u or by what is named:

    - a score: log₂ e, scale · log₂ e, · s_q, · s_k and, per token, the product with s_k: 5u. A product of floats also
      rounds D additions. A maximum is as far off as the farthest score, and is rounded up: 2u.
    - P's exponent: the score, the reference, log₂ R, their difference rounded down and the sum: 4u of the sizes.
    - P: the exponential's 8u. Then P is rounded, and so it is bracketed: `p_slack` is what the whole error can do.
    - a weight: one exponential and one product per tile passed, and both maxima.
    - a row sum: one addition per key of a tile and one per tile; P V adds integers exactly, floats like the row sum.
    """
    batch, heads, q_len, head_dim = qkv.q.shape
    out, out_slack = np.zeros((2, batch, heads, q_len, head_dim))
    lse, lse_slack = np.zeros((2, batch, heads, q_len))
    for b, h in np.ndindex(batch, heads):
        one = _evaluate_head(qkv, (b, h, h // (heads // qkv.k.shape[1])), float(scale), key_tile, causal_offset)
        out[b, h], lse[b, h], out_slack[b, h], lse_slack[b, h] = one.out, one.lse, one.out_slack, one.lse_slack
    return Evaluation(out, lse, out_slack, lse_slack)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores of one head in nats, stored keys, hidden ones −inf; their error; what centring K took from each row."""

    s: Float64  # (Sq, Skv)
    error: Float64  # (Sq, Skv)
    mean: Float64  # (Sq,)
    mean_error: Float64  # (Sq,)


def _scores(qkv: QuantizedQKV, at: tuple[int, int, int], scale: float, causal_offset: int | None) -> _Scores:
    recipe, (b, h, g), head_dim = qkv.recipe, at, qkv.q.shape[3]
    order, rows = stored_order(qkv, b, g), np.arange(qkv.q.shape[2])
    s_q = token_scales(qkv.q_scale[b, h], recipe.q_granularity, rows, recipe.key_block)
    s_k = token_scales(qkv.k_scale[b, g], recipe.k_granularity, order, recipe.key_block)
    q, k = qkv.q[b, h].astype(np.float64) * s_q[:, None], qkv.k[b, g].astype(np.float64)[order] * s_k[:, None]
    s = scale * q @ k.T
    error = 5 * U * np.abs(s)
    if recipe.qk != "int8":
        error += (head_dim + 1) * U * scale * (np.abs(q) @ np.abs(k).T)
    if causal_offset is not None:
        hidden = order[None, :] > rows[:, None] + causal_offset
        s, error = np.where(hidden, -np.inf, s), np.where(hidden, 0.0, error)
    mean = mean_error = np.zeros(len(rows))
    if qkv.k_mean is not None:  # rotated in float32, then D + 6 roundings
        turn = rotation(head_dim) if recipe.rotate else np.eye(head_dim)
        k_mean = qkv.k_mean[b, g].astype(np.float64)
        mean = scale * q @ (turn @ k_mean)
        mean_error = (head_dim + 16) * U * scale * (np.abs(q) @ (np.abs(turn) @ np.abs(k_mean)))
    return _Scores(s, error, mean, mean_error)


def _references(folded: Float64, recipe: Recipe, key_tile: int) -> tuple[Float64, Float64, int]:
    """Find the reference of each key, the last maximum of each row, and the number of tiles."""
    tile = np.arange(folded.shape[1]) // key_tile
    count = int(tile[-1]) + 1
    m_tile = np.stack([folded[:, tile == t].max(axis=1) for t in range(count)], axis=1)
    onward = slice(None) if recipe.key_order == "first_to_last" else slice(None, None, -1)
    m_running = np.maximum.accumulate(m_tile[:, onward], axis=1)[:, onward]
    reference = m_running if recipe.p_reference == "running" else m_tile
    return reference[:, tile], m_tile.max(axis=1, keepdims=True), count


def _finite(x: Float64) -> Float64:
    return np.where(np.isneginf(x), 0.0, x)


@dataclass(frozen=True, eq=False)
class _Weights:
    """P of one head (Sq, Skv) before and after rounding, its weight, and how far each may be off."""

    exact: Float64
    off: Float64  # relative
    p: Float64
    p_slack: Float64  # absolute
    weight: Float64
    weight_off: Float64  # relative
    last: Float64  # (Sq,) the maximum of the row, 0 where it has none
    keys: int  # of a tile
    tiles: int


def _weights(scores: _Scores, folded: Float64, recipe: Recipe, key_tile: int) -> _Weights:
    top = float(recipe.p_top)
    reference, last, tiles = _references(folded, recipe, key_tile)
    exact = top * np.exp(folded - _finite(reference))
    weight = np.where(np.isneginf(reference), 0.0, np.exp(np.minimum(_finite(reference) - _finite(last), 0.0)))
    maximum_error = scores.error.max(axis=1, keepdims=True)
    sizes = np.abs(_finite(folded)) + np.abs(_finite(reference)) + 24.0
    off = np.expm1(scores.error + maximum_error + 4 * U * sizes) + EXP2
    p = round_p(exact, recipe)
    low = round_p(np.maximum(exact * (1 - off) - TINY, 0.0), recipe)
    high = round_p(np.minimum(exact * (1 + off) + TINY, top), recipe)
    return _Weights(
        exact=exact,
        off=off,
        p=p,
        p_slack=np.maximum(high - p, p - low),
        weight=weight,
        weight_off=tiles * (EXP2 + 3 * U) + 2 * maximum_error + 8 * U * (np.abs(_finite(last)) + sizes),
        last=_finite(last)[:, 0],
        keys=min(key_tile, folded.shape[1]),
        tiles=tiles,
    )


def _row_sum(scores: _Scores, w: _Weights, recipe: Recipe) -> tuple[Float64, Float64, Float64]:
    """Sum P; the sum's relative error; the logarithm of its unit, which is exp(maximum)/R."""
    if recipe.v_granularity == "token":  # a reference of its own, the maximum of the true scores, and no factor R
        log_unit = _finite(scores.s.max(axis=1))
        terms = np.exp(scores.s - log_unit[:, None])
        terms_off = terms * (w.off + w.weight_off)
    else:
        log_unit = w.last - np.log(recipe.p_top)
        counted, slack = (w.p, w.p_slack) if recipe.row_sum == "quantised" else (w.exact, w.exact * w.off)
        terms, terms_off = w.weight * counted, w.weight * (slack + counted * w.weight_off)
    total = terms.sum(axis=1)
    total = np.where(total == 0.0, 1.0, total)  # a row that sees no key
    roundings = (w.keys + w.tiles + 8) * U * (1 + np.abs(log_unit - w.last))
    return total, terms_off.sum(axis=1) / total + roundings, log_unit


def _evaluate_head(
    qkv: QuantizedQKV, at: tuple[int, int, int], scale: float, key_tile: int, causal_offset: int | None
) -> Evaluation:
    recipe, (b, _, g) = qkv.recipe, at
    order = stored_order(qkv, b, g)
    scores = _scores(qkv, at, scale, causal_offset)
    v, s_v, folded = qkv.v[b, g].astype(np.float64)[order], value_scales(qkv, b, g, order), scores.s
    if recipe.v_granularity == "token":
        # P carries the scale of V. A value of zeros adds nothing, and its scale must not lead the maximum.
        folded = scores.s + np.where(v.any(axis=1), np.log(s_v[:, 0]), -np.inf)
    else:
        v = v * s_v
    w = _weights(scores, folded, recipe, key_tile)
    total, total_off, log_unit = _row_sum(scores, w, recipe)

    unit = np.exp(w.last - np.log(recipe.p_top) - log_unit) / total
    additions = w.tiles + 6 + (0 if recipe.integer_pv else w.keys)
    out = unit[:, None] * ((w.weight * w.p) @ v)
    out_off = unit[:, None] * ((w.weight * (w.p_slack + w.p * (w.weight_off + additions * U))) @ np.abs(v))
    least = np.maximum(1 - total_off, 0.5)
    slack = (out_off + np.abs(out) * total_off[:, None]) / least[:, None] + TINY
    if qkv.v_mean is not None:
        v_mean = qkv.v_mean[b, g].astype(np.float64)
        out = out + v_mean
        slack += 2 * U * (np.abs(out) + np.abs(v_mean))
    lse = np.log(total) + log_unit + scores.mean
    lse_slack = total_off / least + scores.error.max(axis=1) + scores.mean_error
    lse_slack += 8 * U * (np.abs(w.last) + np.abs(log_unit) + np.abs(lse) + 24.0)

    empty = (scores.s == -np.inf).all(axis=1)
    out[empty], lse[empty], slack[empty], lse_slack[empty] = 0.0, -np.inf, 0.0, 0.0
    return Evaluation(out, lse, slack, lse_slack)
