"""The self-test: every preset on small problems against the oracle, and the promises about bits and NaN."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention, attention_quantized, quantize_qkv
from cupy_intfa.data.families import make_qkv
from cupy_intfa.metrics import compare
from cupy_intfa.quantize import QuantizedQKV
from cupy_intfa.recipe import PRESETS
from cupy_intfa.reference import oracle

Verdict = tuple[bool, str]

# Relative RMSE: 1.25 times the largest of 100 draws of each problem below, rounded up to two digits.
_LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "paper": 0.031,
        "paper_half": 0.013,
        "fast": 0.021,
        "precise": 0.018,
        "half": 0.014,
        "fp16": 0.00061,
        "fp8_e4m3": 0.076,
        "fp8_e5m2": 0.15,
    }
)


@dataclass(frozen=True)
class Check:
    """One line of the self-test.

    Parameters
    ----------
    name : str
        What was tried.
    passed : bool
        Whether it held.
    detail : str
        What was measured against which limit, or the error that was raised.
    """

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        """Put the verdict first."""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class _Problem:
    name: str
    sizes: Mapping[str, Any]  # arguments of make_qkv
    mask: Mapping[str, Any]

    def draw(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        return make_qkv("normal", **self.sizes)


_SQUARE = _Problem("square", {"heads": 2, "q_len": 256, "head_dim": 64}, {})
_CAUSAL = _Problem(
    "causal, grouped heads, odd sizes",
    {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 77, "head_dim": 40},
    {"is_causal": True},
)
_DECODE = _Problem(
    "five queries, 301 keys, causal",
    {"heads": 2, "q_len": 5, "kv_len": 301, "head_dim": 64},
    {"is_causal": True, "causal_alignment": "bottom_right"},
)


def self_test(backend: str = "auto") -> Iterator[Check]:
    """Try every preset; a check that raises is a check that failed.

    Parameters
    ----------
    backend : {"auto", "numpy", "cuda"}
        Where attention runs.

    Yields
    ------
    Check
        In order of preset.

    Examples
    --------
    >>> print(next(self_test("numpy")))
    ok    paper, square: relative RMSE 0.02 of the output and 0.0... of exp(lse), limit 0.031
    """
    for recipe in PRESETS:
        for problem in (_SQUARE, _CAUSAL, _DECODE):
            yield _attempt(f"{recipe}, {problem.name}", partial(_accuracy, recipe, problem, backend))
        for name, check in (
            ("strided and read-only input, layout bshd", _strided),
            ("quantised first, saved, loaded", _stored),
            ("NaN in q, infinity in k", _poisoned),
        ):
            yield _attempt(f"{recipe}, {name}", partial(check, recipe, backend))


def _attempt(name: str, check: Callable[[], Verdict]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _accuracy(recipe: str, problem: _Problem, backend: str) -> Verdict:
    arrays, limit = problem.draw(), _LIMITS[recipe]
    out, lse = attention(*arrays, recipe=recipe, return_lse=True, backend=backend, **problem.mask)
    expected, expected_lse = oracle.attention(*arrays, **problem.mask)
    errors = (compare(out, expected).relative_rmse, compare(np.exp(lse), np.exp(expected_lse)).relative_rmse)
    detail = f"relative RMSE {errors[0]:.3g} of the output and {errors[1]:.2g} of exp(lse), limit {limit:g}"
    return all(error <= limit for error in errors), detail  # which NaN, for a NaN out of place, is not


def _strided(recipe: str, backend: str) -> Verdict:
    arrays = _CAUSAL.draw()
    spread = [np.repeat(x.swapaxes(1, 2), 2, axis=-1)[..., ::2] for x in arrays]
    for x in spread:
        x.flags.writeable = False
    out = attention(*spread, is_causal=True, layout="bshd", recipe=recipe, backend=backend)
    return _same_bits(out.swapaxes(1, 2), attention(*arrays, is_causal=True, recipe=recipe, backend=backend))


def _stored(recipe: str, backend: str) -> Verdict:
    arrays = _CAUSAL.draw()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "qkv.npz"
        quantize_qkv(*arrays, recipe=recipe, backend=backend).save(file)
        out = attention_quantized(QuantizedQKV.load(file), is_causal=True, backend=backend)
    return _same_bits(out, attention(*arrays, is_causal=True, recipe=recipe, backend=backend))


def _same_bits(a: np.ndarray, b: np.ndarray) -> Verdict:
    different = int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))
    return different == 0, f"{different} of {a.size} elements differ in a bit"


def _poisoned(recipe: str, backend: str) -> Verdict:
    q, k, v = _CAUSAL.draw()
    q[0, 1, 7, 3] = np.nan
    k[1, 0, 76, 0] = np.inf  # the last key: the mask hides it from all rows but one
    out, lse = attention(q, k, v, is_causal=True, recipe=recipe, return_lse=True, backend=backend)
    reached = np.zeros(lse.shape, bool)
    reached[0, 1, 7] = True
    reached[1, :2] = True  # both query heads that read key head 0
    finite = np.isfinite(out).all(axis=-1) & np.isfinite(lse)
    nan = np.isnan(out).all(axis=-1) & np.isnan(lse)
    exact = np.array_equal(nan, reached) and np.array_equal(finite, ~reached)
    return exact, f"{int(nan.sum())} rows are NaN, expected the {int(reached.sum())} that they reach"
