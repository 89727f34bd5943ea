"""The oracle: attention in float64, written to be believed at sight. It imports NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def attention(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    *,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
) -> tuple[Float64, Float64]:
    """Compute softmax(scale · Q Kᵀ) V and its log-sum-exp in float64.

    Parameters
    ----------
    q : ndarray (B, Hq, Sq, D)
        Queries, any real dtype.
    k, v : ndarray (B, Hkv, Skv, D)
        Keys and values; query head h reads key head ``h // (Hq // Hkv)``.
    is_causal : bool
        Query i sees the keys j ≤ i (``top_left``) or j ≤ i + Skv − Sq (``bottom_right``).
    causal_alignment : {"top_left", "bottom_right"}, optional
        Needed when ``is_causal`` and Sq ≠ Skv; the two agree otherwise.
    scale : float, optional
        Factor of the scores; 1/√D if not given.

    Returns
    -------
    out : ndarray (B, Hq, Sq, D), float64
        A row that sees no key is 0.
    lse : ndarray (B, Hq, Sq), float64
        Natural logarithm of the softmax denominator; −inf for a row that sees no key.

    Raises
    ------
    ValueError
        When a causal mask over unequal lengths has no alignment.

    Notes
    -----
    Source: the definition of attention, arXiv 2409.16997 section 2.

    Examples
    --------
    >>> import numpy as np
    >>> q = k = np.zeros((1, 1, 2, 1)); v = np.array([[[[1.0], [3.0]]]])
    >>> out, lse = attention(q, k, v, is_causal=True)
    >>> out.ravel().tolist(), np.exp(lse).ravel().round(6).tolist()
    ([1.0, 2.0], [1.0, 2.0])
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (q_len, head_dim), kv_len = q.shape[-2:], k.shape[-2]
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    scores = (q @ np.swapaxes(k, -1, -2)) * (head_dim**-0.5 if scale is None else scale)
    if is_causal:
        if causal_alignment not in ("top_left", "bottom_right") and q_len != kv_len:
            raise ValueError(f"a causal mask over {q_len} queries and {kv_len} keys needs causal_alignment")
        offset = kv_len - q_len if causal_alignment == "bottom_right" else 0
        hidden = np.arange(kv_len) > np.arange(q_len)[:, None] + offset
        scores = np.where(hidden, -np.inf, scores)
    top = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = p.sum(axis=-1, keepdims=True)
    out = (p / np.where(total == 0.0, 1.0, total)) @ v
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return out, lse
