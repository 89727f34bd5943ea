"""A layer of a BERT-style encoder: linear layers of any kind, attention by any recipe, the rest in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_intfa.attention import attention
from cupy_intfa.quantize.arithmetic import Array, Namespace
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.recipe import Recipe, get_recipe

Linear = Callable[[Array], Array]  # (…, K) to (…, N), float32 both: a FloatLinear, QuantizedLinear, ScaledLinear
# Those of an EncoderLayer in the order in which data pass, and what checkpoints of BERT call them.
LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "expand": "intermediate.dense",
    "contract": "output.dense",
}


@dataclass(frozen=True, eq=False)
class FloatLinear:
    """A linear layer as it was trained: y = x · weightᵀ + bias.

    Parameters
    ----------
    weight : array (N, K), float32
        Outputs by inputs.
    bias : array (N,), float32
        Added at the end.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> FloatLinear(np.float32([[1, 2]]), np.float32([3]))(np.float32([[10, 1]])).tolist()
    [[15.0]]
    """

    weight: Array
    bias: Array

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"weight has shape {self.weight.shape}, bias {self.bias.shape}: expected (outputs, inputs), (outputs,)"
            )

    def __call__(self, x: Array) -> Array:
        """Multiply (…, K) by the weight and add the bias."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class ScaledLinear:
    """A linear layer whose inputs are divided first: what AWQ and SmoothQuant make (`ScaledWeight`).

    Parameters
    ----------
    linear : callable
        On the weight that was multiplied by the divisor.
    divisor : array (K,), float32
        One for each input channel.

    Examples
    --------
    >>> doubled = FloatLinear(np.float32([[2, 2]]), np.float32([0]))
    >>> ScaledLinear(doubled, np.float32([2, 1]))(np.float32([[3, 5]])).tolist()
    [[13.0]]
    """

    linear: Linear
    divisor: Array

    def __call__(self, x: Array) -> Array:
        """Divide (…, K), then multiply."""
        return self.linear(x / self.divisor)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Mean 0 and variance 1 for each token, then a factor and an offset for each channel.

    Parameters
    ----------
    weight, bias : array (width,), float32
        The factors and the offsets.
    epsilon : float
        Added to the variance; BERT's, if not given.

    Examples
    --------
    >>> LayerNorm(np.float32([1, 10]), np.float32([0, 5]))(np.float32([[2, 4]])).tolist()
    [[-1.0, 15.0]]
    """

    weight: Array
    bias: Array
    epsilon: float = 1e-12

    def __call__(self, x: Array) -> Array:
        """Normalise the last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / namespace_of(x).sqrt(variance + np.float32(self.epsilon)) * self.weight + self.bias


@dataclass(frozen=True, eq=False, kw_only=True)
class EncoderLayer:
    """Attention and a two-layer perceptron, each added to its input and then normalised.

    Every linear layer may be of another kind. With `QuantizedLinear` of INT8 activations and an INT8 recipe all six
    matrix products, and both of attention, multiply integers; softmax, GELU and the normalisations stay in float32.

    Parameters
    ----------
    query, key, value, attended : callable
        Linear layers (…, width) → (…, width): before attention, and behind it.
    attention_norm : LayerNorm
        After the sum of the input and attention.
    expand, contract : callable
        Linear layers of the perceptron, with a GELU between them.
    output_norm : LayerNorm
        After the sum of that and the perceptron.
    heads : int
        Of attention; they divide the width.
    recipe : str or Recipe or None
        Numerics of attention, as for `attention`; None for plain float32, to compare with.

    Raises
    ------
    ValueError
        For a number of heads that does not divide the width, or an unknown recipe.
    TypeError
        For a recipe of another type.

    Notes
    -----
    The layer of arXiv 1810.04805. There is no mask: sentences of a batch have one length.

    Examples
    --------
    >>> same = FloatLinear(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    >>> linears = dict.fromkeys(LINEARS, same)
    >>> norm = LayerNorm(np.ones(4, np.float32), np.zeros(4, np.float32))
    >>> layer = EncoderLayer(**linears, attention_norm=norm, output_norm=norm, heads=2, recipe="fast")
    >>> layer(np.float32([[[1, 2, 3, 4], [1, 2, 3, 4]]])).round(2).tolist()
    [[[-1.17, -0.60, 0.29, 1.48], [-1.17, -0.60, 0.29, 1.48]]]
    """

    query: Linear
    key: Linear
    value: Linear
    attended: Linear
    attention_norm: LayerNorm
    expand: Linear
    contract: Linear
    output_norm: LayerNorm
    heads: int
    recipe: str | Recipe | None = None

    def __post_init__(self) -> None:
        """Check heads and recipe."""
        width = len(self.output_norm.weight)
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"heads={self.heads}: expected a number that divides the width {width}")
        if self.recipe is not None:
            get_recipe(self.recipe)

    def __call__(self, x: Array) -> Array:
        """Run the layer.

        Parameters
        ----------
        x : array (texts, tokens, width), float32
            NumPy or CuPy; never written. Every token is seen by all of its text.

        Returns
        -------
        array (texts, tokens, width), float32
            What the next layer takes.
        """
        x = self.attention_norm(x + self.attended(self._attend(x)))
        return self.output_norm(x + self.contract(gelu(self.expand(x))))

    def _attend(self, x: Array) -> Array:
        q, k, v = (linear(x).reshape(*x.shape[:2], self.heads, -1) for linear in (self.query, self.key, self.value))
        if self.recipe is None:
            out = _plain_attention(q, k, v, namespace_of(x))
        else:
            out = attention(q, k, v, layout="bshd", recipe=self.recipe)
        return out.reshape(x.shape)


def gelu(x: Array) -> Array:
    """Weigh each value by the share of N(0, 1) below it: arXiv 1606.08415, by erf and not by tanh.

    Parameters
    ----------
    x : array, float32
        NumPy or CuPy.

    Returns
    -------
    array, float32
        0.5 · x · (1 + erf(x / √2)).

    Examples
    --------
    >>> gelu(np.float32([-1, 0, 1])).tolist()
    [-0.1586..., 0.0, 0.8413...]
    """
    return 0.5 * x * (1 + _special(namespace_of(x)).erf(x * math.sqrt(0.5)))


def _plain_attention(q: Array, k: Array, v: Array, xp: Namespace) -> Array:
    """Attend in float32, without blocks: (texts, tokens, heads, head_dim) each."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights @ v / weights.sum(axis=-1, keepdims=True)).swapaxes(1, 2)


def _special(xp: Namespace) -> Any:
    if xp is np:
        import scipy.special  # a tenth of a second, which those who never come here need not wait

        return scipy.special
    import cupyx.scipy.special

    return cupyx.scipy.special
