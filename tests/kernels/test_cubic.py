"""The exponential that attention_sm90 takes from a polynomial: good to 8 bits, and the same bits in its model."""

from __future__ import annotations

import numpy as np
from kernels.bounds import CUBIC_FROM, cubic_exp2

from cupy_intfa.kernels import compile_options
from cupy_intfa.ptxsim import GlobalMemory, launch
from cupy_intfa.ptxsim.compiler import compile_ptx

TOP = np.float16(np.log2(255))  # of P at its reference, as the kernel rounds it
SOURCE = """
#include "intfa/ptx_math.cuh"
extern "C" __global__ void small(const u32* y, u32* p) { p[threadIdx.x] = exp2_cubic(y[threadIdx.x]); }
"""


def exponents() -> np.ndarray:
    """Every float16 up to that of the reference, from the least; -inf is the first."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    return np.sort(every[every <= TOP])


def test_p_is_off_by_a_level_or_so() -> None:
    y = exponents().astype(np.float64)
    p = cubic_exp2(y)
    error = np.abs(p - np.exp2(y))
    assert (error <= 1.25 * (0.02 + 0.012 * np.exp2(y))).all(), error.max()
    assert error.max() < 1.28
    assert np.abs(np.rint(p) - np.rint(np.exp2(y))).max() <= 2
    assert p[-1] == p.max() == 255, "P at its reference is R: keys that weigh alike stay so, and no byte wraps to 0"


def test_what_is_below_a_level_is_right_on_average() -> None:
    """An exact row sum adds thousands of them; even in log2, as the tail of a row's scores roughly is."""
    y = np.linspace(-12, 0, 20001)
    assert abs((cubic_exp2(y) - np.exp2(y)).mean()) < 0.025 * np.exp2(y).mean()


def test_keys_that_weigh_nothing_add_nothing() -> None:
    assert (cubic_exp2(np.array([-np.inf, -60000.0, CUBIC_FROM])) == 0).all()


def test_the_model_has_the_bits_of_the_kernel() -> None:
    y = exponents()
    y = y[: len(y) // 2 * 2].view(np.uint32)
    ptx = compile_ptx(SOURCE, "sm_90a", compile_options(()))
    for start in range(0, len(y), 1024):
        some = y[start : start + 1024]
        memory = GlobalMemory()
        addresses = memory.allocate("y", some, writable=False), memory.allocate("p", some.nbytes)
        launch(ptx, "small", 1, len(some), addresses, memory)
        got = memory.read(addresses[1], some.nbytes).view(np.float16)
        np.testing.assert_array_equal(got, cubic_exp2(some.view(np.float16)).astype(np.float16))
