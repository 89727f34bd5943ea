"""Number formats: fast rounding against the casts that define the formats, at every border."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from strategies import Array, seeds

from cupy_intfa.quantize.codes import FORMATS, round_to_format

DTYPES = {
    "float16": np.dtype(np.float16),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def grid(name: str) -> Array:
    """Every value of the format from 0 to the largest that is used, in order."""
    raw = np.arange(2 ** (8 * DTYPES[name].itemsize - 1), dtype=f"u{DTYPES[name].itemsize}")
    values = raw.view(DTYPES[name]).astype(np.float64)
    used: Array = values[np.isfinite(values) & (values <= FORMATS[name].largest)]
    return used


@pytest.mark.parametrize("name", DTYPES)
def test_format_is_the_dtype_it_names(name: str) -> None:
    fmt, values = FORMATS[name], grid(name)
    assert fmt.dtype == DTYPES[name]
    info: Any = ml_dtypes.finfo(fmt.dtype)  # type: ignore[no-untyped-call]
    assert (fmt.fraction_bits, fmt.smallest_normal) == (info.nmant, float(info.smallest_normal))
    assert values[0] == 0
    assert values[-1] == fmt.largest
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", DTYPES)
def test_rounds_as_the_cast_at_every_border(name: str) -> None:
    """At each value, each midpoint (a tie), and the float32 on either side of both."""
    values = grid(name)
    points = np.concatenate([values, (values[:-1] + values[1:]) / 2]).astype(np.float32)
    around = [np.nextafter(points, np.float32(side)) for side in (0, np.inf)]
    x = np.concatenate([points, *around])
    x = x[(x >= 0) & (x <= np.float32(FORMATS[name].largest))]
    expected = x.astype(DTYPES[name]).astype(np.float32)
    assert (round_to_format(x.copy(), FORMATS[name]).view(np.uint32) == expected.view(np.uint32)).all()


@given(seeds)
def test_rounds_as_the_cast_anywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, fmt in FORMATS.items():
        if name in DTYPES:
            x = np.minimum(2.0 ** rng.uniform(-149, np.log2(fmt.largest), 2000), fmt.largest).astype(np.float32)
            expected = x.astype(fmt.dtype).astype(np.float32)
            assert (round_to_format(x.copy(), fmt).view(np.uint32) == expected.view(np.uint32)).all()


def test_rounds_in_place() -> None:
    x = np.array([0.1, 0.2], np.float32)
    assert round_to_format(x, FORMATS["float8_e4m3"]) is x
    assert x.tolist() == [0.1015625, 0.203125]
