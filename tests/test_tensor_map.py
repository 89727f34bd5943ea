"""What the driver is told of a matrix, and what becomes of its answer, with a driver made up for the purpose."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cupy_intfa import tensor_map as module
from cupy_intfa.tensor_map import tensor_map


class Driver:
    """Stands in for cuTensorMapEncodeTiled: fills the map with its address, and keeps what it was told."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.calls = status, list[dict[str, Any]]()

    def __call__(self, to: int, dtype: int, rank: int, address: int, *rest: Any) -> int:
        dims, strides, box, element_strides, interleave, swizzle, promotion, fill = rest
        self.calls.append(
            {
                "aligned": to % 64 == 0,
                "dtype": dtype,
                "rank": rank,
                "address": address,
                "dims": list(dims),
                "strides": list(strides),
                "box": list(box),
                "element_strides": list(element_strides),
                "rest": (interleave, swizzle, promotion, fill),
            }
        )
        ctypes.memmove(to, bytes(range(128)), 128)
        return self.status


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(module, "_encode", lambda: made)
    tensor_map.cache_clear()
    yield made
    tensor_map.cache_clear()


def test_a_map_describes_its_matrix(driver: Driver) -> None:
    made = tensor_map(4096, 1, (128, 1000), (1, 128), (128, 64))
    assert made.tobytes() == bytes(range(128))
    assert isinstance(made, np.void), "CuPy passes it by value"
    assert driver.calls == [
        {
            "aligned": True,
            "dtype": 0,  # UINT8: there is no signed one
            "rank": 2,
            "address": 4096,
            "dims": [128, 1000],  # the inner one first
            "strides": [128],
            "box": [128, 64],
            "element_strides": [1, 1],
            "rest": (0, 3, 3, 0),  # swizzled over 128 bytes; 0 outside
        }
    ]


@pytest.mark.parametrize(("itemsize", "columns", "swizzle"), [(1, 32, 1), (1, 64, 2), (2, 32, 2), (2, 64, 3)])
def test_the_swizzle_is_as_wide_as_a_row_of_the_box(driver: Driver, itemsize: int, columns: int, swizzle: int) -> None:
    tensor_map(0, itemsize, (2 * columns, 8), (1, 2 * columns), (columns, 8))
    (call,) = driver.calls
    assert call["rest"][1] == swizzle
    assert call["strides"] == [2 * columns * itemsize]
    assert call["dtype"] == {1: 0, 2: 6}[itemsize]


def test_a_box_may_have_five_axes(driver: Driver) -> None:
    tensor_map(0, 2, (64, 2, 4, 4, 100), (1, 64, 512, 128, 2048), (32, 2, 4, 4, 4))
    (call,) = driver.calls
    assert (call["rank"], call["dims"], call["box"]) == (5, [64, 2, 4, 4, 100], [32, 2, 4, 4, 4])
    assert call["strides"] == [128, 1024, 256, 4096], "bytes, without the innermost"
    assert call["rest"][1] == 2


def test_equal_matrices_share_a_map(driver: Driver) -> None:
    maps = [tensor_map(address, 1, (64, 8), (1, 64), (64, 8)) for address in (0, 0, 256)]
    assert maps[0] is maps[1]
    assert len(driver.calls) == 2


def test_a_refusal_of_the_driver_says_what_was_asked(driver: Driver) -> None:
    driver.status = 1
    with pytest.raises(
        RuntimeError, match=r"CUresult 1 for an array of shape \(64, 8\), .* at 0x100, and boxes of \(64, 8\)"
    ):
        tensor_map(256, 1, (64, 8), (1, 64), (64, 8))
