"""What rounding P must cost on N(0, 1), computed from the recipe alone: why one reference grows with S and another not.

Let scores be s = σz with z from N(0, 1) and σ² = |q|²/D, which is χ² with D degrees of freedom over D. A key has the
weight p = eˢ and is stored as y = round(R·p/eᵐ)·eᵐ/R, where eᵐ is the largest weight that P is relative to. Values are
independent of the weights and have mean 0, so an output, and its error, are sums of independent terms:

    |error|² / |output|² = Σ(α·y − p)² / Σp²,    α = Σp/Σy where the row sum is of the rounded P, else 1.

The step of y is eᵐ/R. While it is small, (y − p)² is step²/12 on average, whatever the key: the error is as large as
the step, and the step as large as the maximum. The maximum of n scores is about √(2 ln n), so

- relative to the maximum of 64 keys the step does not know how long the row is, and neither does the error;
- relative to the running maximum it grows like exp(√(2 ln S)): slower than any power of S, until everything is lost.

When R·p/eᵐ falls below ½ the weight is lost, and the error is the weight itself. The expectation below is taken of
the rounding itself, over z, σ and the maximum, so it has both regimes. It has no free constant.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from cupy_intfa.recipe import Recipe

_SCORES = 801  # nodes of z
_MAXIMA, _SPREADS, _TILES = 24, 9, 24  # strata of the maximum, of σ, and of the place in the row
KEY_TILE = 64  # keys that are rounded relative to one running maximum

Float64 = NDArray[np.float64]


def predict_rounding(recipe: Recipe, keys: int, head_dim: int) -> float:
    """Predict the relative RMSE that rounding P to integers adds on N(0, 1).

    Parameters
    ----------
    recipe : Recipe
        Its levels, reference and row sum count. P must be stored in integers, V not be folded into it.
    keys : int
        Skv.
    head_dim : int
        D.

    Returns
    -------
    float
        √(E|error|² / E|output|²), over rows.

    Raises
    ------
    ValueError
        For a recipe of which this is no model.

    Examples
    --------
    >>> from cupy_intfa.recipe import PRESETS
    >>> [round(predict_rounding(PRESETS["precise"], keys, 64), 4) for keys in (4096, 65536)]
    [0.0054, 0.0054]
    >>> [round(predict_rounding(PRESETS["fast"], keys, 64), 3) for keys in (4096, 65536)]
    [0.015, 0.029]
    """
    if not recipe.integer_pv or recipe.v_granularity == "token":
        raise ValueError(
            f"pv={recipe.pv!r} and v_granularity={recipe.v_granularity!r}: expected integers P, not folded"
        )
    return _predict(recipe.p_top, recipe.p_reference, recipe.key_block, recipe.row_sum, keys, head_dim)


@lru_cache
def _predict(top: int, reference: str, block: int, row_sum: str, keys: int, head_dim: int) -> float:
    seen = [min(block, keys)] if reference == "tile" else _lengths_seen(keys)
    counts = np.repeat(seen, _MAXIMA)[:, None]  # one line for each stratum of each maximum
    maxima = _maxima(seen)[:, None]
    z = np.linspace(-8.0, 8.0, _SCORES)
    below = np.exp(-z * z / 2) * (z <= maxima)  # weights: a factor falls out
    # One of the n keys is the maximum; the others are what is below it.
    weight = np.hstack([below / below.sum(axis=1, keepdims=True) * (1 - 1 / counts), 1 / counts]) / len(maxima)
    scores = np.hstack([np.broadcast_to(z, below.shape), maxima])
    error = output = 0.0
    for spread in np.sqrt(2 * special.gammaincinv(head_dim / 2, _middles(_SPREADS)) / head_dim):
        p, step = np.exp(spread * scores), np.exp(spread * maxima) / top
        y = np.minimum(np.rint(p / step), top) * step
        mean_p = float((weight * p).sum())
        alpha = mean_p / float((weight * y).sum()) if row_sum == "quantised" else 1.0
        # Both relative to (Σp)², by which a row is divided.
        error += float((weight * (alpha * y - p) ** 2).sum()) / mean_p**2
        output += float((weight * p**2).sum()) / mean_p**2
    return float(np.sqrt(error / output))


def _lengths_seen(keys: int) -> list[int]:
    """Give how many keys have been seen at some places of the row, evenly spread over it."""
    tiles = -(-keys // KEY_TILE)
    places = np.unique(np.ceil(_middles(min(_TILES, tiles)) * tiles).astype(int))
    return [min(int(place) * KEY_TILE, keys) for place in places]


def _maxima(seen: list[int]) -> Float64:
    """Give quantiles of the maximum of so many N(0, 1), for each of the numbers."""
    logs = np.log(_middles(_MAXIMA))  # the maximum of n is below x with probability Φ(x)ⁿ
    found: Float64 = np.concatenate([-special.ndtri(-np.expm1(logs / n)) for n in seen])
    return found


def _middles(n: int) -> Float64:
    """Give the middles of n equal parts of [0, 1]."""
    return (np.arange(n) + 0.5) / n
