"""Blocks, groups and the order of keys: which keys share a scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array, seeds

from cupy_intfa.quantize.keys import (
    absmax_per_block,
    absmax_per_group,
    blocks_of,
    group_of_position,
    invert_index,
    scale_per_token,
    sorted_key_index,
    take_tokens,
)

LENGTHS = (1, 7, 8, 63, 64, 65, 127, 128, 129, 200, 257)
BLOCKS = (32, 64, 128)


def magnitudes(seed: int, length: int, levels: int) -> Array:
    """Draw sizes of keys, with many ties when the levels are few."""
    return np.random.default_rng(seed).integers(0, levels, (2, 2, length)).astype(np.float32)


def slots_of_window(first: int, last: int, block: int) -> list[int]:
    """List the stored positions of a window as ranks are dealt to them: block by block, group by group."""
    return sorted(range(first, last), key=lambda p: (p // block, (p % 8) // 2, p))


windows = st.sampled_from([(block, window) for block in BLOCKS for window in (64, 128, 256) if window >= block])


@given(st.sampled_from(LENGTHS), windows, seeds, st.sampled_from((2, 5, 10**6)))
def test_sorted_order_is_stable_sort_dealt_to_groups(
    length: int, sizes: tuple[int, int], seed: int, levels: int
) -> None:
    block, window = sizes
    magnitude = magnitudes(seed, length, levels)
    index = sorted_key_index(magnitude, window, block, np)
    assert index.dtype == np.int32
    for b, h in np.ndindex(2, 2):
        sizes_of = magnitude[b, h].tolist()
        for first in range(0, length, window):
            last = min(first + window, length)
            ranked = sorted(range(first, last), key=lambda j: (sizes_of[j], j))  # ties by index
            stored = [int(index[b, h, p]) for p in slots_of_window(first, last, block)]
            assert stored == ranked


@given(st.sampled_from(LENGTHS), windows, seeds)
def test_sorted_order_permutes_inside_windows(length: int, sizes: tuple[int, int], seed: int) -> None:
    block, window = sizes
    index = sorted_key_index(magnitudes(seed, length, 9), window, block, np)
    assert (np.sort(index, axis=-1) == np.arange(length)).all(), "not a permutation"
    assert (index // window == np.arange(length) // window).all(), "a key left its window"
    inverse = invert_index(index, np)
    assert (np.take_along_axis(index, inverse, axis=-1) == np.arange(length)).all()


def test_groups_of_a_sorted_window_hold_consecutive_ranks() -> None:
    magnitude = np.random.default_rng(3).permutation(128).astype(np.float32)[None, None]
    stored = magnitude[0, 0][sorted_key_index(magnitude, 128, 64, np)[0, 0]]
    for block in range(2):
        for group in range(4):
            positions = [p for p in range(64 * block, 64 * block + 64) if p % 8 // 2 == group]
            first = 64 * block + 16 * group
            assert stored[positions].tolist() == list(range(first, first + 16))


@pytest.mark.parametrize("length", LENGTHS)
def test_groups_and_blocks_follow_their_definition(length: int) -> None:
    assert group_of_position(length).tolist() == [p % 8 // 2 for p in range(length)]
    for block in BLOCKS:
        assert blocks_of(length, block) == len(range(0, length, block))


@given(st.sampled_from(LENGTHS), st.sampled_from(BLOCKS), seeds)
def test_absmax_per_block_and_group_are_those_of_a_loop(length: int, block: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, 2, length, 3)).astype(np.float32)
    per_block, per_group = absmax_per_block(x, block, np), absmax_per_group(x, block, np)
    count = blocks_of(length, block)
    assert per_block.shape == (1, 2, count, 3)
    assert per_group.shape == (1, 2, count, 4)
    for h, i in np.ndindex(2, count):
        part = np.abs(x[0, h, i * block : (i + 1) * block])
        assert per_block[0, h, i].tolist() == part.max(axis=0).tolist()
        for group in range(4):
            members = [part[p].max() for p in range(len(part)) if p % 8 // 2 == group]
            assert per_group[0, h, i, group] == max(members, default=0)


@given(st.sampled_from(LENGTHS), st.sampled_from(BLOCKS))
def test_scales_are_spread_to_the_tokens_that_share_them(length: int, block: int) -> None:
    """Each scale is a number that says whose it is."""
    count = blocks_of(length, block)
    shapes = {"tensor": (1, 2), "block": (1, 2, count), "group": (1, 2, count, 4), "token": (1, 2, length)}
    for granularity, shape in shapes.items():
        scale = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        spread = scale_per_token(scale, granularity, length, block, np)
        assert spread.shape == (1, 2, length)
        for h, p in np.ndindex(2, length):
            own = {"tensor": (), "block": (p // block,), "group": (p // block, p % 8 // 2), "token": (p,)}[granularity]
            assert spread[0, h, p] == scale[(0, h, *own)]


def test_take_tokens_reorders_both_ranks() -> None:
    x = np.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    index = np.array([[[2, 0, 1], [1, 2, 0]]])
    taken = take_tokens(x, index, np)
    assert taken[0, 0].tolist() == x[0, 0, [2, 0, 1]].tolist()
    assert taken[0, 1].tolist() == x[0, 1, [1, 2, 0]].tolist()
    assert take_tokens(x[..., 0], index, np).tolist() == taken[..., 0].tolist()
    assert take_tokens(x, None, np) is x
