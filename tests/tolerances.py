"""Every bound that the tests use, with its derivation. u = 2⁻²⁴ is the unit roundoff of float32.

- Of one quantisation: `quantisation_error`.
- Of a whole call against the oracle, element by element, for any finite input: `worst_case`.
- Of a whole call on N(0, 1), as a relative RMSE predicted from the recipe alone: `noise_model.predicted_rmse`.
- Of float32 arithmetic, which may take the emulator from an exact evaluation of the same recipe on the same codes:
  derived where that evaluation stands, in `transcription.evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from transcription import TINY, U, rotation, stored_order, token_scales, value_scales

from cupy_intfa import QuantizedQKV, Recipe
from cupy_intfa.metrics import compare

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FRACTION_BITS = {"float16": 10, "float8_e4m3": 3, "float8_e5m2": 2}
SMALLEST_NORMAL = {"float16": 2.0**-14, "float8_e4m3": 2.0**-6, "float8_e5m2": 2.0**-14}
HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0, "float64": 0.0}  # results are float32
HALF_SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 0.0, "float64": 0.0}


def assert_within(actual: Array, expected: Array, bound: Array | float, what: str = "") -> None:
    """Assert |actual − expected| ≤ bound element by element, with NaN and infinities in the same places.

    A bound that is NaN holds for nothing.
    """
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    comparison = compare(a, b)
    assert comparison.non_finite is None, f"{what}\n{comparison}"
    finite = np.isfinite(b)
    difference = np.abs(np.where(finite, a, 0.0) - np.where(finite, b, 0.0))
    limit = np.broadcast_to(np.asarray(bound, np.float64), b.shape)
    bad = finite & ~(difference <= limit)
    if bad.any():
        at = np.unravel_index(int(np.argmax(np.where(bad, difference, -1.0))), b.shape)
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {b.size} elements are off by more than their bound, the worst at "
            f"{tuple(map(int, at))}: {a[at]!r}, expected {b[at]!r} within {limit[at]:.3g}\n{comparison}"
        )


def storage_format(recipe: Recipe, operand: str) -> str:
    """Name the format that q, k or v is stored in."""
    if operand == "v":
        return "int8" if recipe.integer_pv else recipe.pv
    return "int4" if recipe.qk_bits == 4 else recipe.qk


def quantisation_error(x: Array, scale: Array, fmt: str) -> Float64:
    """Bound |x − s·code|.

    Integers: the code is x·(1/s), rounded half to even. Reciprocal and product round once each, so the product is off
    by 2u·|x/s|(1 + u) before the rounding, which adds ½. Clipping adds nothing: |x/s| passes the largest code by no
    more than that. In total s·½ + 3u·|x|; and no more than |x|, because what is below half a step becomes 0.

    Floats: the same 3u, and half a unit in the last place of the format: 2^-(f+1)·|x|, or half of the fixed grid
    below its smallest normal.
    """
    x, scale = np.abs(np.asarray(x, np.float64)), np.asarray(scale, np.float64)
    if fmt.startswith("int"):
        return np.minimum(0.5 * scale + 3 * U * x, (1 + 8 * U) * x)
    half_ulp = 2.0 ** -(FRACTION_BITS[fmt] + 1)
    return x * (half_ulp + 4 * U) + half_ulp * SMALLEST_NORMAL[fmt] * scale


def output_rounding(out: Array, dtype: str) -> Float64:
    """Bound the rounding of a float32 result to a dtype: half a unit in the last place."""
    rounded: Float64 = np.abs(np.asarray(out, np.float64)) * HALF_ULP[dtype] + HALF_SMALLEST[dtype]
    return rounded


def worst_case(
    q: Array, k: Array, v: Array, qkv: QuantizedQKV, *, scale: float, causal_offset: int | None = None
) -> tuple[Float64, Float64]:
    """Bound the distance of output (B, Hq, Sq, D) and lse (B, Hq, Sq) from exact attention, for any finite input.

    Let S be the exact scores of a row, p their softmax, e_q, e_k, e_v the errors of `quantisation_error` in the
    coordinates that are quantised (centred, rotated); hats mark what is computed from codes.

    1. Scores: |Ŝ_j − S_j| ≤ δ_j = scale·Σ_d (e_q·|k| + (|q| + e_q)·e_k) + 2⁻²⁰·(|S_j| + |max S|), the last for float32.
       So |p̂_j − p_j| ≤ p_j·g_j with g_j = exp(δ_j + Λ) − 1 and Λ = log Σ p_j·exp(δ_j), and since Σ(p̂_j − p_j) = 0 the
       output moves by Σ p_j·g_j·|v_j − out| ≤ Σ p_j·g_j·(|v_j − c| + |c − out|), c any point: the mean of the values.
       It stays among the values: never by more than max |v_j − out|. No p̂_j passes 1.
    2. Values: Σ p̂_j·e_v ≤ Σ p_j·(1 + g_j)·e_v.
    3. P: an integer is off by ½ level, times a weight of at most 1, and by 2⁻¹¹ of itself from the float16 on its way.
       The row sum is at least R·exp(lse − max S − 2·max δ). A float P is off by half a unit in the last place.
       With V per token P carries s_v, and a level is worth max_j(exp(S_j)·s_v,j)/R of the row sum.
       A quantised row sum is off by the same, relatively r; its largest P alone keeps it above 1/Skv of the exact one.
    4. float32 sums, products and the restored mean: 2⁻¹⁸ of what is added up.
    """
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:3])
    for b, h in np.ndindex(*q.shape[:2]):
        g = h // (q.shape[1] // k.shape[1])
        x = _prepare(q[b, h], k[b, g], v[b, g], qkv, (b, h, g), scale)
        hidden = np.zeros((len(x.q), len(x.k)), np.bool_)
        if causal_offset is not None:
            hidden = stored_order(qkv, b, g)[None, :] > np.arange(len(x.q))[:, None] + causal_offset
        seen = np.flatnonzero(~hidden.all(axis=1))  # a row that sees no key has no error at all
        if len(seen):
            out[b, h, seen], lse[b, h, seen] = _worst_case_rows(qkv.recipe, x, seen, hidden[seen], scale)
    return out, lse


@dataclass(frozen=True, eq=False)
class _Prepared:
    """One head in the coordinates that are quantised, keys in stored order, and the error of each element."""

    q: Float64
    k: Float64
    v: Float64
    e_q: Float64
    e_k: Float64
    e_v: Float64
    s_v: Float64
    k_mean: Float64
    v_mean: Float64


def _prepare(q: Array, k: Array, v: Array, qkv: QuantizedQKV, at: tuple[int, int, int], scale: float) -> _Prepared:
    """Centre and rotate in float64; float32 rounds log₂ D + 3 ≤ 11 times, each time at most Σ|x|·|matrix|."""
    recipe, (b, h, g), head_dim = qkv.recipe, at, q.shape[1]
    order, rows = stored_order(qkv, b, g), np.arange(len(q))
    q, k, v = (np.asarray(x, np.float64) for x in (q, k[order], v[order]))
    means = (np.zeros(head_dim) if mean is None else mean[b, g] for mean in (qkv.k_mean, qkv.v_mean))
    k_mean, v_mean = (np.asarray(mean, np.float64) for mean in means)
    turn = rotation(head_dim) if recipe.rotate else np.eye(head_dim)
    k_rounding = 11 * U * ((np.abs(k) + np.abs(k_mean)) @ np.abs(turn)) + TINY
    q_rounding = 11 * U * (np.abs(q) @ np.abs(turn)) + TINY
    q, k, v = q @ turn, (k - k_mean) @ turn, v - v_mean
    s_q = token_scales(qkv.q_scale[b, h], recipe.q_granularity, rows, recipe.key_block)[:, None]
    s_k = token_scales(qkv.k_scale[b, g], recipe.k_granularity, order, recipe.key_block)[:, None]
    s_v = value_scales(qkv, b, g, order)
    return _Prepared(
        q=q,
        k=k,
        v=v,
        e_q=quantisation_error(q, s_q, storage_format(recipe, "q")) + q_rounding,
        e_k=quantisation_error(k, s_k, storage_format(recipe, "k")) + k_rounding,
        e_v=quantisation_error(v, s_v, storage_format(recipe, "v")) + 2 * U * (np.abs(v) + np.abs(v_mean)) + TINY,
        s_v=np.broadcast_to(s_v, v.shape),
        k_mean=k_mean @ turn,
        v_mean=v_mean,
    )


def _worst_case_rows(
    recipe: Recipe, x: _Prepared, rows: npt.NDArray[np.intp], hidden: Mask, scale: float
) -> tuple[Float64, Float64]:
    q, e_q = x.q[rows], x.e_q[rows]
    s = np.where(hidden, -np.inf, scale * q @ x.k.T)
    top = s.max(axis=1, keepdims=True)
    delta = scale * (e_q @ np.abs(x.k).T + (np.abs(q) + e_q) @ x.e_k.T)
    delta += 2.0**-20 * (np.abs(np.where(hidden, 0.0, s)) + np.abs(top))
    log_p = s - logsumexp(s, axis=1, keepdims=True)
    shift = logsumexp(log_p + delta, axis=1, keepdims=True)
    p, grown = np.exp(log_p), np.exp(np.minimum(log_p + delta + shift, 0.0))
    widest = np.where(hidden, 0.0, delta).max(axis=1, keepdims=True)
    inverse = np.exp(np.minimum(2 * widest, 300.0) + log_p.max(axis=1, keepdims=True))  # R over the least row sum

    out, size, middle = p @ x.v, np.abs(x.v) + x.e_v, x.v.mean(axis=0)
    bound = (grown - p) @ np.abs(x.v - middle) + (grown - p).sum(axis=1, keepdims=True) * np.abs(out - middle)
    bound = np.minimum(bound, np.maximum(x.v.max(axis=0) - out, out - x.v.min(axis=0))) + grown @ x.e_v
    bound += 2.0**-18 * (grown @ size + np.abs(x.v_mean) + np.abs(out)) + TINY
    error = shift[:, 0] + scale * e_q @ np.abs(x.k_mean)
    error += 2.0**-18 * (np.abs(top[:, 0]) + scale * np.abs(q) @ np.abs(x.k_mean) + 32.0)

    half_ulp = 2.0**-11 if recipe.integer_pv else 2.0 ** -(FRACTION_BITS[recipe.pv] + 1)
    level = (0.5 if recipe.integer_pv else SMALLEST_NORMAL[recipe.pv] * half_ulp) / recipe.p_top * inverse
    visible = (~hidden).astype(np.float64)
    if recipe.v_granularity == "token":
        level = level * (np.exp(s - top) * x.s_v[:, 0]).max(axis=1, keepdims=True)
        return bound + level * (visible @ (size / x.s_v)) + half_ulp * (grown @ size), error
    bound += level * (visible @ size) + half_ulp * (grown @ size)
    if recipe.row_sum == "quantised":
        r = level * visible.sum(axis=1, keepdims=True) + half_ulp
        least = np.maximum(1 - r, 0.5 / len(x.k))
        bound = (bound + r * np.abs(out)) / least
        error += np.maximum(np.log1p(r), -np.log(least))[:, 0]
    return bound, error
