"""How far a kernel may be from the emulator on the same codes and scales, element by element. u = 2⁻²⁴.

Up to the exponent of P both compute the same float32 numbers: S is exact, s_k·S, t, the maxima rounded up and the
constant rounded down are one rounding each, and the FMA's sum is rounded once. From there on they may differ by

- P: 2 ulp of ex2.approx (PTX ISA) and the 8u of NumPy's exp2. Rounded to a format, P differs only where those 12u
  contain a rounding border: by one level of an integer, by one unit in the last place of a float;
- a rescale, for each tile whose maximum has grown: the same 12u, and three roundings. Integer accumulators are rounded
  to a unit, and the factor to 2⁻³¹ of at most 255·127·keys: together ½ + keys·2⁻¹⁶ units, brought to the last maximum;
- additions: two roundings a tile each, in the emulator's float32 O as in a kernel's; the keys of a tile where l adds
  P itself; and every key after it where tensor cores add float products, whose alignment truncates each of them;
- a weight of a tile's own reference: another 12u; the flush of a row at 65 536 keys: the same and four roundings;
- float products Q Kᵀ: D roundings in float32, twice that on tensor cores, for which scores and maxima differ;
- the epilogue: eight roundings, and what is subnormal becomes 0.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from transcription import EXP2, TINY, U, rotation, round_p, stored_order, token_scales, value_scales

from cupy_intfa import QuantizedQKV, Recipe

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

EX2 = EXP2 + 4 * U  # the exponential: NumPy's and the GPU's
LN_2 = float(np.log(2.0))
LOG2_E = np.float32(1.4426950408889634)
_ROWS = 256  # at a time: a few arrays of 256 × 1025 float64 stay in the cache


@dataclass(frozen=True, eq=False)
class Bound:
    """|kernel − emulator| of the output (B, Hq, Sq, D) and of the log-sum-exp (B, Hq, Sq).

    ``units`` (B, Hq, Sq, D) is the part of ``out`` that rounding an integer O to a unit has; ``ties`` (B, Hq, Sq)
    counts the keys whose P stands at a rounding border: a row with none agrees to its float32 roundings and units.
    """

    out: Float64
    lse: Float64
    units: Float64
    ties: npt.NDArray[np.intp]


def share_that_differs(actual: Array, expected: Array, bound: Bound, v: Array) -> float:
    """Share of the elements of an output that differ by more than float32 rounds, 10⁻⁶ of a mean value, and units.

    A bound is for the worst case; this sees a wrong algorithm whose error is small. What may differ is what the last
    bits of an exponential decide, and with float Q and K those of their scores.
    """
    off = np.abs(actual.astype(np.float64) - expected) > 1e-6 * np.abs(v).mean() + bound.units
    return float(off.mean())


MOST_DIFFER = {"int8": 0.05, "float16": 0.09, "float8_e4m3": 0.05, "float8_e5m2": 0.05}
"""By the format of Q and K, on 1024 keys of N(0, 1): measured on an H200 are up to .015, and .073 for float16."""


def kernel_bound(qkv: QuantizedQKV, *, scale: float, key_tile: int, causal_offset: int | None = None) -> Bound:
    """Bound the distance of any kernel from ``emulator.attention`` of the same arguments; NaN where that is NaN."""
    batch, heads, q_len, _ = qkv.q.shape
    full, row = qkv.q.shape, qkv.q.shape[:3]
    bound = Bound(np.zeros(full), np.zeros(row), np.zeros(full), np.zeros(row, np.intp))

    def work(task: tuple[int, int]) -> None:
        b, h = task
        keys = _keys(qkv, b, h // (heads // qkv.k.shape[1]), key_tile)
        with np.errstate(all="ignore"):  # rows that leave float32: NaN in the emulator, and NaN here
            for first in range(0, q_len, _ROWS):
                rows = slice(first, min(first + _ROWS, q_len))
                limit = None if causal_offset is None else np.arange(rows.start, rows.stop)[:, None] + causal_offset
                one = _bound_rows(qkv, (b, h, rows), keys, limit, scale)
                for name in ("out", "lse", "units", "ties"):
                    getattr(bound, name)[b, h, rows] = getattr(one, name)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, np.ndindex(batch, heads)))
    return bound


@dataclass(frozen=True, eq=False)
class _Keys:
    """Keys and values of one head in stored order, padded to whole tiles; the padding is hidden."""

    k: Float64  # (T·W, D) codes
    v: Float64  # (T·W, D) codes times scales
    k_scale: npt.NDArray[np.float32]  # (T·W,)
    unit: Float64  # (D,) value of one unit of O
    index: npt.NDArray[np.intp]  # (T·W,) original index, or one beyond every limit
    tile: int  # W
    k_mean: Float64 | None
    v_mean: Float64


def _keys(qkv: QuantizedQKV, b: int, g: int, key_tile: int) -> _Keys:
    recipe, order = qkv.recipe, stored_order(qkv, b, g)
    tile = recipe.key_block if recipe.p_reference == "tile" else key_tile
    pad = -len(order) % tile
    v = qkv.v[b, g].astype(np.float64)[order] * value_scales(qkv, b, g, order)
    k_mean = None
    if qkv.k_mean is not None:
        turn = rotation(qkv.k.shape[3]) if recipe.rotate else np.eye(qkv.k.shape[3])
        k_mean = np.abs(turn @ qkv.k_mean[b, g].astype(np.float64))
    return _Keys(
        k=np.pad(qkv.k[b, g].astype(np.float64)[order], ((0, pad), (0, 0))),
        v=np.pad(v, ((0, pad), (0, 0))),
        k_scale=np.pad(
            token_scales(qkv.k_scale[b, g], recipe.k_granularity, order, recipe.key_block).astype(np.float32),
            (0, pad),
            constant_values=1,
        ),
        unit=np.broadcast_to(value_scales(qkv, b, g, order)[0], v.shape[1:]),
        index=np.pad(order, (0, pad), constant_values=2**40),
        tile=tile,
        k_mean=k_mean,
        v_mean=np.zeros(v.shape[1]) if qkv.v_mean is None else np.abs(qkv.v_mean[b, g].astype(np.float64)),
    )


def _towards(x: Float64, infinity: float) -> Float64:
    """Round to float32 up or down."""
    nearest = x.astype(np.float32)
    wrong = nearest < x if infinity > 0 else nearest > x
    return np.where(wrong, np.nextafter(nearest, np.float32(infinity)), nearest).astype(np.float64)


def _finite(x: Float64) -> Float64:
    return np.where(np.isneginf(x), 0.0, x)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores in units of log2, hidden ones −inf, and how far a kernel's may be, 0 for integers."""

    x: Float64  # (rows, T·W)
    off: Float64  # (rows, T·W)


def _scores(
    qkv: QuantizedQKV, at: tuple[int, int, slice], keys: _Keys, limit: Array | None, scale: float
) -> tuple[_Scores, Float64]:
    """Give the scores, and the sum of |s_q Q8 · mean key| of each row."""
    recipe, (b, h, rows) = qkv.recipe, at
    q = qkv.q[b, h, rows].astype(np.float64)
    s_q = token_scales(qkv.q_scale[b, h], recipe.q_granularity, np.arange(qkv.q.shape[2]), recipe.key_block)[rows]
    c = (np.float32(scale) * LOG2_E * s_q.astype(np.float32))[:, None]
    y, t = (q @ keys.k.T).astype(np.float32), c
    if recipe.k_granularity == "token":
        y *= keys.k_scale
    else:
        t = c * keys.k_scale
    t = np.maximum(t, np.float32(TINY)).astype(np.float64)
    off = np.zeros((1, 1)) if recipe.qk == "int8" else 3 * U * q.shape[1] * (np.abs(q) @ np.abs(keys.k).T) * t
    hidden = keys.index >= 2**40 if limit is None else keys.index > np.minimum(limit, 2**39)
    mean = np.zeros(len(q)) if keys.k_mean is None else s_q * (np.abs(q) @ keys.k_mean)
    return _Scores(np.where(hidden, -np.inf, y * t), np.where(hidden, 0.0, off)), mean


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The course of the maximum over the tiles, each array (rows, T)."""

    reference: Float64  # of P
    weight: Float64  # 2^(reference − last maximum)
    growths: Float64  # rescales after the tile
    steps: Float64  # tiles from this one to the last
    units: Float64  # (rows,) roundings of an integer O, in units, brought to the last maximum
    last: Float64  # (rows,)


def _tiles(recipe: Recipe, x: Float64, tile: int) -> _Tiles:
    m_tile = _towards(x.reshape(len(x), -1, tile).max(axis=2), np.inf)
    onward = slice(None) if recipe.key_order == "first_to_last" else slice(None, None, -1)
    running = np.maximum.accumulate(m_tile[:, onward], axis=1)
    last, count = running[:, -1:], running.shape[1]
    grew = np.zeros(running.shape)
    grew[:, 1:] = (running[:, 1:] > running[:, :-1]) & ~np.isneginf(running[:, :-1])
    growths = grew[:, ::-1].cumsum(axis=1)[:, ::-1] - grew
    rounding = 0.5 + x.shape[1] * 2.0**-16
    reference = running[:, onward] if recipe.p_reference == "running" else m_tile
    return _Tiles(
        reference=reference,
        weight=np.where(np.isneginf(reference), 0.0, np.exp2(np.minimum(_finite(reference) - _finite(last), 0.0))),
        growths=growths[:, onward],
        steps=np.broadcast_to(np.arange(count, 0, -1.0)[onward], running.shape),
        units=(grew * rounding * np.exp2(np.minimum(_finite(running) - _finite(last), 0.0))).sum(axis=1),
        last=_finite(last)[:, 0],
    )


def _bound_rows(qkv: QuantizedQKV, at: tuple[int, int, slice], keys: _Keys, limit: Array | None, scale: float) -> Bound:
    recipe, width = qkv.recipe, keys.tile
    scores, mean = _scores(qkv, at, keys, limit, scale)
    tiles = _tiles(recipe, scores.x, width)
    rows, count = tiles.reference.shape
    m_off = scores.off.max(axis=1, keepdims=True)  # of a maximum: that of the farthest score

    # P, its error before rounding, and what rounding makes of it.
    log2_top = float(np.log2(np.float32(recipe.p_top)))
    constant = _towards(log2_top - _finite(tiles.reference), -np.inf)
    exponent = (scores.x.reshape(rows, count, width) + constant[..., None]).astype(np.float32).reshape(rows, -1)
    p = np.exp2(exponent.astype(np.float64))
    off = np.full((1, 1), EX2)
    if recipe.qk != "int8":  # neither the exponent's bits nor those of the references are the same
        reach = np.abs(_finite(scores.x)).max(axis=1, keepdims=True) + 24
        off = EX2 + np.expm1(LN_2 * (scores.off + m_off + 8 * U * reach))
    high, low = round_p(p * (1 + off) + TINY, recipe), round_p(np.maximum(p * (1 - off) - TINY, 0.0), recipe)
    p_off = high - low

    # Relative errors of a tile's part of O and of l: what happens to it from its own tile to the last.
    drift = (tiles.growths + (recipe.p_reference == "tile")) * (EX2 + 3 * U) + 4 * U * tiles.steps + 2 * LN_2 * m_off
    if scores.x.shape[1] > 65536:
        drift = drift + (scores.x.shape[1] // 65536 + 1) * (EX2 + 4 * U)
    o_drift = drift + (3 * U if recipe.integer_pv else 2 * U * width * (tiles.steps + 1))
    exact = recipe.row_sum == "exact"
    l_drift = drift + (U * (width + 19) if exact or not recipe.integer_pv else 2 * U)
    weight, o_rel, l_rel = (np.repeat(a, width, axis=1) for a in (tiles.weight, o_drift, l_drift))

    terms, terms_off = (p, p * off + TINY) if exact else (high, p_off)
    l = (weight * terms).sum(axis=1)  # noqa: E741 (the paper's letter)
    l = np.where(l == 0, 1.0, l)[:, None]  # noqa: E741
    r = ((weight * (terms_off + terms * l_rel)).sum(axis=1)[:, None] + 8 * U * l) / l
    size = np.abs(keys.v)
    integer_o = recipe.integer_pv and recipe.p_reference == "running" and "block" not in recipe.v_granularity
    units = tiles.units[:, None] * np.abs(keys.unit) * float(integer_o)
    o_off = (weight * (p_off + high * o_rel)) @ size + units
    centred = np.abs((weight * high) @ keys.v) / l
    out = (o_off / l + centred * (r + 8 * U)) / (1 - r) + 4 * U * (centred + keys.v_mean) + TINY * (count + 4)
    sizes = 3 * np.abs(tiles.last) + 2 * np.abs(np.log2(l[:, 0])) + 2 * abs(log2_top) + 8
    lse = r[:, 0] / (1 - r[:, 0]) + LN_2 * m_off[:, 0]
    unsure = ~(r < 0.5)  # float products of thousands of nats: left are the hull of the values and the scores' error
    out = np.where(unsure, 2 * size.max(axis=0) * (1 + 2.0**-3), out)
    lse = np.where(unsure[:, 0], 3 * LN_2 * m_off[:, 0] + 2.0**-3, lse)
    lse += 4 * U * sizes + scale * mean * (2 * qkv.q.shape[3] + 16) * U
    empty = np.isneginf(scores.x.max(axis=1))
    return Bound(
        out=np.where(empty[:, None], 0.0, out),
        lse=np.where(empty, 0.0, lse),
        units=units / l,
        ties=((p_off > 0) & (weight > 0)).sum(axis=1),
    )
