"""The exponential that attention_sm90 takes from a polynomial: good to 8 bits, and the same bits in its model."""

from __future__ import annotations

import numpy as np
from kernels.bounds import CUBIC_REACH, cubic_exp2

from cupy_intfa.kernels import compile_options
from cupy_intfa.ptxsim import GlobalMemory, launch
from cupy_intfa.ptxsim.compiler import compile_ptx

SOURCE = """
#include "intfa/ptx_math.cuh"
extern "C" __global__ void small(const u32* u, u32* p) { p[threadIdx.x] = exp2_cubic(u[threadIdx.x]); }
"""


def arguments() -> np.ndarray:
    """Every float16 of [0, 1], from the least."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    return np.sort(every[(every >= 0) & (every <= 1) & ~np.signbit(every)])


def meant(u: np.ndarray) -> np.ndarray:
    return 255 * np.exp2(CUBIC_REACH * (u.astype(np.float64) - 1))


def test_p_is_off_by_two_levels_at_most() -> None:
    p, exact = cubic_exp2(arguments()), meant(arguments())
    error = np.abs(p - exact)
    assert (error <= 2.5 * (0.02 + 0.012 * exact)).all(), error.max()
    assert error.max() < 2.1
    assert np.abs(np.rint(p) - np.rint(exact)).max() <= 2
    assert p[-1] == p.max() == 255, "P at its reference is R: keys that weigh alike stay so, and no byte wraps to 0"


def test_what_is_below_a_level_is_not_far_off_on_average() -> None:
    """An exact row sum adds thousands of them; even in log2, as the tail of a row's scores roughly is."""
    u = np.linspace(0, 1, 20001)
    u = u[meant(u) < 1]
    assert abs((cubic_exp2(u) - meant(u)).mean()) < 0.022, "levels"


def test_keys_that_weigh_nothing_add_nothing() -> None:
    assert (cubic_exp2(np.array([-np.inf, -60000.0, 0.0])) == 0).all()


def test_a_row_sums_to_what_it_should() -> None:
    """What it was fitted for: the error of the output, here of rows of scores like those of 4096 normal keys."""
    rng = np.random.default_rng(5)
    below = np.sort(rng.standard_normal((64, 4096)) * 1.4427, axis=1)
    below -= below[:, -1:]
    exact, p = np.exp2(below), cubic_exp2(1 + below / CUBIC_REACH) / 255
    assert abs(p.sum() / exact.sum() - 1) < 0.01


def test_the_model_has_the_bits_of_the_kernel() -> None:
    u = arguments()
    u = u[: len(u) // 2 * 2].view(np.uint32)
    ptx = compile_ptx(SOURCE, "sm_90a", compile_options(()))
    for start in range(0, len(u), 1024):
        some = u[start : start + 1024]
        memory = GlobalMemory()
        addresses = memory.allocate("u", some, writable=False), memory.allocate("p", some.nbytes)
        launch(ptx, "small", 1, len(some), addresses, memory)
        got = memory.read(addresses[1], some.nbytes).view(np.float16)
        np.testing.assert_array_equal(got, cubic_exp2(some.view(np.float16)).astype(np.float16))
