"""How keys are laid out in blocks and groups, and which keys share a scale."""

from __future__ import annotations

import numpy as np

from cupy_intfa.quantize.arithmetic import Array, Namespace

GROUPS = 4  # positions p of a block with equal (p mod 8) // 2: the columns that one thread of an MMA quad owns


def blocks_of(length: int, key_block: int) -> int:
    """Count key blocks, the last one possibly short."""
    return -(-length // key_block)


def group_of_position(length: int) -> np.ndarray:
    """Group of each stored position: ``(p mod 8) // 2``.

    Examples
    --------
    >>> group_of_position(10).tolist()
    [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    """
    return np.arange(length) % 8 // 2


def sorted_key_index(magnitude: Array, key_window: int, key_block: int, xp: Namespace) -> Array:
    """Order in which keys are stored when a recipe sorts them in windows.

    Inside each window the keys are ranked by magnitude (stable: ties by index). The ranks are dealt to the window's
    positions block by block and, inside a block, group by group, so that the keys which share a group scale have
    consecutive ranks. A short last window uses the positions it has: padding stays last.

    Parameters
    ----------
    magnitude : array (B, Hkv, Skv), float32
        Largest absolute value of each key.
    key_window, key_block : int
        Keys per window and per block.
    xp : module
        numpy or cupy.

    Returns
    -------
    array (B, Hkv, Skv), int32
        Original index of the key at each stored position.

    Examples
    --------
    >>> sorted_key_index(np.float32([[[3, 1, 2, 0]]]), 64, 64, np).tolist()
    [[[3, 1, 2, 0]]]
    """
    length = magnitude.shape[-1]
    position = np.arange(length)
    window = position // key_window
    slots = np.lexsort((position, group_of_position(length), position // key_block))
    padded = xp.full((*magnitude.shape[:-1], blocks_of(length, key_window) * key_window), np.inf, np.float32)
    padded[..., :length] = magnitude
    ranks = xp.argsort(padded.reshape(*magnitude.shape[:-1], -1, key_window), axis=-1, kind="stable")
    by_rank = ranks.reshape(padded.shape)[..., :length] + xp.asarray(window * key_window)
    stored = xp.empty(magnitude.shape, np.int32)
    stored[..., xp.asarray(slots)] = by_rank
    return stored


def take_tokens(x: Array, index: Array | None, xp: Namespace) -> Array:
    """Reorder axis 2 of (B, H, S) or (B, H, S, D) by an index per (batch, head); None keeps the order."""
    if index is None:
        return x
    return xp.take_along_axis(x, index if x.ndim == 3 else index[..., None], axis=2)


def invert_index(index: Array, xp: Namespace) -> Array:
    """Give the stored position of each original key."""
    return xp.argsort(index, axis=-1).astype(np.int32)


def absmax_per_block(x: Array, key_block: int, xp: Namespace) -> Array:
    """Largest absolute value per (block, channel): (B, H, S, D) → (B, H, blocks, D)."""
    *lead, length, width = x.shape
    count = blocks_of(length, key_block)
    padded = xp.zeros((*lead, count * key_block, width), np.float32)
    padded[..., :length, :] = xp.abs(x)
    return padded.reshape(*lead, count, key_block, width).max(axis=-2)


def absmax_per_group(x: Array, key_block: int, xp: Namespace) -> Array:
    """Largest absolute value per (block, group): (B, H, S, D) → (B, H, blocks, 4)."""
    *lead, length, _ = x.shape
    count = blocks_of(length, key_block)
    padded = xp.zeros((*lead, count * key_block), np.float32)
    padded[..., :length] = xp.abs(x).max(axis=-1)
    return padded.reshape(*lead, count, key_block // 8, GROUPS, 2).max(axis=(-3, -1))


def scale_per_token(scale: Array, granularity: str, length: int, key_block: int, xp: Namespace) -> Array:
    """Spread scales of Q or K over the stored tokens: any granularity → (B, H, S), float32 (a view where it can be)."""
    if granularity == "token":
        return scale
    position = xp.arange(length)
    if granularity == "tensor":
        return xp.broadcast_to(scale[..., None], (*scale.shape, length))
    if granularity == "block":
        return scale[..., position // key_block]
    return scale[..., position // key_block, position % 8 // 2]
