"""Named synthetic queries, keys and values: what papers measure on, what real models do, and the edges.

================  =====================================================================================
`normal`          N(0, 1), the first set of the paper (arXiv 2409.16997, section 4)
`uniform`         U(−½, ½)
`uniform01`       U(0, 1), the paper's uniform set as its authors' script draws it; the output hardly varies
`outlier`         N(0, 1) + N(0, 100)·Bernoulli(0.001), the set of FlashAttention-3 (arXiv 2407.08608, section 4.3)
`channel`         a sixteenth of K's channels large and far from 0, Q and V with a mean: like a language model
`sink_first`      the first four keys attract three quarters of the attention
`outlier_token`   one token in 64 of each array ten times as large
`constant_rows`   every row one value repeated, so every element is its row's absolute maximum
`zeros`           zeros
`huge`            N(0, 1)·10⁴, cut at 6·10⁴: close to float16's largest value, 65504
`tiny`            N(0, 1)·10⁻⁶: subnormal in float16
================  =====================================================================================
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

__all__ = ["FAMILIES", "make_qkv"]

Array = NDArray[np.float64]
Shape = tuple[int, int, int, int]  # batch, heads, tokens, head_dim
Family = Callable[[Generator, Shape, Shape], tuple[Array, Array, Array]]

DTYPES = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


def make_qkv(
    family: str,
    *,
    batch: int = 1,
    heads: int = 4,
    kv_heads: int | None = None,
    q_len: int = 256,
    kv_len: int | None = None,
    head_dim: int = 64,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Draw queries, keys and values of a named family; equal arguments give equal arrays.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`; the head of this module describes each.
    batch, heads : int
        Of q.
    kv_heads : int, optional
        Heads of k and v, a divisor of `heads`; `heads` if left out.
    q_len : int
        Tokens of q.
    kv_len : int, optional
        Tokens of k and v; `q_len` if left out.
    head_dim : int
        Channels.
    seed : int
        Seeds `numpy.random.default_rng`.
    dtype : dtype
        float16, bfloat16, float32 or float64. The values are drawn in float64 and rounded to it once.

    Returns
    -------
    q : (batch, heads, q_len, head_dim) of `dtype`
        Queries.
    k, v : (batch, kv_heads, kv_len, head_dim) of `dtype`
        Keys and values.

    Raises
    ------
    ValueError
        If the family is unknown, a size is below 1, or `kv_heads` does not divide `heads`.
    TypeError
        If `dtype` is not one of the four.

    Examples
    --------
    >>> q, k, v = make_qkv("outlier", heads=8, kv_heads=2, q_len=5, kv_len=100, head_dim=64, seed=3)
    >>> q.shape, k.shape, v.dtype
    ((1, 8, 5, 64), (1, 2, 100, 64), dtype('float32'))
    >>> sorted(FAMILIES)[:3]
    ['channel', 'constant_rows', 'huge']
    """
    if family not in FAMILIES:
        raise ValueError(f"expected a family among {', '.join(FAMILIES)}, got {family!r}")
    kv_heads = heads if kv_heads is None else kv_heads
    kv_len = q_len if kv_len is None else kv_len
    q_shape, kv_shape = (batch, heads, q_len, head_dim), (batch, kv_heads, kv_len, head_dim)
    if min(q_shape + kv_shape) < 1:
        raise ValueError(f"expected sizes of 1 or more, got q {q_shape} and k, v {kv_shape}")
    if heads % kv_heads:
        raise ValueError(f"expected kv_heads to divide heads, got {kv_heads} and {heads}")
    if np.dtype(dtype) not in DTYPES:
        raise TypeError(f"expected dtype {', '.join(kind.name for kind in DTYPES)}, got {np.dtype(dtype)}")
    q, k, v = FAMILIES[family](np.random.default_rng(seed), q_shape, kv_shape)
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def _alike(draw: Callable[[Generator, Shape], Array]) -> Family:
    """Make the family that draws q, k and v in the same way, in this order."""

    def family(rng: Generator, q_shape: Shape, kv_shape: Shape) -> tuple[Array, Array, Array]:
        return draw(rng, q_shape), draw(rng, kv_shape), draw(rng, kv_shape)

    return family


def _normal(rng: Generator, shape: Shape) -> Array:
    return rng.standard_normal(shape)


def _uniform(rng: Generator, shape: Shape) -> Array:
    return rng.random(shape) - 0.5


def _uniform01(rng: Generator, shape: Shape) -> Array:
    return rng.random(shape)


def _outlier(rng: Generator, shape: Shape) -> Array:
    # N(0, 100) has variance 100: ten times a standard normal.
    return rng.standard_normal(shape) + 10.0 * rng.standard_normal(shape) * (rng.random(shape) < 0.001)


def _channel(rng: Generator, q_shape: Shape, kv_shape: Shape) -> tuple[Array, Array, Array]:
    # 4 and ±10: at head_dim 128 the paper's recipe then errs by 0.02 and the best 8-bit ones by 0.004, as measured on
    # sets made to look like a language model's. At least one channel, others in each head.
    q, k, v = 1.0 + _normal(rng, q_shape), _normal(rng, kv_shape), 1.0 + _normal(rng, kv_shape)
    batch, heads, _, head_dim = kv_shape
    channels = (batch, heads, 1, head_dim)
    large = _chosen(rng, channels, axis=3)
    bias = 10.0 * rng.choice([-1.0, 1.0], channels)
    return q, np.where(large, 4.0 * k + bias, k), v


def _sink_first(rng: Generator, q_shape: Shape, kv_shape: Shape) -> tuple[Array, Array, Array]:
    # Every query leans √head_dim towards a unit vector u that all keys are orthogonal to. Adding x·u to a key then
    # raises its logit by x (give or take the query's own N(0, 1)/√head_dim), and the other logits stay N(0, 1). With
    # x = ln(3·others/sinks) the sinks outweigh the others three to one.
    q, k, v = _normal(rng, q_shape), _normal(rng, kv_shape), _normal(rng, kv_shape)
    batch, heads, kv_len, head_dim = kv_shape
    u = rng.standard_normal((batch, heads, 1, head_dim))
    u /= np.linalg.norm(u, axis=3, keepdims=True)
    k -= (k * u).sum(axis=3, keepdims=True) * u
    sinks = min(4, kv_len)
    k[:, :, :sinks] += math.log(3.0 * max(kv_len - sinks, sinks) / sinks) * u
    return q + math.sqrt(head_dim) * np.repeat(u, q_shape[1] // heads, axis=1), k, v


def _outlier_token(rng: Generator, shape: Shape) -> Array:
    return _normal(rng, shape) * np.where(_chosen(rng, (*shape[:3], 1), axis=2, one_in=64), 10.0, 1.0)


def _constant_rows(rng: Generator, shape: Shape) -> Array:
    return np.broadcast_to(rng.standard_normal((*shape[:3], 1)), shape)


def _zeros(rng: Generator, shape: Shape) -> Array:
    return np.zeros(shape)


def _huge(rng: Generator, shape: Shape) -> Array:
    return 1e4 * _normal(rng, shape).clip(-6.0, 6.0)


def _tiny(rng: Generator, shape: Shape) -> Array:
    return 1e-6 * _normal(rng, shape)


def _chosen(rng: Generator, shape: Shape, *, axis: int, one_in: int = 16) -> NDArray[np.bool_]:
    """Choose exactly one place in `one_in` along an axis, and at least one."""
    rank = rng.random(shape).argsort(axis=axis)
    chosen: NDArray[np.bool_] = rank < max(1, shape[axis] // one_in)
    return chosen


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "normal": _alike(_normal),
        "uniform": _alike(_uniform),
        "uniform01": _alike(_uniform01),
        "outlier": _alike(_outlier),
        "channel": _channel,
        "sink_first": _sink_first,
        "outlier_token": _alike(_outlier_token),
        "constant_rows": _alike(_constant_rows),
        "zeros": _alike(_zeros),
        "huge": _alike(_huge),
        "tiny": _alike(_tiny),
    }
)
