"""Compile the kernels of a study before it starts, side by side: NVRTC compiles one at a time in each process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from cupy_intfa.attention import explain
from cupy_intfa.kernels import load_kernel
from cupy_intfa.recipe import Recipe

Shapes = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]  # of q, and of k and v: (B, H, S, D)
Kernel = tuple[str, tuple[str, ...], int, int]  # source, defines, number of the device, bytes of shared memory


def shapes_of(*, heads: int, q_len: int, kv_len: int, head_dim: int, kv_heads: int | None = None) -> Shapes:
    """Give the shapes of what `make_qkv` draws.

    Parameters
    ----------
    heads, q_len, kv_len, head_dim : int
        As in `make_qkv`.
    kv_heads : int, optional
        As in `make_qkv`.

    Returns
    -------
    tuple of tuple of int
        Of q, and of k and v.

    Examples
    --------
    >>> shapes_of(heads=8, kv_heads=2, q_len=5, kv_len=100, head_dim=64)
    ((1, 8, 5, 64), (1, 2, 100, 64))
    """
    return (1, heads, q_len, head_dim), (1, kv_heads or heads, kv_len, head_dim)


def list_kernels(recipes: Iterable[Recipe], shapes: Sequence[Shapes], backend: str, dtype: str) -> list[Kernel]:
    """List what recipes launch on a GPU.

    Parameters
    ----------
    recipes : iterable of Recipe
        Each on each shape.
    shapes : sequence of (tuple, tuple)
        Of q, and of k and v.
    backend : str
        As in `attention`.
    dtype : str
        Of q, k and v.

    Returns
    -------
    list of (str, tuple of str, int, int)
        Each specialisation once, those that attend in front, which take longest to compile. None where there is no
        GPU, or for a recipe without a kernel.

    Examples
    --------
    >>> from cupy_intfa.recipe import PRESETS
    >>> list_kernels(PRESETS.values(), [((1, 1, 8, 64), (1, 1, 8, 64))], "numpy", "float16")
    []
    """
    attend: dict[Kernel, None] = {}
    quantise: dict[Kernel, None] = {}
    for recipe in recipes:
        for q_shape, kv_shape in shapes:
            q, k, v = (np.broadcast_to(np.zeros((), dtype), shape) for shape in (q_shape, kv_shape, kv_shape))
            plan = explain(q, k, v, recipe=recipe, backend=backend)
            if plan.backend != "cuda" or plan.cuda is None:
                continue
            cuda, device = plan.cuda, plan.cuda.device.ordinal
            attend[cuda.source, cuda.defines, device, cuda.shared_bytes] = None
            aligned = plan.quantize[True]  # arrays of a study are contiguous, and its D multiples of 8
            quantise.update({(one.source, one.defines, device, 0): None for one in aligned.launches})
    return [*attend, *quantise]


def compile_ahead(
    recipes: Iterable[Recipe], shapes: Sequence[Shapes], backend: str, dtype: str = "float32"
) -> list[Kernel]:
    """Compile what recipes launch on a GPU into CuPy's disk cache, in as many processes as there are cores.

    Parameters
    ----------
    recipes : iterable of Recipe
        Each on each shape.
    shapes : sequence of (tuple, tuple)
        Of q, and of k and v.
    backend : str
        As in `attention`.
    dtype : str
        Of q, k and v.

    Returns
    -------
    list of (str, tuple of str, int, int)
        As `list_kernels`.

    Raises
    ------
    NotImplementedError
        For a backend that insists on a kernel which a recipe has not.
    """
    wanted = list_kernels(recipes, shapes, backend, dtype)
    if wanted:
        workers = min(len(wanted), os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_compile, wanted))
    return wanted


def _compile(kernel: Kernel) -> None:
    import cupy

    logging.getLogger("cupy_intfa").setLevel(logging.ERROR)  # it warns of each compilation: here there are many
    source, defines, device, shared_bytes = kernel
    with cupy.cuda.Device(device):
        load_kernel(source, defines, device, shared_bytes)
