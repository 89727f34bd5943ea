"""Rotation of Q and K by a block-diagonal Hadamard matrix, as a fixed butterfly."""

from __future__ import annotations

import numpy as np

from cupy_intfa.quantize.arithmetic import Array, Namespace, flush


def hadamard_block(head_dim: int) -> int:
    """Largest power of two that divides the head dimension.

    Examples
    --------
    >>> [hadamard_block(d) for d in (64, 96, 80, 33)]
    [64, 32, 16, 1]
    """
    return head_dim & -head_dim


def rotate(x: Array, xp: Namespace) -> Array:
    """Multiply the last axis by the orthonormal Hadamard matrix, block by block.

    The matrix is symmetric and its own inverse, so rotating twice gives ``x`` back up to rounding, and
    (Hq)·(Hk) = q·k.

    Parameters
    ----------
    x : array (..., D), float32
        Blocks of `hadamard_block` (D) consecutive channels are rotated.
    xp : module
        numpy or cupy.

    Returns
    -------
    array (..., D), float32
        Sums are formed with partners at distance 1, 2, 4, …, then multiplied by 1/√block.

    Examples
    --------
    >>> rotate(np.float32([1, 0, 0, 0]), np).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    shape, block = x.shape, hadamard_block(x.shape[-1])
    step = 1
    with np.errstate(over="ignore", invalid="ignore"):
        while step < block:
            pairs = x.reshape(*shape[:-1], shape[-1] // (2 * step), 2, step)
            low, high = pairs[..., 0, :], pairs[..., 1, :]
            x = flush(xp.stack((low + high, low - high), axis=-2), xp).reshape(shape)
            step *= 2
        return flush(x * np.float32(block**-0.5), xp)
