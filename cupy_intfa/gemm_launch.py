"""Launch a planned INT8 matrix product. No decisions are taken here: the plan has them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_intfa.gemm_ladder import Matrix
from cupy_intfa.gemm_plan import PARAMS, Copy, GemmPlan
from cupy_intfa.kernels import load_kernel
from cupy_intfa.launch import by_value
from cupy_intfa.tensor_map import tensor_map

_PACK_THREADS = 256
_RASTER = 16  # tiles of rows in a band: 132 blocks then cover 16 x 8 tiles, about a square of 128 x 256


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where everything lies in device memory; 0 for what is not there.

    Parameters
    ----------
    a, b, out : int
        Operands and output.
    packed_a, packed_b : int
        Room for the copies that the plan makes.
    scale_a, scale_b, bias : int
        float32.
    step_a, step_b : int
        1 for a scale per row or column, 0 for one scale.
    """

    a: int
    b: int
    out: int
    packed_a: int = 0
    packed_b: int = 0
    scale_a: int = 0
    scale_b: int = 0
    bias: int = 0
    step_a: int = 0
    step_b: int = 0


def launch_gemm(
    plan: GemmPlan,
    at: Addresses,
    load: Callable[..., Any] = load_kernel,
    make_map: Callable[..., Any] = tensor_map,
) -> None:
    """Launch copies and kernel on CuPy's current device and stream.

    Parameters
    ----------
    plan : GemmPlan
        What runs, on a GPU.
    at : Addresses
        Of the arrays.
    load : callable
        Where kernels come from: `load_kernel`, or its like of the simulator.
    make_map : callable
        Where tensor maps come from: `tensor_map`, or its like of the simulator.

    Raises
    ------
    ValueError
        For a plan of the NumPy backend.
    """
    kernel, device = plan.kernel, plan.device
    if kernel is None or device is None:
        raise ValueError("the plan runs on NumPy: there is nothing to launch")
    (copy_a, copy_b), problem = plan.copies, plan.problem
    a, a_strides = _operand(problem.a, copy_a, at.a, at.packed_a, device.ordinal, load)
    b, b_strides = _operand(problem.b, copy_b, at.b, at.packed_b, device.ordinal, load)
    m, n, depth = problem.shape
    if plan.rung != "naive":
        depth = problem.a.pitch
    addresses = (a, b, at.out, at.scale_a, at.scale_b, at.bias)
    params = PARAMS.pack(*addresses, *a_strides, *b_strides, m, n, depth, at.step_a, at.step_b, _RASTER)
    maps: tuple[Any, ...] = ()
    if kernel.boxes:
        tile = kernel.tile
        maps = (
            make_map(a, 1, (depth, m), (1, depth), (tile.k, tile.m)),
            make_map(b, 1, (depth, n), (1, depth), (tile.k, tile.n)),
        )
    function = load(kernel.source, plan.defines, device.ordinal, kernel.shared_bytes)
    function((plan.grid,), (kernel.threads,), (by_value(params), *maps), shared_mem=kernel.shared_bytes)


def _operand(
    x: Matrix, copy: Copy | None, address: int, packed: int, ordinal: int, load: Callable[..., Any]
) -> tuple[int, tuple[int, int]]:
    """Make the copy of an operand that the kernel reads, if there is one; give its address and strides."""
    if copy is None:
        return address, (x.row_stride, x.depth_stride)
    pack = load("gemm_pack", copy.defines, ordinal)
    sizes = (np.int64(x.row_stride), np.int64(x.depth_stride), np.int32(x.rows), np.int32(x.depth))
    pack((copy.grid,), (_PACK_THREADS,), (np.uint64(address), np.uint64(packed), *sizes))
    return packed, (x.pitch, 1)
