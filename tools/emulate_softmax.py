"""What a cheaper softmax of `attention_sm90` would err by, emulated: two tables for kernels_cu/README.md.

    python tools/emulate_softmax.py

`fast` in float64 but for what it rounds: Q by token, K in groups of 16 keys sorted in each 64, V by channel, P in
float16 and then in 8 bits, the running maximum of tiles of 128 keys from the last to the first. The first table has
other exponentials:

exact      2^x
cubic      what the kernel does: a cubic to the fourth power in every third group of 16 keys
quadratic  a quadratic to the eighth power there: as many instructions
fixed      x in fixed point by one integer multiply and add, instead of a conversion and an FMA: the bits of a float in
           [16, 32) are linear in it. The factor of a score has 6 bits left. Exact 4 octaves below the maximum, where P
           is cut off at R; a kernel would have to make R smaller.
powers     the same with scales of Q and K that are powers of two, so that the factor is exact

The second table starts with another reference of P: above the maximum of the first tile, where a normal row of that
mean and spread would have its maximum of all keys, but no more than some octaves above. A row is rescaled when its
maximum passes its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.data.families import make_qkv
from cupy_intfa.demo import layer_samples
from cupy_intfa.metrics import compare
from cupy_intfa.reference import oracle

Float = NDArray[np.float64]
Exponential = Callable[[Float, Float, Float], Float]  # scores, their factors, the references: to 255 2^(S t - m)
TILE, GROUP, BLOCK, WARP = 128, 16, 64, 16
REACH = 16.0  # octaves: kCubicReach in kernels_cu/intfa/ptx_math.cuh
CUBIC = np.array([0x459D, 0xC47B, 0x41BA], np.uint16).view(np.float16)  # exp2_cubic there
TOP = 255.0 ** (1 / 8)
QUADRATIC = np.array([0.503, TOP - 0.503], np.float16)  # least squares of P, weighted; 0 at 0 and 255 at 1
EXACT_AT = 4.0  # octaves below the maximum
LEADS = (0.0, 1.0, 1.5, 99.0)  # octaves; 99: no limit
SETS = (("normal", 128), ("normal", 64), ("outlier", 128), ("channel", 128), ("sink_first", 128))


def half(x: Float) -> Float:
    """Round to float16."""
    return x.astype(np.float16).astype(np.float64)


def exact(s: Float, t: Float, m: Float) -> Float:
    """Take the exponential that all others are compared with."""
    p: Float = 255 * np.exp2(s * t - m)
    return p


def polynomial(coefficients: NDArray[np.float16], squarings: int, s: Float, t: Float, m: Float) -> Float:
    """Take the first of every three groups from a polynomial without a constant, squared again and again."""
    u = half(np.clip(1 + (s * t - m) / REACH, 0, 1))
    w = np.full_like(u, coefficients[0])
    for coefficient in coefficients[1:]:
        w = half(w * u + float(coefficient))
    w = half(w * u)
    for _ in range(squarings):
        w = half(w * w)
    return np.where(np.arange(s.shape[1]) // GROUP % 3 == 0, w, exact(s, t, m))


def fixed_point(s: Float, t: Float, m: Float) -> Float:
    """Take the bits of a float in [16, 32) from an integer product; below 16 they are those of the next binade."""
    unit = 2.0**19  # steps of an octave
    factor = np.rint(t * unit)
    x = (s * factor + np.rint(-EXACT_AT * unit - factor * (m - EXACT_AT) / t)) / unit  # octaves below the maximum
    binade = np.floor(np.maximum(-x, 0) / 16)
    value = np.exp2(-binade) * (32 + np.minimum(x, 0) + 16 * binade)
    p: Float = 255 * np.exp2(value - 32)
    return p


EXPONENTIALS: Mapping[str, Exponential] = {
    "exact": exact,
    "cubic": partial(polynomial, CUBIC, 2),
    "quadratic": partial(polynomial, QUADRATIC, 3),
    "fixed": fixed_point,
    "powers": exact,
}


@dataclass(frozen=True)
class Head:
    """The output of a head, and what happened on the way.

    ``rescaled``: times a row was, on average. ``turns``: share of tiles in which any of a warp's rows was. ``empty``:
    share of a warp's tiles whose P is zero throughout.
    """

    out: Float
    rescaled: float
    turns: float
    empty: float


def highest_of_normal(x: Float, count: int) -> Float:
    """Guess the maximum of all scores of each row from those of a tile, as that of so many normal numbers."""
    z = np.sqrt(2 * np.log(count))
    z -= (np.log(np.log(count)) + np.log(4 * np.pi)) / (2 * z)
    guess: Float = x.mean(axis=1) + x.std(axis=1) * z
    return guess


def attend(q: Float, k: Float, v: Float, name: str, lead: float = 0.0) -> Head:
    """Run a head with an exponential; the first reference is ``lead`` octaves above the first maximum at most."""
    exponential, v_mean, k = EXPONENTIALS[name], v.mean(axis=0), k - k.mean(axis=0)
    largest = np.abs(k).max(axis=1)
    order = np.concatenate([i + np.argsort(largest[i : i + BLOCK], kind="stable") for i in range(0, len(k), BLOCK)])
    k, v, largest = k[order], v[order] - v_mean, largest[order]
    scale = np.log2(np.e) / np.sqrt(q.shape[1])  # of scores, to octaves
    k_scale = np.maximum.reduceat(largest, np.arange(0, len(k), GROUP)).repeat(GROUP)[: len(k)] / 127
    q_scale, v_scale = scale * np.abs(q).max(axis=1) / 127, np.abs(v).max(axis=0) / 127
    if name == "powers":
        q_scale, k_scale = np.exp2(np.ceil(np.log2(q_scale))), np.exp2(np.ceil(np.log2(k_scale)))
    s = np.rint(q * (scale / q_scale)[:, None]) @ np.rint(k / k_scale[:, None]).T
    v8 = np.rint(v / v_scale)
    m, total, o = np.full(len(q), -1e30), np.zeros(len(q)), np.zeros((len(q), v.shape[1]))
    rescaled = turns = empty = 0.0
    starts = range(0, len(k), TILE)[::-1]
    for start in starts:
        columns = slice(start, start + TILE)
        t = q_scale[:, None] * k_scale[columns]
        x = s[:, columns] * t
        before, m = m, np.maximum(m, x.max(axis=1))
        if start == starts[0]:
            m = np.maximum(m, np.minimum(highest_of_normal(x, len(k)), m + lead))
        p = half(exponential(s[:, columns], t, m[:, None]))
        past = np.exp2(np.maximum(before - m, -200.0))
        total, o = total * past + p.sum(axis=1), o * past[:, None] + np.rint(p) @ v8[columns]
        grown = (m > before) & (start != starts[0])
        rescaled, turns = rescaled + grown.mean(), turns + grown.reshape(-1, WARP).any(axis=1).mean()
        empty += (np.rint(p) == 0).reshape(-1, WARP, p.shape[1]).all(axis=(1, 2)).mean()
    return Head(o / total[:, None] * v_scale + v_mean, rescaled, turns / len(starts), empty / len(starts))


def measure(qkv: tuple[NDArray[np.float32], ...], name: str, lead: float = 0.0) -> tuple[float, list[Head]]:
    """Give the relative RMSE of all heads, and the heads."""
    q, k, v = (x[0].astype(np.float64) for x in qkv)
    heads = [attend(q[h], k[h], v[h], name, lead) for h in range(len(q))]
    wanted, _ = oracle.attention(*qkv)
    return compare(np.stack([head.out for head in heads])[None], wanted).relative_rmse, heads


def draw(family: str, head_dim: int, keys: int) -> tuple[NDArray[np.float32], ...]:
    """Draw two heads of 64 rows."""
    return make_qkv(family, seed=0, heads=2, q_len=64, kv_len=keys, head_dim=head_dim)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table of Markdown, numbers to the right."""
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Print the tables."""
    layers = {f"layer {i}": (x.q, x.k, x.v) for i, x in enumerate(layer_samples())}
    sets = {f"{name}, D {d}": draw(name, d, 4096) for name, d in SETS} | layers
    rows = []
    for title, qkv in sets.items():
        found = {name: measure(qkv, name) for name in EXPONENTIALS}
        empty = np.mean([head.empty for head in found["exact"][1]])
        rows.append([title, *(f"{error:.4f}" for error, _ in found.values()), f"{empty:.1%}"])
    print_table(["", *EXPONENTIALS, "tiles without P"], rows)
    sets = {f"{name}, D {d}, 16k keys": draw(name, d, 16384) for name, d in SETS} | layers
    rows = []
    for title, qkv in sets.items():
        cells = []
        for lead in LEADS:
            error, heads = measure(qkv, "exact", lead)
            rescaled, turns = (np.mean([getattr(head, name) for head in heads]) for name in ("rescaled", "turns"))
            cells.append(f"{error:.4f}, {rescaled:.1f}, {turns:.0%}")
        rows.append([title, *cells])
    print()
    print_table(["error, rescalings a row, turns of a warp with one", *(f"{lead:g} octaves" for lead in LEADS)], rows)


if __name__ == "__main__":
    main()
