"""The relative RMSE of a recipe on N(0, 1), predicted from the recipe alone by uniform quantisation noise.

With scale 1/√D the scores of N(0, 1) are N(0, 1), out = Σ p_j·v_j has variance Σ p_j², and three noises add in square:

- Scores. Q and K are off by independent errors of variance σ_q², σ_k² per element, so a score is off by one of
  variance D·scale²·(σ_q² + σ_k² + σ_q²·σ_k²), and the output by Σ p_j·noise_j·(v_j − out): relative to √Σp_j² it is
  the standard deviation of the scores' noise.
- Values, off by independent errors of variance σ_v²: relative to √Σp_j² it is σ_v.
- P. A level is exp(m_ref)/R in the unit of exp(S), where m_ref is the reference of the key: rounding to it has
  variance exp(2·m_ref)/(12·R²), against exp(2·S), whose mean is e². A float P is off relatively, like V.

Rounding to integers of step s is off by s²/12, where s = absmax/127, absmax the maximum of n independent |N(0, 1)|.
Rounding to floats of f fraction bits is off by 2^-2f·x²/12 over the squared significand in [1, 2), which is
log-uniform: E[1/significand²] = 3/(8·ln 2).

Left out: rounding of P far below a level (then it is off by P itself, less than the model says), and correlations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from scipy import integrate, stats
from tolerances import FRACTION_BITS, storage_format

from cupy_intfa import Recipe

LARGEST = {"int8": 127.0, "int4": 7.0}


def mean_of_max(n: int, f: Callable[[float], float], *, absolute: bool = True) -> float:
    """Compute E f(max of n independent |N(0, 1)|), or of n N(0, 1)."""

    def integrand(x: float) -> float:
        cdf = 2 * stats.norm.cdf(x) - 1 if absolute else stats.norm.cdf(x)
        pdf = (2 if absolute else 1) * stats.norm.pdf(x)
        return float(f(x) * n * cdf ** (n - 1) * pdf)

    return float(integrate.quad(integrand, 0.0 if absolute else -12.0, 12.0, points=(2.0, 4.0), limit=200)[0])


def float_noise(fraction_bits: int) -> float:
    """Relative variance of rounding N(0, 1) to a float format."""
    return 2.0 ** (-2 * fraction_bits) / 12 * 3 / (8 * math.log(2))


def mean_square_absmax(recipe: Recipe, granularity: str, length: int, head_dim: int) -> float:
    """Mean square of the maximum that a scale is made from."""
    if granularity == "group" and recipe.key_window:
        # Keys sorted by size share in order of rank: the largest of group i has rank (i + 1)·(keys per group).
        keys, window = recipe.key_block // 4, recipe.key_window
        quantiles = (rank / (window + 1) for rank in range(keys, window + 1, keys))
        sizes = [stats.norm.ppf((1 + quantile ** (1 / head_dim)) / 2) for quantile in quantiles]
        return float(sum(size * size for size in sizes) / len(sizes))
    elements = {
        "tensor": length * head_dim,
        "block": min(recipe.key_block, length) * head_dim,
        "group": recipe.key_block // 4 * head_dim,
        "token": head_dim,
        "channel": length,
        "block_channel": min(recipe.key_block, length),
    }
    return mean_of_max(elements[granularity], lambda a: a * a)


def storage_noise(recipe: Recipe, operand: str, length: int, head_dim: int) -> float:
    """Variance of the error of one element of q, k or v."""
    fmt = storage_format(recipe, operand)
    if fmt in FRACTION_BITS:
        return float_noise(FRACTION_BITS[fmt])
    granularity = getattr(recipe, f"{operand}_granularity")
    return mean_square_absmax(recipe, granularity, length, head_dim) / (12 * LARGEST[fmt] ** 2)


@lru_cache
def mean_square_level(keys: int, spread: float) -> float:
    """Mean square of exp(m_ref), the maximum of ``keys`` scores of a standard deviation."""
    return mean_of_max(keys, lambda m: math.exp(2 * spread * m), absolute=False)


def p_noise(recipe: Recipe, length: int, head_dim: int, key_tile: int) -> float:
    """Variance that rounding P adds, relative to the output's."""
    if not recipe.integer_pv:
        return float_noise(FRACTION_BITS[recipe.pv])
    spread, size = 1.0, 1.0
    if recipe.v_granularity == "token":  # T = S + log s_v: wider, and a code of V counts 1/s_v
        log_mean = mean_of_max(head_dim, math.log)
        spread = math.sqrt(1 + mean_of_max(head_dim, lambda a: math.log(a) ** 2) - log_mean**2)
        size = math.exp(2 * log_mean) * mean_of_max(head_dim, lambda a: a**-2)

    if recipe.p_reference == "tile":
        mean = mean_square_level(min(key_tile, length), spread)
    else:
        ends = range(key_tile, length + 1, key_tile)
        mean = sum(mean_square_level(end, spread) for end in ends) / len(ends)
    return mean * size / math.exp(2) / (12 * recipe.p_top**2)


def predicted_rmse(recipe: Recipe, *, length: int, head_dim: int, key_tile: int) -> float:
    """Predict the relative RMSE on N(0, 1), for lengths that are multiples of every block."""
    q, k, v = (storage_noise(recipe, operand, length, head_dim) for operand in "qkv")
    return math.sqrt(q + k + q * k + v + p_noise(recipe, length, head_dim, key_tile))
