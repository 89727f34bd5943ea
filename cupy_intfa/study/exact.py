"""Attention in float64 as studies compare with it: by the oracle, or on a GPU where there are too many rows for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.device import gpu_for
from cupy_intfa.reference import oracle

_ROWS = 4096  # at a time: with 16k keys their scores take half a gigabyte


def attend_exactly(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], backend: str) -> NDArray[np.float64]:
    """Compute attention without a mask in float64.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D)
        Of any real dtype; Hq is a multiple of Hkv.
    backend : str
        As in `attention`: where it would use a GPU, the GPU computes this as well.

    Returns
    -------
    ndarray (B, Hq, Sq, D), float64
        On the host.

    Examples
    --------
    >>> q = k = np.zeros((1, 1, 2, 1)); v = np.array([[[[1.0], [3.0]]]])
    >>> attend_exactly(q, k, v, "numpy").ravel().tolist()
    [2.0, 2.0]
    """
    if gpu_for(backend) is None:
        return oracle.attention(q, k, v)[0]
    import cupy

    out: NDArray[np.float64] = cupy.asnumpy(attend_by_rows(cupy.asarray(q), cupy.asarray(k), cupy.asarray(v), cupy))
    return out


def attend_by_rows(q: Any, k: Any, v: Any, xp: Any, rows: int = _ROWS) -> Any:
    """Compute attention without a mask in float64, some query rows of a head after the other.

    Parameters
    ----------
    q, k, v : array (B, H, S, D)
        Of the library ``xp``.
    xp : module
        NumPy or CuPy.
    rows : int
        Rows of a head whose scores are held at a time.

    Returns
    -------
    array (B, Hq, Sq, D), float64
        Of the library ``xp``.
    """
    batch, heads, q_len, head_dim = q.shape
    group, scale = heads // k.shape[1], head_dim**-0.5
    out = xp.empty(q.shape, np.float64)
    for b, h in np.ndindex(batch, heads):
        keys, values = (x[b, h // group].astype(np.float64) for x in (k, v))
        for start in range(0, q_len, rows):
            own = slice(start, start + rows)
            scores = (q[b, h, own].astype(np.float64) * scale) @ keys.T
            p = xp.exp(scores - scores.max(axis=1, keepdims=True))
            out[b, h, own] = (p @ values) / p.sum(axis=1, keepdims=True)
    return out
