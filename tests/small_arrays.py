"""Short arrays, written as lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from strategies import Array


def f32(values: Sequence[Any]) -> Array:
    """Make a float32 array."""
    return np.array(values, np.float32)


def i8(values: Sequence[int]) -> Array:
    """Make an int8 array."""
    return np.array(values, np.int8)


def u8(values: Sequence[int]) -> Array:
    """Make a uint8 array."""
    return np.array(values, np.uint8)
