"""What studies measure on: inputs drawn from seeds, or a transformer's on real text, with attention in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.data.families import make_qkv
from cupy_intfa.demo import layer_samples
from cupy_intfa.recipe import Recipe
from cupy_intfa.study.compile_ahead import Shapes, compile_ahead, shapes_of
from cupy_intfa.study.exact import attend_exactly

REAL = "real"
"""The set of data that is the layers of a transformer on real text, and not drawn from a seed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs and what attention on them is in float64.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D), float32
        Queries, keys and values. Rows do not feel each other, so a few queries stand for all.
    exact : ndarray (B, H, S, D), float64
        The output.
    """

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    exact: NDArray[np.float64]

    def first(self, rows: int) -> Trial:
        """Give the same with the first query rows only."""
        return replace(self, q=self.q[:, :, :rows], exact=self.exact[:, :, :rows])


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Settings of a study that looks at several sets of data.

    Parameters
    ----------
    data : tuple of str
        Names of the sets.
    heads, queries, keys, head_dim : int
        Of each trial, where the set leaves a choice.
    seeds : tuple of int
        One trial for each.
    """

    data: tuple[str, ...]
    heads: int = 2
    queries: int = 128
    keys: int = 2048
    head_dim: int = 64
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    @property
    def shape(self) -> dict[str, int]:
        """What `make_qkv` calls these sizes."""
        return {"heads": self.heads, "q_len": self.queries, "kv_len": self.keys, "head_dim": self.head_dim}

    def draw(self, data: str, backend: str) -> list[Trial]:
        """Make the trials of a set by `make_trials`."""
        return make_trials(data, self.seeds, self.shape, backend)

    def compile_ahead(self, recipes: Iterable[Recipe], backend: str) -> None:
        """Compile what recipes launch on a GPU for these sizes, and for those of the real activations."""
        real = [real_shapes()] if REAL in self.data else []
        compile_ahead(recipes, [shapes_of(**self.shape), *real], backend)


def real_shapes() -> Shapes:
    """Give the shapes of the real activations.

    Returns
    -------
    tuple of tuple of int
        Of q, and of k and v.

    Examples
    --------
    >>> real_shapes()
    ((1, 12, 224, 32), (1, 12, 224, 32))
    """
    sample = layer_samples()[0]
    return sample.q.shape, sample.k.shape


def make_trial(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], backend: str = "numpy") -> Trial:
    """Compute what a recipe is compared with.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D)
        Of any real dtype; kept in float32, because an output rounded to 16 bits would hide small errors.
    backend : str
        Where float64 attention runs, as in `attend_exactly`.

    Returns
    -------
    Trial
        With the output in float64.
    """
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    return Trial(q, k, v, attend_exactly(q, k, v, backend))


def make_trials(
    data: str, seeds: Iterable[int], shape: Mapping[str, Any] = MappingProxyType({}), backend: str = "numpy"
) -> list[Trial]:
    """Draw the inputs of a set of data.

    Parameters
    ----------
    data : str
        A family of `cupy_intfa.data.families`, or ``"real"``.
    seeds : iterable of int
        One trial for each; the real activations give one for each layer instead.
    shape : mapping of str to int
        ``heads``, ``kv_heads``, ``q_len``, ``kv_len`` and ``head_dim`` of `make_qkv`; the real ones have their own.
    backend : str
        Where float64 attention runs, as in `attend_exactly`.

    Returns
    -------
    list of Trial
        In the order of the seeds.

    Examples
    --------
    >>> shape = {"heads": 2, "q_len": 4, "kv_len": 16, "head_dim": 8}
    >>> [trial.exact.shape for trial in make_trials("normal", (0, 1), shape)]
    [(1, 2, 4, 8), (1, 2, 4, 8)]
    """
    if data == REAL:
        return [make_trial(x.q, x.k, x.v, backend) for x in layer_samples()]
    return [make_trial(*make_qkv(data, seed=seed, **shape), backend) for seed in seeds]
