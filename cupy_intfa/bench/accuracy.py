"""The error of a contender on the inputs that it is timed on, from a sample of rows that the oracle affords."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.contenders import Inputs
from cupy_intfa.metrics import compare
from cupy_intfa.reference import oracle

STRETCHES, ROWS = 8, 8  # 128 rows in two heads: a relative RMSE of many thousands of elements, good to a percent or two


@dataclass(frozen=True)
class Sample:
    """Neighbouring query rows of one head.

    Parameters
    ----------
    batch, head : int
        Which.
    start, stop : int
        The rows.
    """

    batch: int
    head: int
    start: int
    stop: int

    def of(self, array: Any) -> Any:
        """Cut the rows out of (B, H, S, D)."""
        return array[self.batch, self.head, self.start : self.stop]


def choose_rows(case: Case) -> tuple[Sample, ...]:
    """Choose rows from the middle of equal stretches, in the first head and in the last.

    Parameters
    ----------
    case : Case
        The shape.

    Returns
    -------
    tuple of Sample
        At most twice 8 of at most 8 rows each.

    Notes
    -----
    The middle, because the first rows under a causal mask have large outputs and would decide the whole error.

    Examples
    --------
    >>> from cupy_intfa.bench.cases import square
    >>> [s.start for s in choose_rows(square(batch=1, heads=1, length=1024, head_dim=64))[:3]]
    [60, 188, 316]
    """
    stretch = max(1, case.q_len // STRETCHES)
    rows = min(ROWS, stretch)
    heads = dict.fromkeys(((0, 0), (case.batch - 1, case.heads - 1)))
    starts = range((stretch - rows) // 2, case.q_len - rows + 1, stretch)
    return tuple(Sample(b, h, start, start + rows) for b, h in heads for start in starts)


def expected_rows(case: Case, samples: tuple[Sample, ...], inputs: Inputs) -> NDArray[np.float64]:
    """Compute the sampled rows in float64.

    Parameters
    ----------
    case : Case
        The shape.
    samples : tuple of Sample
        From `choose_rows`.
    inputs : tuple of array
        q, k and v, NumPy or CuPy.

    Returns
    -------
    ndarray (rows, D), float64
        One below the other.
    """
    q, k, v = inputs
    group = case.heads // case.kv_heads
    rows = []
    for sample in samples:
        keys = slice(0, sample.stop if case.causal else case.kv_len)
        own = [to_host(x[sample.batch, sample.head // group, keys]) for x in (k, v)]
        arrays = [x[None, None] for x in (to_host(sample.of(q)), *own)]
        # The last of these rows sees the last of these keys, so the mask of the whole is that of its corner.
        out, _ = oracle.attention(*arrays, is_causal=case.causal, causal_alignment="bottom_right")
        rows.append(out[0, 0])
    return np.concatenate(rows)


def relative_rmse(out: Any, samples: tuple[Sample, ...], expected: NDArray[np.float64]) -> float:
    """Compare the sampled rows of an output with the expected ones.

    Parameters
    ----------
    out : array (B, H, S, D)
        NumPy, CuPy or torch.
    samples : tuple of Sample
        The rows.
    expected : ndarray (rows, D)
        From `expected_rows`.

    Returns
    -------
    float
        ‖out − expected‖ / ‖expected‖.

    Raises
    ------
    ArithmeticError
        If there is a NaN or an infinity among them.
    """
    found = compare(np.concatenate([to_host(sample.of(out)) for sample in samples]), expected)
    if found.non_finite is not None:
        raise ArithmeticError(str(found.non_finite).splitlines()[0])
    return found.relative_rmse


def to_host(x: Any) -> NDArray[Any]:
    """Copy an array of NumPy, CuPy or torch to NumPy."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "get"):
        return np.asarray(x.get())
    return np.asarray(x.float().cpu().numpy())
