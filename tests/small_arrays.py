"""Short arrays, written as lists or drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import Array, seeds


def f32(values: Sequence[Any]) -> Array:
    """Make a float32 array."""
    return np.array(values, np.float32)


def i8(values: Sequence[int]) -> Array:
    """Make an int8 array."""
    return np.array(values, np.int8)


def u8(values: Sequence[int]) -> Array:
    """Make a uint8 array."""
    return np.array(values, np.uint8)


SHAPES = st.sampled_from(((1,), (13,), (3, 8), (5, 11), (2, 3, 9)))


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Draw a float32 array: normal, far from 0, constant, of exponents from subnormal to 10³⁷, or sparse."""
    rng, shape = np.random.default_rng(draw(seeds)), draw(SHAPES)
    family = draw(st.sampled_from(("normal", "shifted", "constant", "wide", "sparse", "zeros")))
    x = rng.standard_normal(shape)
    if family == "shifted":
        x = 1000 + x
    elif family == "constant":
        x = np.full(shape, x.flat[0])
    elif family == "wide":
        x = np.sign(x) * 10.0 ** rng.uniform(-44, 37, shape)
    elif family == "sparse":
        x = x * (rng.uniform(size=shape) < 0.2)
    elif family == "zeros":
        x = 0 * x
    return x.astype(np.float32)
