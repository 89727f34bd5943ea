"""Which elements share a scale, and the reductions and broadcasts that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import array_api_compat
import numpy as np

from cupy_intfa.quantize.arithmetic import Array, Namespace

_SIZES = {"tensor": 0, "row": 0, "channel": 0, "group": 1, "block": 2, "flat": 1}  # kind → how many numbers size has


@dataclass(frozen=True)
class Granularity:
    """Which elements of an array share a scale.

    Parameters
    ----------
    kind : {"tensor", "row", "channel", "group", "block", "flat"}
        ``tensor``: all. ``row``: those that differ in the last index only (a token of an activation, an output channel
        of a weight (out, in)). ``channel``: those of one last index. ``group``: ``size`` neighbours along the last
        axis. ``block``: a rectangle of the last two axes. ``flat``: ``size`` neighbours in C order, across rows.
    size : int or tuple of int
        Elements along the axis for ``group`` and ``flat``, (rows, columns) for ``block``, nothing for the others.
        What does not fill a group is a shorter one.

    Raises
    ------
    ValueError
        If the kind is unknown or the size does not fit it.

    Examples
    --------
    >>> Granularity("group", 64).scale_shape((3, 100))
    (3, 2)
    >>> Granularity("channel").scale_shape((5, 3, 100))
    (1, 1, 100)
    """

    kind: str
    size: int | tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Make the size a tuple and check it."""
        object.__setattr__(self, "size", self.sizes)
        if self.kind not in _SIZES:
            raise ValueError(f"expected a granularity among {', '.join(_SIZES)}, got {self.kind!r}")
        if len(self.sizes) != _SIZES[self.kind] or any(n < 1 for n in self.sizes):
            raise ValueError(f"{self.kind!r} takes {_SIZES[self.kind]} sizes of 1 or more, got {self.sizes}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size as a tuple."""
        return (self.size,) if isinstance(self.size, int) else tuple(self.size)

    def spans(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the extent of a group along each axis; one axis alone for ``flat``.

        Raises
        ------
        ValueError
            If the array has too few axes.
        """
        if len(shape) < (2 if self.kind == "block" else 1):
            raise ValueError(f"granularity {self.kind!r} needs more axes than shape {shape} has")
        if self.kind == "flat":
            return self.sizes
        if self.kind == "tensor":
            return tuple(max(1, n) for n in shape)
        if self.kind == "channel":
            return (*(max(1, n) for n in shape[:-1]), 1)
        last = self.sizes or (max(1, shape[-1]),)
        return (1,) * (len(shape) - len(last)) + last

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of the scales of an array."""
        spans = self.spans(shape)
        return tuple(-(-n // span) for n, span in zip(self._walked(shape), spans, strict=True))

    def _walked(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),) if self.kind == "flat" else shape

    def _split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        pairs = zip(self.scale_shape(shape), self.spans(shape), strict=True)
        return tuple(n for pair in pairs for n in pair)


KERNEL_BLOCK = Granularity("flat", 64)  # what the kernels of formats share a scale among


def as_granularity(value: Granularity | str) -> Granularity:
    """Make a granularity of the name of one that has no size."""
    return value if isinstance(value, Granularity) else Granularity(value)


def namespace_of(*arrays: object) -> Namespace:
    """Give the library of some arrays.

    Parameters
    ----------
    *arrays
        NumPy arrays, or CuPy arrays.

    Returns
    -------
    module
        numpy or cupy.

    Raises
    ------
    TypeError
        If one is neither, or they are of both kinds.

    Examples
    --------
    >>> namespace_of(np.zeros(3)).__name__
    'numpy'
    """
    if all(isinstance(x, np.ndarray) for x in arrays):
        return np
    if all(array_api_compat.is_cupy_array(x) for x in arrays):
        import cupy

        return cupy
    found = ", ".join(type(x).__name__ for x in arrays)
    raise TypeError(f"expected NumPy arrays or CuPy arrays, not both, got {found}")


def reduce_groups(x: Array, granularity: Granularity, operation: str, xp: Namespace) -> Array:
    """Reduce each group to one element.

    Parameters
    ----------
    x : array
        Any shape of at least one axis.
    granularity : Granularity
        The groups.
    operation : {"max", "min", "any", "sum"}
        The ends of short groups are filled with their last element, which changes none of them, for a sum with 0.
    xp : module
        numpy or cupy.

    Returns
    -------
    array (granularity.scale_shape(x.shape))
        Of the dtype of x.
    """
    split = granularity._split(x.shape)
    walked = x.reshape(granularity._walked(x.shape))
    missing = [n * span - m for n, span, m in zip(split[::2], split[1::2], walked.shape, strict=True)]
    if any(missing):
        walked = xp.pad(walked, [(0, n) for n in missing], mode="constant" if operation == "sum" else "edge")
    return getattr(walked.reshape(split), operation)(axis=tuple(range(1, len(split), 2)))


def spread_groups(scale: Array, granularity: Granularity, shape: tuple[int, ...], xp: Namespace) -> Array:
    """Make scales broadcast against an array of a shape, as a view where they can be."""
    split = granularity._split(shape)
    if granularity.kind != "flat" and all(n == 1 or span == 1 for n, span in zip(split[::2], split[1::2], strict=True)):
        return scale
    paired = scale.reshape(tuple(n for blocks in scale.shape for n in (blocks, 1)))
    whole = tuple(n * span for n, span in zip(split[::2], split[1::2], strict=True))
    full = xp.broadcast_to(paired, split).reshape(whole)
    return full[tuple(slice(n) for n in granularity._walked(shape))].reshape(shape)
