"""Attention inputs whose outputs tell the integers that a kernel computes on the way: S = Q K^T, P and P V.

All scales are 1 but that of Q, which makes a unit of score a factor 2 (c = 1); nothing is smoothed. A kernel runs as it
is shipped, and its float results are near enough to integers to be read.

Scores. Of the keys of head n all but one are zero, and 16 channels of 127 in Q and in that key keep its scores between
2^14 and 2^19. The others weigh 2^-16384, which is 0: lse = S ln 2. The float32 numbers that lse is made of are rounded
to 2^-5 below 2^19, and multiplying by ln 2 adds 2^-23 of it: S is off by .2 at most.

Probabilities and products. Row i of Q selects a column of K^T that has 0 for a key in each block of 64, so that the
maximum is 0 everywhere and nothing is rescaled, and -3 to -8 elsewhere: P = R 2^score, which has 8 significant bits and
so is what float16 makes of an exponential that is off by 2^-20, and what a polynomial that is good to 8 bits rounds to.
Values that are 1 in channel d for key d, and else 0, make the output P / l; random ones make it (P V) / l. With
l = R e^lse, off by 2^-20, integers below 2^18 are off by 1/4 at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from strategies import Array, Case

from cupy_intfa import Recipe
from cupy_intfa.quantize import QuantizedQKV, quantize_arrays

_HEAD_DIM, _LN2 = 64, float(np.log(2))
_READABLE = 0.25  # farther from an integer it is none


@dataclass(frozen=True)
class Question:
    """Codes to run attention on, how to read integers from what comes out, and what they should be."""

    case: Case
    codes: QuantizedQKV
    exact: Mapping[str, Array]

    def read(self, out: Array, lse: Array) -> dict[str, Array]:
        """Turn output and log-sum-exp into the integers."""
        if "scores" in self.exact:
            return {"scores": _integers(lse / _LN2)}
        top = float(self.codes.recipe.p_top)
        return {"products": _integers(out.astype(np.float64) * (top * np.exp(lse.astype(np.float64)))[..., None])}


def _integers(x: Array) -> Array:
    nearest = np.rint(x)
    off = float(np.abs(x - nearest).max())
    if not off < _READABLE:
        raise ValueError(f"{off} from an integer: expected less than {_READABLE}")
    found: Array = nearest.astype(np.int32)
    return found


def _codes(recipe: Recipe, case: Case, q: Array, k: Array, v: Array) -> QuantizedQKV:
    """Give codes scales of 1 and means of 0, in the form in which the recipe has them."""
    like = quantize_arrays(*case.arrays(), recipe=recipe)
    ones: dict[str, Any] = {name: np.ones_like(getattr(like, name)) for name in ("k_scale", "v_scale")}
    means = {name: np.zeros_like(x) for name in ("k_mean", "v_mean") if (x := getattr(like, name)) is not None}
    values = v.astype(like.v.dtype)
    q_scale = np.ones_like(like.q_scale)
    return replace(like, q=q, k=k, v=values, q_scale=q_scale, **ones, **means)


def _case(heads: int, q_len: int, kv_len: int) -> Case:
    sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "q_len": q_len, "kv_len": kv_len, "head_dim": _HEAD_DIM}
    return Case(**sizes, dtype="float32", scale=_LN2)


def ask_scores(recipe: Recipe, keys: tuple[int, ...], q_len: int, kv_len: int) -> Question:
    """Ask for the scores of some keys with all queries; a head each."""
    rng, case = np.random.default_rng(1), _case(len(keys), q_len, kv_len)
    q = rng.integers(-127, 128, (1, len(keys), q_len, _HEAD_DIM)).astype(np.int8)
    k = np.zeros((1, len(keys), kv_len, _HEAD_DIM), np.int8)
    for head, key in enumerate(keys):
        k[0, head, key] = rng.integers(-127, 128, _HEAD_DIM)
        k[0, head, key, ::4] = 127
    q[..., ::4] = 127
    v = np.zeros(k.shape, np.int8)
    exact = (q.astype(np.int32) @ k.astype(np.int32).swapaxes(2, 3)).max(axis=3)
    return Question(case, _codes(recipe, case, q, k, v), {"scores": exact})


def ask_products(recipe: Recipe, q_len: int, kv_len: int) -> Question:
    """Ask for P, a head for every 64 keys of it, and in one more head for P V."""
    rng, shown = np.random.default_rng(2), -(-kv_len // _HEAD_DIM)
    case = _case(shown + 1, q_len, kv_len)
    column = np.arange(q_len) % _HEAD_DIM
    scores = -rng.integers(3, 9, (_HEAD_DIM, kv_len))
    for start in range(0, kv_len, 64):
        scores[np.arange(_HEAD_DIM), rng.integers(start, min(start + 64, kv_len), _HEAD_DIM)] = 0
    k = np.broadcast_to(scores.T.astype(np.int8), (1, case.heads, kv_len, _HEAD_DIM)).copy()
    q = np.broadcast_to(np.eye(_HEAD_DIM, dtype=np.int8)[column], (1, case.heads, q_len, _HEAD_DIM)).copy()
    v = np.zeros(k.shape, np.int8)
    v[0, np.arange(kv_len) // _HEAD_DIM, np.arange(kv_len), np.arange(kv_len) % _HEAD_DIM] = 1
    v[0, -1] = rng.integers(-127, 128, (kv_len, _HEAD_DIM))
    p = np.rint(float(recipe.p_top) * np.exp2(scores[column])).astype(np.int32)
    return Question(case, _codes(recipe, case, q, k, v), {"products": p @ v.astype(np.int32)})
