"""Which elements share a scale: groups counted one by one, reductions, broadcasts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Array, seeds

from cupy_intfa.quantize.granularity import (
    Granularity,
    as_granularity,
    namespace_of,
    reduce_groups,
    spread_groups,
)

GRANULARITIES = (
    Granularity("tensor"),
    Granularity("row"),
    Granularity("channel"),
    Granularity("group", 3),
    Granularity("block", (2, 3)),
    Granularity("flat", 4),
)
SHAPES = ((1,), (7,), (4, 6), (5, 7), (2, 3, 8), (2, 5, 7), (1, 1, 1, 1))


def group_of(index: tuple[int, ...], shape: tuple[int, ...], spec: Granularity) -> tuple[int, ...]:
    """Say which scale an element has, by the definition of each kind."""
    if spec.kind == "tensor":
        return (0,) * len(shape)
    if spec.kind == "row":
        return (*index[:-1], 0)
    if spec.kind == "channel":
        return (*(0,) * (len(shape) - 1), index[-1])
    if spec.kind == "group":
        return (*index[:-1], index[-1] // 3)
    if spec.kind == "block":
        return (*index[:-2], index[-2] // 2, index[-1] // 3)
    return (int(np.ravel_multi_index(index, shape)) // 4,)


def cases() -> list[tuple[Granularity, tuple[int, ...]]]:
    every = itertools.product(GRANULARITIES, SHAPES)
    return [(spec, shape) for spec, shape in every if spec.kind != "block" or len(shape) > 1]


@pytest.mark.parametrize(("spec", "shape"), cases(), ids=str)
def test_groups_are_those_of_the_definition(spec: Granularity, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    members: dict[tuple[int, ...], list[float]] = {}
    for index in np.ndindex(shape):
        members.setdefault(group_of(index, shape, spec), []).append(float(x[index]))
    assert spec.scale_shape(shape) == tuple(np.max(list(members), axis=0) + 1)
    reductions = {name: reduce_groups(x, spec, name, np) for name in ("max", "min", "sum")}
    numbers = np.arange(len(members), dtype=np.float32).reshape(spec.scale_shape(shape))
    spread = np.broadcast_to(spread_groups(numbers, spec, shape, np), shape)
    for group, values in members.items():
        assert reductions["max"][group] == max(values)
        assert reductions["min"][group] == min(values)
        # float32 sums of n values in any order differ by n · 2⁻²⁴ of the sum of magnitudes at most.
        assert abs(reductions["sum"][group] - sum(values)) <= len(values) * 2**-24 * sum(map(abs, values))
    assert all(spread[index] == numbers[group_of(index, shape, spec)] for index in np.ndindex(shape))


@pytest.mark.parametrize("spec", GRANULARITIES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 5)])
def test_empty_arrays_have_no_groups_or_empty_ones(spec: Granularity, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert reduce_groups(x, spec, "max", np).shape == spec.scale_shape(shape)
    assert 0 in spec.scale_shape(shape)


@given(st.sampled_from(GRANULARITIES), seeds)
def test_a_view_is_read_in_its_own_order(spec: Granularity, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((6, 10)).astype(np.float32).T[::2]
    assert not x.flags.c_contiguous
    assert (reduce_groups(x, spec, "max", np) == reduce_groups(np.ascontiguousarray(x), spec, "max", np)).all()


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("rows", (), "expected a granularity among tensor, row, channel, group, block, flat, got 'rows'"),
        ("group", (), r"'group' takes 1 sizes of 1 or more, got \(\)"),
        ("group", 0, r"got \(0,\)"),
        ("block", 4, r"'block' takes 2 sizes"),
        ("tensor", 4, r"'tensor' takes 0 sizes"),
    ],
)
def test_bad_granularity_is_refused(kind: str, size: int | tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Granularity(kind, size)


def test_too_few_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'block' needs more axes than shape \(3,\) has"):
        Granularity("block", (1, 1)).scale_shape((3,))
    with pytest.raises(ValueError, match=r"'row' needs more axes than shape \(\) has"):
        Granularity("row").scale_shape(())


def test_a_name_is_a_granularity_without_size() -> None:
    assert as_granularity("row") == Granularity("row")
    assert as_granularity(GRANULARITIES[3]) is GRANULARITIES[3]
    assert Granularity("group", 4) == Granularity("group", (4,))


def test_only_numpy_and_cupy_are_taken() -> None:
    assert namespace_of(np.zeros(1), np.zeros(1)) is np
    with pytest.raises(TypeError, match="expected NumPy arrays or CuPy arrays, not both, got ndarray, list"):
        namespace_of(np.zeros(1), [0.0])


def array_of(*values: float) -> Array:
    return np.array(values, np.float32)


def test_ends_of_short_groups_count_once_in_a_sum() -> None:
    assert reduce_groups(array_of(1, 2, 3, 4, 5), Granularity("group", 4), "sum", np).tolist() == [10, 5]
