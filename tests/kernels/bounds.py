"""How far a kernel may be from the emulator on the same codes and scales, element by element. u = 2⁻²⁴.

Up to the exponent of P both compute the same float32 numbers: S is exact, s_k·S, t, the maxima rounded up and the
constant rounded down are one rounding each, and the FMA's sum is rounded once. From there on they may differ by

- P: 2 ulp of ex2.approx (PTX ISA) and the 8u of NumPy's exp2. Rounded to a format, P differs only where those 12u
  contain a rounding border: by one level of an integer, by one unit in the last place of a float;
- a rescale, for each tile whose maximum has grown: the same 12u, and three roundings. Integer accumulators are rounded
  to a unit, and the factor to 2⁻³¹ of at most 255·127·keys: together ½ + keys·2⁻¹⁶ units, brought to the last maximum;
  or by way of floats (kernels_cu/intfa/rescale.cuh) by ½ or 2⁻¹⁴ of the row's sum of P, and 2⁻²⁴ before; as a float
  itself (products_wgmma.cuh) by ½, and by ½ for the rounded addend;
- additions: two roundings a tile each, in the emulator's float32 O as in a kernel's; the keys of a tile where l adds
  P itself; and every key after it where tensor cores add float products, whose alignment truncates each of them;
- a weight of a tile's own reference: another 12u; the flush of a row at 65 536 keys: the same and four roundings;
- float products Q Kᵀ: D roundings in float32, twice that on tensor cores, for which scores and maxima differ;
- the epilogue: eight roundings, and what is subnormal becomes 0.

What a kernel rounds in a way of its own says its `Arithmetic`. That moves its answer by an amount that can be told,
`Bound.shift`, and so the rest stays as small.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from transcription import EXP2, TINY, U, rotation, round_p, stored_order, token_scales, value_scales

from cupy_intfa import Plan, QuantizedQKV, Recipe
from cupy_intfa.packing import has_offset_values

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

EX2 = 4 * U  # ex2.approx, as EXP2 is NumPy's
LN_2 = float(np.log(2.0))
LOG2_E = np.float32(1.4426950408889634)
_ROWS = 256  # at a time: a few arrays of 256 × 1025 float64 stay in the cache


@dataclass(frozen=True)
class Arithmetic:
    """What a kernel computes otherwise than its twin.

    ``folds_bias``: where K has one scale per group, scores stay 12582912 too large up to the exponent, whose constant
    takes it off again and is rounded for it, in rows whose largest c·s_k is 2.4·10⁻⁴ at most. ``sums_halves``: an
    exact row sum adds P rounded to float16, ``"pairs"`` of keys j and j + 8 that are rounded once more where P has 8
    bits, or ``"chain"``: those pairs one after the other through 128 keys of a tile, in float16, which every row sum of
    a float P does. ``rescales_by``: by how
    many units, at least, an integer O is off that goes through floats when a maximum has grown; 0: it does not.
    ``room``: octaves by which a maximum may pass the reference of a float16 P before the reference follows.
    ``offset``: what V is too large by where its packing says so, in sums that are rounded with it. ``cubic`` n: the
    first of every n groups of 16 keys has P from a polynomial (`cubic_exp2`).
    """

    folds_bias: bool = False
    sums_halves: str = ""
    rescales_by: float = 0.0
    room: float = 0.0
    offset: float = 0.0
    cubic: int = 0


ARITHMETIC = {
    "sm90": Arithmetic(sums_halves="chain", rescales_by=1.0, room=8.0, offset=128.0),
    "sm80": Arithmetic(folds_bias=True, sums_halves="pairs", rescales_by=0.5, room=8.0),
    "dp4a": Arithmetic(),
    "naive": Arithmetic(),
}


def arithmetic_of(plan: Plan) -> Arithmetic:
    """Tell what the kernel of a plan computes in its own way."""
    assert plan.cuda
    macros = dict(define.split("=") for define in plan.cuda.defines)
    return replace(ARITHMETIC[plan.kernel.removeprefix("attention_")], cubic=int(macros.get("CUBIC", 0)))


CUBIC = tuple(np.array([0x459D, 0xC47B, 0x41BA], np.uint16).view(np.float16).astype(np.float64))
CUBIC_REACH = 16.0  # octaves


def cubic_exp2(u: Array) -> Float64:
    """255 · 2^(16 (u − 1)) as exp2_cubic of kernels_cu/intfa/ptx_math.cuh: every step a float16, nearest even."""

    def half(x: Array) -> Float64:
        return x.astype(np.float16).astype(np.float64)

    u = half(np.clip(u, 0, 1))
    w = np.full_like(u, CUBIC[0])
    for coefficient in CUBIC[1:]:
        w = half(w * u + coefficient)
    return half(half(half(w * u) ** 2) ** 2)


SCORE_BIAS = 12582912.0


@dataclass(frozen=True, eq=False)
class Bound:
    """|kernel − emulator| of the output (B, Hq, Sq, D) and of the log-sum-exp (B, Hq, Sq).

    ``units`` (B, Hq, Sq, D) is the part of ``out`` that rounding an integer O to a unit has, ``shift`` (B, Hq, Sq, D)
    what the kernel's own arithmetic adds to the output. ``ties`` (B, Hq, Sq) counts the keys whose P may differ.
    """

    out: Float64
    lse: Float64
    units: Float64
    shift: Float64
    ties: npt.NDArray[np.intp]


def share_that_differs(actual: Array, expected: Array, bound: Bound, v: Array) -> float:
    """Share of the elements of an output that differ by more than float32 rounds, 10⁻⁶ of a mean value, and units.

    A bound is for the worst case; this sees a wrong algorithm whose error is small. What may differ is what the last
    bits of an exponential decide, and with float Q and K those of their scores.
    """
    off = np.abs(actual.astype(np.float64) - expected - bound.shift) > 1e-6 * np.abs(v).mean() + bound.units
    return float(off.mean())


MOST_DIFFER = {"int8": 0.05, "float16": 0.12, "float8_e4m3": 0.05, "float8_e5m2": 0.05}
"""By the format of Q and K, on 1024 keys of N(0, 1): measured on an H200 are up to .015; for float16 .073, and .093
since its P has a reference that waits for eight octaves."""


def kernel_bound(
    qkv: QuantizedQKV,
    *,
    scale: float,
    key_tile: int,
    causal_offset: int | None = None,
    arithmetic: Arithmetic = Arithmetic(),
) -> Bound:
    """Bound the distance of a kernel from ``emulator.attention`` of the same arguments; NaN where that is NaN."""
    batch, heads, q_len, _ = qkv.q.shape
    full, row = qkv.q.shape, qkv.q.shape[:3]
    bound = Bound(np.zeros(full), np.zeros(row), np.zeros(full), np.zeros(full), np.zeros(row, np.intp))

    def work(task: tuple[int, int]) -> None:
        b, h = task
        keys = _keys(qkv, b, h // (heads // qkv.k.shape[1]), key_tile)
        with np.errstate(all="ignore"):  # rows that leave float32: NaN in the emulator, and NaN here
            for first in range(0, q_len, _ROWS):
                rows = slice(first, min(first + _ROWS, q_len))
                limit = None if causal_offset is None else np.arange(rows.start, rows.stop)[:, None] + causal_offset
                one = _bound_rows(qkv, (b, h, rows), keys, limit, scale, arithmetic)
                for name in ("out", "lse", "units", "shift", "ties"):
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
    k_scale_max: np.float32
    unit: Float64  # (D,) value of one unit of O
    index: npt.NDArray[np.intp]  # (T·W,) original index, or one beyond every limit
    tile: int  # W
    k_mean: Float64 | None
    v_mean: Float64


def _keys(qkv: QuantizedQKV, b: int, g: int, key_tile: int) -> _Keys:
    recipe, order = qkv.recipe, stored_order(qkv, b, g)
    pad = -len(order) % key_tile
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
        k_scale_max=qkv.k_scale[b, g].max(),
        unit=np.broadcast_to(value_scales(qkv, b, g, order)[0], v.shape[1:]),
        index=np.pad(order, (0, pad), constant_values=2**40),
        tile=key_tile,
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
    bias: Float64  # (rows, T·W) what a kernel that folds the bias has added to them


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
    folds = (recipe.qk == "int8") & (recipe.k_granularity != "token") & (c * keys.k_scale_max <= np.float32(2.4e-4))
    bias = np.where(folds, SCORE_BIAS * t, 0.0)
    return _Scores(np.where(hidden, -np.inf, y * t), np.where(hidden, 0.0, off), bias), mean


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The course of the maximum over the tiles, each array (rows, T)."""

    reference: Float64  # of P
    own: Float64  # of the kernel's P
    weight: Float64  # 2^(reference − last maximum)
    growths: Float64  # rescales after the tile
    steps: Float64  # tiles from this one to the last
    units: Float64  # (rows,) roundings of an integer O, in units, brought to the last maximum
    last: Float64  # (rows,)


def _tiles(recipe: Recipe, x: Float64, tile: int, kernel: Arithmetic) -> _Tiles:
    m_tile = _towards(x.reshape(len(x), -1, tile).max(axis=2), np.inf)
    onward = slice(None) if recipe.key_order == "first_to_last" else slice(None, None, -1)
    running = np.maximum.accumulate(m_tile[:, onward], axis=1)
    last, count = running[:, -1:], running.shape[1]
    grew = np.zeros(running.shape)
    grew[:, 1:] = (running[:, 1:] > running[:, :-1]) & ~np.isneginf(running[:, :-1])
    growths = grew[:, ::-1].cumsum(axis=1)[:, ::-1] - grew
    rounding = np.full(running.shape, 0.5 + x.shape[1] * 2.0**-16)
    if kernel.rescales_by:
        finite = _finite(running)
        sums = recipe.p_top * np.exp2(x.reshape(len(x), -1, tile)[:, onward] - finite[..., None]).sum(axis=2)
        for i in range(1, count):  # to the reference after each tile
            sums[:, i] += sums[:, i - 1] * np.exp2(np.minimum(finite[:, i - 1] - finite[:, i], 0.0))
        rounding[:, 1:] = np.maximum(kernel.rescales_by, 2.0**-14 * sums[:, :-1]) + 2.0**-16 * sums[:, :-1]
    reference = running[:, onward] if recipe.p_reference == "running" else m_tile
    own = reference
    if kernel.room and recipe.pv == "float16":
        own, m = np.empty(reference.shape), np.full(len(x), -np.inf, np.float32)
        for i in np.arange(count)[onward]:
            top = m_tile[:, i].astype(np.float32)
            m = np.where(top > m + np.float32(kernel.room), top, m)
            own[:, i] = m
    return _Tiles(
        reference=reference,
        own=own,
        weight=np.where(np.isneginf(reference), 0.0, np.exp2(np.minimum(_finite(reference) - _finite(last), 0.0))),
        growths=growths[:, onward],
        steps=np.broadcast_to(np.arange(count, 0, -1.0)[onward], running.shape),
        units=(grew * rounding * np.exp2(np.minimum(_finite(running) - _finite(last), 0.0))).sum(axis=1),
        last=_finite(last)[:, 0],
    )


def _terms(p: Float64, recipe: Recipe, halves: str, tile: int) -> Float64:
    """Give what a row sum adds for P before rounding, (rows, T·W)."""
    if recipe.row_sum == "quantised" and (halves != "chain" or recipe.integer_pv):
        return round_p(p, recipe)
    if not halves:
        return p
    half = p.astype(np.float16)
    if halves == "chain":
        pairs = half.reshape(len(p), -1, tile // 16, 2, 8)
        half = np.zeros((len(p), pairs.shape[1], tile), np.float16)
        for start in range(0, tile // 16, 8):  # all of a tile have one weight
            total = pairs[:, :, start, 0] + pairs[:, :, start, 1]
            for i in range(start + 1, min(start + 8, tile // 16)):
                total = total + (pairs[:, :, i, 0] + pairs[:, :, i, 1])
            half[:, :, start : start + 8] = total
        half = half.reshape(p.shape)
    elif recipe.pv != "float16":
        pairs = half.reshape(len(p), -1, 2, 8)
        half = np.stack([pairs[:, :, 0] + pairs[:, :, 1], np.zeros_like(pairs[:, :, 0])], axis=2).reshape(p.shape)
    return half.astype(np.float64)


@dataclass(frozen=True, eq=False)
class _P:
    """P before rounding as it is meant, and its least and largest value in float32, (rows, T·W)."""

    meant: Float64
    low: Float64
    high: Float64


def _within(p: Float64, off: Array | float) -> _P:
    return _P(p, np.maximum(p * (1 - off) - TINY, 0.0), p * (1 + off) + TINY)


def _probabilities(recipe: Recipe, scores: _Scores, tiles: _Tiles, kernel: Arithmetic) -> tuple[_P, _P]:
    """Give P of the emulator and P of the kernel, each relative to its own reference."""
    rows, count = tiles.reference.shape
    log2_top = float(np.log2(np.float32(recipe.p_top)))
    x, bias = (a.reshape(rows, count, -1) for a in (scores.x, np.broadcast_to(scores.bias, scores.x.shape)))

    def exponent(reference: Float64, more: Float64 | float) -> Float64:
        constant = _towards(_towards(log2_top - _finite(reference), -np.inf)[..., None] - more, -np.inf)
        rounded: Float64 = (x + more + constant).astype(np.float32).astype(np.float64).reshape(rows, -1)
        return rounded

    p, own_p, off = np.exp2(exponent(tiles.reference, 0.0)), np.exp2(exponent(tiles.own, 0.0)), np.full((1, 1), EX2)
    if recipe.qk != "int8":  # neither the exponent's bits nor those of the references are the same
        reach = np.abs(_finite(scores.x)).max(axis=1, keepdims=True) + 24
        m_off = scores.off.max(axis=1, keepdims=True)  # of a maximum: that of the farthest score
        off = EX2 + np.expm1(LN_2 * (scores.off + m_off + 8 * U * reach))
    own = _within(np.exp2(exponent(tiles.own, bias)) if kernel.folds_bias and recipe.qk == "int8" else own_p, off)
    if kernel.cubic:
        group = np.arange(p.shape[1]) % (x.shape[2]) // 16
        top = np.float32(1 - np.float64(np.log2(np.float32(recipe.p_top))) / CUBIC_REACH)
        zero = (
            (_towards(log2_top - _finite(tiles.own), -np.inf) / CUBIC_REACH + top).astype(np.float32).astype(np.float64)
        )
        u = (x / CUBIC_REACH + zero[..., None]).astype(np.float32).astype(np.float64).reshape(rows, -1)
        cubic = np.where(group % kernel.cubic == 0, cubic_exp2(u), np.nan)
        own = _P(*(np.where(np.isnan(cubic), a, cubic) for a in (own.meant, own.low, own.high)))
    return _within(p, EXP2), own


def _bound_rows(
    qkv: QuantizedQKV,
    at: tuple[int, int, slice],
    keys: _Keys,
    limit: Array | None,
    scale: float,
    arithmetic: Arithmetic,
) -> Bound:
    recipe, width = qkv.recipe, keys.tile
    scores, mean = _scores(qkv, at, keys, limit, scale)
    tiles = _tiles(recipe, scores.x, width, arithmetic)
    count = tiles.reference.shape[1]
    m_off = scores.off.max(axis=1, keepdims=True)
    p, own = _probabilities(recipe, scores, tiles, arithmetic)
    size, weight = np.abs(keys.v), np.repeat(tiles.weight, width, axis=1)
    unit = np.repeat(np.exp2(_finite(tiles.own) - _finite(tiles.reference)), width, axis=1)  # of the kernel's P

    # What happens to a tile's part of O and of l from its own tile to the last, relatively.
    drift = (
        (tiles.growths + (recipe.p_reference == "tile")) * (EX2 + EXP2 + 3 * U) + 4 * U * tiles.steps + 2 * LN_2 * m_off
    )
    if scores.x.shape[1] > 65536:
        drift = drift + (scores.x.shape[1] // 65536 + 1) * (EX2 + EXP2 + 4 * U)
    o_drift = drift + (3 * U if recipe.integer_pv else 2 * U * width * (tiles.steps + 1))
    integer_sum = recipe.integer_pv and recipe.row_sum == "quantised"
    l_drift = drift + (2 * U if integer_sum else U * (width + 19))
    o_rel, l_rel = (np.repeat(a, width, axis=1) for a in (o_drift, l_drift))

    def row_sum(p: Float64) -> Float64:
        total: Float64 = (weight * _terms(p, recipe, "", width)).sum(axis=1)[:, None]
        return total

    def own_sum(p: Float64) -> Float64:
        total: Float64 = (weight * unit * _terms(p, recipe, arithmetic.sums_halves, width)).sum(axis=1)[:, None]
        return total

    # Rounding is monotone: the ends of P give the ends of what it becomes.
    ends = [[u * round_p(x, recipe) for x in (one.low, one.high)] for one, u in ((p, 1.0), (own, unit))]
    p_off = np.maximum(ends[0][1] - ends[1][0], ends[1][1] - ends[0][0])
    sums = [[row_sum(x) for x in (p.low, p.high)], [own_sum(x) for x in (own.low, own.high)]]
    l_off = np.maximum(sums[0][1] - sums[1][0], sums[1][1] - sums[0][0])
    l = row_sum(p.meant)  # noqa: E741 (the paper's letter)
    l = np.where(l == 0, 1.0, l)  # noqa: E741
    rounded = np.maximum(ends[0][1], ends[1][1])
    r = (l_off + (weight * rounded * l_rel).sum(axis=1)[:, None]) / l + 8 * U
    integer_o = recipe.integer_pv and recipe.p_reference == "running" and "block" not in recipe.v_granularity
    units = float(integer_o) * tiles.units[:, None] * np.abs(keys.unit)
    o_off = (weight * (p_off + rounded * o_rel)) @ size + units
    if arithmetic.offset and has_offset_values(recipe):  # of the sum that has it, and of the one that takes it off
        o_off += 2 * (weight * rounded * o_rel).sum(axis=1)[:, None] * arithmetic.offset * np.abs(keys.unit)

    centred = ((weight * round_p(p.meant, recipe)) @ keys.v) / l
    own_l = own_sum(own.meant)
    shift = ((weight * unit * round_p(own.meant, recipe)) @ keys.v) / np.where(own_l == 0, 1.0, own_l) - centred
    out = (o_off / l + np.abs(centred) * (r + 8 * U)) / (1 - r)
    out += 4 * U * (np.abs(centred) + keys.v_mean) + TINY * (count + 4)
    lse = r[:, 0] / (1 - r[:, 0]) + LN_2 * m_off[:, 0]
    unsure = ~(r < 0.5)  # float products of thousands of nats: left are the hull of the values and the scores' error
    out = np.where(unsure, 2 * size.max(axis=0) * (1 + 2.0**-3), out)
    lse = np.where(unsure[:, 0], 3 * LN_2 * m_off[:, 0] + 2.0**-3, lse)
    sizes = 3 * np.abs(tiles.last) + 2 * np.abs(np.log2(l[:, 0])) + 2 * np.log2(recipe.p_top) + 8
    lse += 4 * U * sizes + scale * mean * (2 * qkv.q.shape[3] + 16) * U
    empty = np.isneginf(scores.x.max(axis=1))
    return Bound(
        out=np.where(empty[:, None], 0.0, out),
        lse=np.where(empty, 0.0, lse),
        units=units / l,
        shift=np.where(empty[:, None], 0.0, shift),
        ties=((p_off > 0) & (weight > 0)).sum(axis=1),
    )
