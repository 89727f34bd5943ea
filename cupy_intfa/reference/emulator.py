"""The emulator: the kernels' algorithm in NumPy, tile by tile, with exact integer products.

Every kernel is tested against it, and it is the backend that runs where there is no GPU. Rows are independent, so
they are worked in chunks; only the key tile is part of the numerics. Integer products go through float32 BLAS and
stay exact: |sum| < 2^24 for D ≤ 256 and tiles of at most 512 keys.

The arithmetic of one row, in the letters of arXiv 2409.16997 (x in units of log2)::

    x[j]  = t[j] · Y[j]                     token scales: Y = s_k[j]·S[j], t = c;  else Y = S[j], t = c·s_k[j]
    m     = max over the tile, rounded up;  c = scale · log2(e) · s_q
    P[j]  = 2^(fma(Y[j], t[j], rd(log2 R - m_ref)))          never above R: the constant is rounded down
    P8[j] = round(half(P[j]))               one rounding to float16, one to an integer, both half to even
    out   = Σ P8·V8·w / l · s_v             w = 1 (running reference) or 2^(m_tile - m)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from cupy_intfa.quantize.arithmetic import FLOAT32_TINY, dot_in_pairs, flush
from cupy_intfa.quantize.codes import FORMATS, round_to_format
from cupy_intfa.quantize.keys import scale_per_token
from cupy_intfa.quantize.qkv import QuantizedQKV
from cupy_intfa.quantize.rotate import rotate
from cupy_intfa.recipe import Recipe

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MAX_KEY_TILE = 512  # 255 · 127 · 512 < 2^24: float32 sums of products stay exact
MAX_SCORE = np.float32(2.0**22)  # in units of log2
LOG2_E = np.float32(1.4426950408889634)
LN_2 = np.float32(0.6931471805599453)
_ROWS = 256  # rows per chunk: a 256 × 128 tile in float64 is 256 KB and stays in the L2 cache


def attention(
    qkv: QuantizedQKV,
    *,
    scale: float,
    key_tile: int,
    causal_offset: int | None = None,
) -> tuple[Float32, Float32]:
    """Run attention on quantised inputs.

    Parameters
    ----------
    qkv : QuantizedQKV
        NumPy arrays; its recipe says everything else about the numerics.
    scale : float
        Factor of the scores, above 0.
    key_tile : int
        B_c, the keys per tile, whose maximum P is relative to or the running maximum rises to; a multiple of 8, at most
        512.
    causal_offset : int, optional
        Query i sees the keys j ≤ i + causal_offset; None is no mask.

    Returns
    -------
    out : ndarray (B, Hq, Sq, D), float32
        0 for a row that sees no key, NaN for a row that is marked or whose scores leave float32.
    lse : ndarray (B, Hq, Sq), float32
        Natural log-sum-exp of the unshifted scores; −inf for a row that sees no key.

    Notes
    -----
    Source: arXiv 2409.16997, Algorithm 1, for ``recipe="paper"``.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_intfa.quantize import quantize_arrays
    >>> from cupy_intfa.recipe import PRESETS
    >>> x = np.zeros((1, 1, 2, 8), np.float32)
    >>> v = np.float32([1, 3]).reshape(1, 1, 2, 1).repeat(8, axis=3)
    >>> out, lse = attention(quantize_arrays(x, x, v, recipe=PRESETS["precise"]), scale=1.0, key_tile=64)
    >>> out[0, 0, :, 0].tolist(), np.exp(lse).round(5).ravel().tolist()
    ([2.0, 2.0], [2.0, 2.0])
    """
    batch, heads, q_len, head_dim = qkv.q.shape
    group = heads // qkv.k.shape[1]
    out = np.empty((batch, heads, q_len, head_dim), np.float32)
    lse = np.empty((batch, heads, q_len), np.float32)

    def work(task: tuple[int, int]) -> None:
        """Attend with all query heads of one KV head."""
        b, kv_head = task
        keys = _stored_keys(qkv, b, kv_head)
        for head in range(kv_head * group, (kv_head + 1) * group):
            for first in range(0, q_len, _ROWS):
                rows = slice(first, min(first + _ROWS, q_len))
                queries = _queries(qkv, b, head, rows, scale)
                limit = None if causal_offset is None else np.arange(rows.start, rows.stop) + causal_offset
                state = _attend(queries, keys, limit, qkv, key_tile)
                out[b, head, rows], lse[b, head, rows] = _epilogue(state, queries, keys, qkv)

    tasks = [(b, h) for b in range(batch) for h in range(qkv.k.shape[1])]
    # BLAS threads would fight with ours over the same cores: 8 heads in parallel beat 8 small products in parallel.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        list(pool.map(work, tasks))
    return out, lse


@dataclass(frozen=True, eq=False)
class _Keys:
    """Keys and values of one (batch, kv head), in stored order."""

    k: Float32  # (Skv, D) codes
    v: Float32  # (Skv, D) codes
    k_scale: Float32  # (Skv,)
    v_scale: Float32  # as in QuantizedQKV, without the first two axes
    index: npt.NDArray[np.intp]  # (Skv,) original index of each stored key
    k_mean: Float32 | None  # (D,) in the coordinates of the codes
    v_mean: Float32 | None
    mark: np.float32


@dataclass(frozen=True, eq=False)
class _Queries:
    """A chunk of query rows of one head."""

    q: Float32  # (rows, D) codes
    scale: Float32  # (rows,) s_q
    c: Float32  # (rows,) scale · log2(e) · s_q
    mark: Float32
    softmax_scale: np.float32


@dataclass(eq=False)
class _State:
    """What the loop over key tiles carries from tile to tile, per row."""

    o: Float32  # (rows, D)
    l: Float32  # noqa: E741 (the paper's letter)
    m: Float32  # reference of o
    m_l: Float32  # reference of l: m, unless P carries the scales of V


def _stored_keys(qkv: QuantizedQKV, b: int, head: int) -> _Keys:
    recipe, length = qkv.recipe, qkv.k.shape[2]
    index = np.arange(length) if qkv.key_index is None else qkv.key_index[b, head].astype(np.intp)
    k_scale = scale_per_token(qkv.k_scale[b, head], recipe.k_granularity, length, recipe.key_block, np)
    v_scale = qkv.v_scale[b, head]
    k_mean = None
    if qkv.k_mean is not None:
        k_mean = rotate(qkv.k_mean[b, head], np) if recipe.rotate else qkv.k_mean[b, head]
    return _Keys(
        k=qkv.k[b, head].astype(np.float32)[index],
        v=qkv.v[b, head].astype(np.float32)[index],
        k_scale=k_scale[index] if recipe.k_granularity == "token" else k_scale,
        v_scale=v_scale[index] if recipe.v_granularity == "token" else v_scale,
        index=index,
        k_mean=k_mean,
        v_mean=None if qkv.v_mean is None else qkv.v_mean[b, head],
        mark=qkv.kv_mark[b, head],
    )


def _queries(qkv: QuantizedQKV, b: int, head: int, rows: slice, scale: float) -> _Queries:
    recipe = qkv.recipe
    per_token = scale_per_token(qkv.q_scale[b, head][None], recipe.q_granularity, qkv.q.shape[2], recipe.key_block, np)
    q_scale = per_token[0, rows]
    with np.errstate(over="ignore"):  # such rows are marked in the end
        softmax_scale = np.float32(scale)
        c = softmax_scale * LOG2_E * q_scale
    return _Queries(
        q=qkv.q[b, head, rows].astype(np.float32),
        scale=q_scale,
        c=c,
        mark=qkv.q_mark[b, head, rows],
        softmax_scale=softmax_scale,
    )


def _tiles(length: int, tile: int, order: str) -> Iterator[slice]:
    starts = range(0, length, tile)
    for start in starts if order == "first_to_last" else reversed(starts):
        yield slice(start, min(start + tile, length))


def _attend(
    queries: _Queries, keys: _Keys, limit: npt.NDArray[np.intp] | None, qkv: QuantizedQKV, key_tile: int
) -> _State:
    """Loop over the key tiles (Algorithm 1, the inner loop)."""
    recipe, rows = qkv.recipe, len(queries.q)
    state = _State(
        o=np.zeros((rows, keys.v.shape[1]), np.float32),
        l=np.zeros(rows, np.float32),
        m=np.full(rows, -np.inf, np.float32),
        m_l=np.full(rows, -np.inf, np.float32),
    )
    # A row that leaves float32 makes NaN on the way to the NaN that its mark will write anyway.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for cols in _tiles(len(keys.k), key_tile, recipe.key_order):
            hidden = None
            if limit is not None and keys.index[cols].max() > limit[0]:
                hidden = keys.index[cols] > limit[:, None]
                if bool(hidden.all()):
                    continue
            _step(state, queries, keys, cols, hidden, qkv)
    return state


def _step(
    state: _State,
    queries: _Queries,
    keys: _Keys,
    cols: slice,
    hidden: npt.NDArray[np.bool_] | None,
    qkv: QuantizedQKV,
) -> None:
    """One key tile: scores, maximum, P, row sum, and the second product."""
    recipe = qkv.recipe
    x = _scores(queries, keys, cols, recipe.k_granularity)
    if hidden is not None:
        x[hidden] = -np.inf
    if recipe.v_granularity == "token":
        x = _fold_value_scales(state, x, keys, cols)
    m_tile = _round_up(x.max(axis=1))
    m = np.maximum(state.m, m_tile)
    past = _exp2_or_zero(state.m - m)
    state.o *= past[:, None]
    running = recipe.p_reference == "running"
    p, before_rounding = _probabilities(x, m if running else m_tile, recipe)
    o = _second_product(p, keys, cols, qkv)
    row_sum = (p if recipe.row_sum == "quantised" else before_rounding).sum(axis=1)
    if not running:
        weight = _exp2_or_zero(m_tile - m)
        o, row_sum = o * weight[:, None], row_sum * weight
    state.o += o
    state.m = m
    if recipe.v_granularity != "token":
        state.l = state.l * past + row_sum
        state.m_l = m


def _fold_value_scales(state: _State, x: Float64, keys: _Keys, cols: slice) -> Float64:
    """Take the row sum of the true scores, then add log2 s_v to them: P carries the scale of V from here on."""
    m_l = np.maximum(state.m_l, _round_up(x.max(axis=1)))
    exact = np.exp2((x - _finite_or_zero(m_l)[:, None]).astype(np.float32)).sum(axis=1)
    state.l = state.l * _exp2_or_zero(state.m_l - m_l) + exact
    state.m_l = m_l
    # A row of zeros has scale 1 by rule: it adds nothing to PV and must not lead the maximum.
    scale = np.where(keys.v[cols].any(axis=1), keys.v_scale[cols], np.float32(0))
    folded: Float64 = x + np.log2(scale, dtype=np.float64)
    return folded


def _scores(queries: _Queries, keys: _Keys, cols: slice, k_granularity: str) -> Float64:
    """Exact products Y·t in float64: 23 bits times 24 bits."""
    y = queries.q @ keys.k[cols].T
    if k_granularity == "token":
        y *= keys.k_scale[cols]
        t = queries.c[:, None]
    elif k_granularity == "tensor":
        t = (queries.c * keys.k_scale[cols.start])[:, None]
    else:
        t = queries.c[:, None] * keys.k_scale[cols]
    # A kernel flushes subnormals: t = 0 would make NaN of a masked score.
    x: Float64 = np.multiply(y, np.maximum(t, FLOAT32_TINY), dtype=np.float64)
    return x


def _probabilities(x: Float64, reference: Float32, recipe: Recipe) -> tuple[Float32, Float32]:
    """P relative to the reference, rounded to its format, and P in float32 before any rounding."""
    x += _round_down(_log2_top(recipe) - _finite_or_zero(reference))[:, None]
    p = x.astype(np.float32)  # what the FMA gives: the sum is exact to 53 bits before it is rounded to 24
    np.exp2(p, out=p)
    if recipe.pv == "int8x2":
        return np.rint(p), p
    if recipe.pv == "int8":
        return np.rint(round_to_format(p.copy(), FORMATS["float16"])), p
    return round_to_format(p.copy(), FORMATS[recipe.pv]), p


def _second_product(p: Float32, keys: _Keys, cols: slice, qkv: QuantizedQKV) -> Float32:
    """P V over the tile, with the scale of V where it differs from block to block."""
    recipe, block = qkv.recipe, qkv.recipe.key_block
    if recipe.v_granularity not in ("block", "block_channel"):
        return _product(p, keys.v[cols], recipe.pv)
    total = np.zeros((len(p), keys.v.shape[1]), np.float32)
    for start in range(cols.start, cols.stop, block):
        part = slice(start, min(start + block, cols.stop))
        local = slice(part.start - cols.start, part.stop - cols.start)
        total += _product(p[:, local], keys.v[part], recipe.pv) * keys.v_scale[start // block]
    return total


def _product(p: Float32, v: Float32, pv: str) -> Float32:
    if pv != "int8x2":
        return p @ v
    high = np.floor(p * np.float32(1 / 256))
    low = p - high * np.float32(256)
    exact = (high @ v).astype(np.float64) * 256 + low @ v
    rounded: Float32 = exact.astype(np.float32)
    return rounded


def _epilogue(state: _State, queries: _Queries, keys: _Keys, qkv: QuantizedQKV) -> tuple[Float32, Float32]:
    """Divide by the row sum, restore means, add the marks (Algorithm 1: O_i = diag(l_i)^-1 O_i S_V)."""
    recipe = qkv.recipe
    empty = np.isneginf(state.m_l)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        out = state.o * (np.float32(1) / np.where(empty, np.float32(1), state.l))[:, None]
        top = _log2_top(recipe)
        if recipe.v_granularity in ("tensor", "channel"):
            out *= keys.v_scale
        elif recipe.v_granularity == "token":  # here l, unlike o, has no factor R
            out *= _exp2_or_zero(state.m - state.m_l - np.float32(top))[:, None]
            top = 0.0
        if keys.v_mean is not None:
            out += keys.v_mean
        lse = (state.m_l + np.log2(state.l) - np.float32(top)) * LN_2
        if keys.k_mean is not None:
            lse += queries.softmax_scale * flush(queries.scale * dot_in_pairs(queries.q, keys.k_mean, np), np)
    out[empty], lse[empty] = 0, -np.inf
    mark = queries.mark + keys.mark + _range_mark(state, queries, keys, qkv)
    return out + mark[:, None], lse + mark


def _range_mark(state: _State, queries: _Queries, keys: _Keys, qkv: QuantizedQKV) -> Float32:
    """NaN for a row whose scores could leave float32, or whose maximum is too large to subtract.

    The first by the bound c · max s_k · largest² · D. The second beyond 2^22 in units of log2, about 3 million nats:
    float32 has steps of ½ there, and P at the maximum would lose a third and more of its levels to the rounding.
    """
    recipe = qkv.recipe
    largest = np.float32(FORMATS["int4" if recipe.qk_bits == 4 else recipe.qk].largest)
    with np.errstate(over="ignore"):
        reach = queries.c * keys.k_scale.max() * (largest * largest * np.float32(qkv.q.shape[3]))
    inside = np.isfinite(reach) & ((np.abs(state.m_l) <= MAX_SCORE) | np.isneginf(state.m_l))
    mark: Float32 = np.where(inside, np.float32(0), np.float32(np.nan))
    return mark


def _log2_top(recipe: Recipe) -> float:
    """Exponent of P at its reference: log2 R, a float32."""
    return float(np.log2(np.float32(recipe.p_top)))


def _finite_or_zero(m: Float32) -> Float64:
    """Give a reference that can be subtracted: −inf, where no key was seen, becomes 0."""
    return np.where(np.isneginf(m), 0.0, m.astype(np.float64))


def _exp2_or_zero(x: Float32) -> Float32:
    """2^x, and 0 where both maxima are still −inf."""
    power: Float32 = np.where(np.isnan(x), np.float32(0), np.exp2(x))
    return power


def _round_up(x: Float64) -> Float32:
    nearest: Float32 = x.astype(np.float32)
    up: Float32 = np.nextafter(nearest, np.float32(np.inf))
    return np.where(nearest < x, up, nearest)


def _round_down(x: Float64) -> Float32:
    nearest: Float32 = x.astype(np.float32)
    down: Float32 = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest > x, down, nearest)
