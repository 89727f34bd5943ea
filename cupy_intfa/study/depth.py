"""Study: what becomes of the error of attention on its way through many layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention, explain
from cupy_intfa.metrics import compare
from cupy_intfa.recipe import Recipe, get_recipe
from cupy_intfa.reference import oracle
from cupy_intfa.study.compile_ahead import compile_ahead, shapes_of
from cupy_intfa.study.errors import study_recipes, summarise
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one

Array = NDArray[np.float64]
Attend = Callable[[Array, Array, Array], Array]  # (1, H, S, D) each
METRICS = ("relative_rmse", "cosine")
EXACT = "exact"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The stacks that are run.

    Parameters
    ----------
    depths : tuple of int
        Numbers of layers.
    heads, head_dim : int
        Their product is the width.
    tokens : int
        Of the one text.
    sharpness : float
        Standard deviation of the scores: at 1 attention is almost an average over all keys, which hides its error.
    seeds : tuple of int
        One stack, with weights and text of its own, for each.
    """

    depths: tuple[int, ...] = (32, 80)
    heads: int = 2
    head_dim: int = 64
    tokens: int = 256
    sharpness: float = 2.0
    seeds: tuple[int, ...] = (0, 1, 2)


def _measure(settings: Settings, backend: str) -> Iterator[Row]:
    """Run stacks of layers twice, with exact attention and with that of each recipe, and compare after each layer."""
    recipes = deep_recipes()
    shape = {"heads": settings.heads, "q_len": settings.tokens, "kv_len": settings.tokens}
    compile_ahead(recipes.values(), [shapes_of(**shape, head_dim=settings.head_dim)], backend)
    blank = np.zeros((1, settings.heads, settings.tokens, settings.head_dim), np.float32)
    ran = {
        name: explain(*(blank,) * 3, is_causal=True, recipe=r, backend=backend).kernel for name, r in recipes.items()
    }
    for depth in settings.depths:
        attends = {name: partial(_quantised, recipe, backend) for name, recipe in recipes.items()}
        runs = [run_stack(settings, depth, seed, {EXACT: _exactly, **attends}) for seed in settings.seeds]
        for name, layer in product(attends, shown_layers(depth)):
            found = [compare(run[name][layer - 1], run[EXACT][layer - 1]) for run in runs]
            errors = summarise(found, *METRICS)
            yield {"layers": depth, "layer": layer, "recipe": name, **errors, "ran": ran[name]}


def deep_recipes() -> dict[str, Recipe]:
    """Give the recipes of all studies, and ``half`` with Q and K in 4 bits.

    Returns
    -------
    dict of str to Recipe
        By the name that rows use.
    """
    return {**study_recipes(), "half, 4 bits": get_recipe("half", qk_bits=4)}


def shown_layers(depth: int) -> list[int]:
    """Choose layers to report: the powers of two, and the last.

    Parameters
    ----------
    depth : int
        Number of layers.

    Returns
    -------
    list of int
        Counted from 1.

    Examples
    --------
    >>> shown_layers(80)
    [1, 2, 4, 8, 16, 32, 64, 80]
    """
    return sorted({2**i for i in range(depth.bit_length()) if 2**i <= depth} | {depth})


def run_stack(settings: Settings, depth: int, seed: int, attends: Mapping[str, Attend]) -> dict[str, list[Array]]:
    """Run a text through a stack of random layers: x + attention(norm(x)), then x + mlp(norm(x)).

    Parameters
    ----------
    settings : Settings
        The sizes.
    depth : int
        Number of layers.
    seed : int
        Of weights and text.
    attends : mapping of str to callable
        Attention of (q, k, v), each (1, heads, tokens, head_dim). Each runs the whole stack on its own.

    Returns
    -------
    dict of str to list of ndarray (tokens, width), float64
        By name, the residual stream after each layer.
    """
    rng = np.random.default_rng((depth, seed))  # or 32 layers would be the first of 80
    width = settings.heads * settings.head_dim
    text = rng.standard_normal((settings.tokens, width))
    streams: dict[str, list[Array]] = {name: [] for name in attends}
    for _ in range(depth):
        wq, wk, wv, wo, wu, wd = (rng.standard_normal((width, width)) / width**0.5 for _ in range(6))
        for name, attend in attends.items():
            x = streams[name][-1] if streams[name] else text
            normal = norm(x)
            q, k, v = (_split(normal @ w, settings.heads) for w in (settings.sharpness * wq, wk, wv))
            x = x + _join(attend(q, k, v)) @ wo
            streams[name].append(x + np.maximum(norm(x) @ wu, 0.0) @ wd)
    return streams


def norm(x: Array) -> Array:
    """Divide each row by its root mean square.

    Parameters
    ----------
    x : ndarray (tokens, width)
        Rows.

    Returns
    -------
    ndarray (tokens, width)
        Rows whose elements have a mean square of 1.

    Examples
    --------
    >>> norm(np.array([[3.0, 3.0, 3.0, 3.0]])).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    scaled: Array = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    return scaled


def _split(x: Array, heads: int) -> Array:
    return x.reshape(1, len(x), heads, -1).swapaxes(1, 2)


def _join(x: Array) -> Array:
    joined: Array = x[0].swapaxes(0, 1).reshape(x.shape[2], -1)
    return joined


def _exactly(q: Array, k: Array, v: Array) -> Array:
    return oracle.attention(q, k, v, is_causal=True)[0]


def _quantised(recipe: Recipe, backend: str, q: Array, k: Array, v: Array) -> Array:
    q32, k32, v32 = (x.astype(np.float32) for x in (q, k, v))
    return np.asarray(attention(q32, k32, v32, is_causal=True, recipe=recipe, backend=backend), np.float64)


def _findings(rows: Rows) -> Iterator[str]:
    """Say how much the error grows from the first layer to the last, and what is left of the direction."""
    names = distinct(rows, "recipe")
    for depth in distinct(rows, "layers"):
        last, first = {"layers": depth, "layer": depth}, {"layers": depth, "layer": 1}
        for name in names:
            start, end = (one(rows, "relative_rmse", recipe=name, **at) for at in (first, last))
            cosine = one(rows, "cosine", recipe=name, **last)
            yield f"`{name}`, {depth} layers: {start:.3g} after the first, {end:.3g} at the end; cosine {cosine:.5f}."
        growths = [
            one(rows, "relative_rmse", recipe=name, **last) / one(rows, "relative_rmse", recipe=name, **first)
            for name in names
        ]
        yield (
            f"{depth} layers: the error grows by a factor of {min(growths):.1f} to {max(growths):.1f}, "
            f"{fmean(growths):.1f} on average; √{depth} is {depth**0.5:.1f}."
        )


STUDY = Study(
    name="depth",
    question="What becomes of the error of one attention after 32 and 80 layers?",
    setup=(
        "A stack of random layers with root-mean-square norm, causal attention, a two-layer network and residual sums, "
        "in float64; only attention is replaced. The residual stream after each layer is compared with that of exact "
        "attention. Errors travel on: each layer reads what the one before has made of them."
    ),
    limits=(
        "Weights are random, so nothing has been learnt that would damp an error or depend on one. Real activations "
        "have outlier channels and sinks which these stacks have not. Norms and linear layers are exact here, which a "
        "quantised model's are not."
    ),
    sizes={
        "quick": Settings(depths=(4,), heads=2, head_dim=32, tokens=64, seeds=(0,)),
        "small": Settings(),
        "full": Settings(heads=8, tokens=512),
    },
    measure=_measure,
    keys=("layers", "layer", "recipe"),
    values=("relative_rmse", "relative_rmse_spread", "cosine", "cosine_spread", "ran"),
    findings=_findings,
    table=Pivot(rows=("recipe",), columns=("layers", "layer"), value="relative_rmse"),
)
