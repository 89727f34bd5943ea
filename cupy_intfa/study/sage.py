"""The published scheme of SageAttention 2, emulated: what it errs by where its own code cannot be imported.

Q and K in INT8, the mean key subtracted, a scale for each token of Q (theirs is shared by a few) and for each group of
16 keys as a thread of the tensor cores holds them; P and V in FP8 e4m3, a scale for each channel of V; sums in float32
(arXiv 2411.10958, with INT8 as in its code for Hopper). Its sums of 22 bits, tiles and 16-bit output are not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention
from cupy_intfa.recipe import get_recipe

NAME = "SageAttention 2, emulated"
_RECIPE = get_recipe("half", pv="float8_e4m3", p_levels=256, key_order="first_to_last", key_window=0)
_LARGEST = np.float32(448.0)  # of e4m3


def attend_as_sage2(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> NDArray[np.float32]:
    """Attend without a mask as SageAttention 2 does.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D), float32
        Queries, keys and values.

    Returns
    -------
    ndarray (B, H, Sq, D), float32
        The output.

    Examples
    --------
    >>> q = k = np.zeros((1, 1, 2, 1), np.float32); v = np.array([[[[1.0], [3.0]]]], np.float32)
    >>> attend_as_sage2(q, k, v).ravel().tolist()
    [2.0, 2.0]
    """
    largest = np.abs(v).max(axis=2, keepdims=True)
    scale = np.where(largest > 0.0, largest / _LARGEST, np.float32(1.0))
    out: NDArray[np.float32] = attention(q, k, v / scale, recipe=_RECIPE, backend="numpy") * scale
    return out
