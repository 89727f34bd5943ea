"""Where the elements of matrix fragments lie: which lane's register holds which row and column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cupy_intfa.ptxsim.lanes import Index


@dataclass(frozen=True)
class Layout:
    """Where each lane's elements lie in a matrix: rows and columns, (32, elements)."""

    rows: Index
    columns: Index


@cache
def layout_a(rows: int, depth: int, itemsize: int) -> Layout:
    """Lane 4g + t holds rows g and g + 8, and 4 bytes at 4t of each 16 bytes of depth.

    Parameters
    ----------
    rows, depth : int
        Of A: 8 or 16 rows.
    itemsize : int
        Bytes of an element.

    Returns
    -------
    Layout
        Register by register: row g, row g + 8, then the next 16 bytes of depth.

    Examples
    --------
    >>> layout = layout_a(16, 32, 1)
    >>> layout.rows[5].tolist()[:8], layout.columns[5].tolist()[:8]
    ([1, 1, 1, 1, 9, 9, 9, 9], [4, 5, 6, 7, 4, 5, 6, 7])
    """
    lane = np.arange(32)[:, None]
    per = 4 // itemsize  # elements of a register
    i = np.arange(rows * depth // 32)[None]
    register, element = i // per, i % per
    halves = rows // 8
    return Layout(lane // 4 + 8 * (register % halves), 4 * per * (register // halves) + per * (lane % 4) + element)


@cache
def layout_b(depth: int, itemsize: int) -> Layout:
    """Lane 4g + t holds column g of B, (depth, 8): 4 bytes at 4t of each 16 bytes of depth."""
    like = layout_a(8, depth, itemsize)
    return Layout(like.columns, like.rows)


@cache
def layout_d(rows: int, columns: int) -> Layout:
    """Lane 4g + t holds rows g and g + 8, and columns 2t and 2t + 1 of each 8."""
    lane = np.arange(32)[:, None]
    i = np.arange(rows * columns // 32)[None]
    halves = rows // 8
    return Layout(lane // 4 + 8 * (i // 2 % halves), 8 * (i // (2 * halves)) + 2 * (lane % 4) + i % 2)
