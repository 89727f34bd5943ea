"""Bandwidth of the quantise kernels, launch by launch, as a share of a device copy; and their host cost.

Run it as ``python tools/bench_quantize.py`` on a machine with a GPU and CuPy. Each input byte and each output byte of a
launch counts once, whatever the launch reads again; of a whole recipe, the bytes of q, k, v and of the packing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy as cp
import numpy as np

from cupy_intfa.kernels import load_kernel
from cupy_intfa.launch import by_value
from cupy_intfa.packing import Packing
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.quantize.cuda import Launch, plan_quantize
from cupy_intfa.quantize.launch import is_vector, pack_params
from cupy_intfa.recipe import PRESETS, Recipe

RECIPES = {"one pass (token, block_channel)": Recipe(v_granularity="block_channel"), **PRESETS}


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Give the median time of some work on the device."""
    times = []
    for _ in range(repeats + 2):
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(cp.cuda.get_elapsed_time(start, stop))
    return float(statistics.median(times[2:]))


def bytes_of(launch: Launch, problem: AttentionProblem, packing: Packing, recipe: Recipe) -> int:
    """Count what a launch has to read and to write of q, k, v and the packing."""
    item = 8 if problem.dtype == "float64" else 4 if problem.dtype == "float32" else 2
    kv = item * problem.batch * problem.kv_heads * problem.kv_len * problem.head_dim
    q = item * problem.batch * problem.heads * problem.q_len * problem.head_dim
    size = {name: region.nbytes for name, region in packing.regions.items()}
    if launch.source == "quantize_statistics":
        return kv * (recipe.smooth_k + (recipe.smooth_v or recipe.v_granularity in ("tensor", "channel")))
    if launch.source == "quantize_rows":
        written = 0 if "ABSMAX=1" in launch.defines else sum(n for name, n in size.items() if name[0] in "qk")
        return q + kv + written
    return kv + size["v"] + size["v_scale"] if launch.source == "quantize_values" else 0


def bench(problem: AttentionProblem, name: str, arrays: tuple[Any, ...], copy: float, repeats: int) -> None:
    """Time a recipe and its launches, and print a line for each."""
    recipe = RECIPES[name]
    plan = plan_quantize(problem, recipe, is_vector(arrays))
    workspace = cp.empty(plan.packing.nbytes + plan.scratch_bytes, np.uint8)
    params = by_value(pack_params(problem, plan, arrays, workspace.data.ptr))
    device = cp.cuda.Device().id

    def run(launches: tuple[Launch, ...]) -> None:
        for launch in launches:
            kernel = load_kernel(launch.source, launch.defines, device)
            kernel((launch.grid,), (launch.threads,), (params,))

    def line(what: str, launches: tuple[Launch, ...], counted: int) -> None:
        spent = milliseconds(lambda: run(launches), repeats)
        rate = counted / spent * 1e3
        registers = ", ".join(str(load_kernel(x.source, x.defines, device).num_regs) for x in launches)
        print(f"{what:34s} {spent:8.3f} ms {rate / 1e12:6.2f} TB/s {100 * rate / copy:5.0f} %  registers {registers}")

    run(plan.launches)
    line(name, plan.launches, sum(x.nbytes for x in arrays) + plan.packing.nbytes)
    for launch in plan.launches:
        line("    " + launch.source, (launch,), bytes_of(launch, problem, plan.packing, recipe))


def host_microseconds(problem: AttentionProblem, recipe: Recipe, arrays: tuple[Any, ...], calls: int = 2000) -> float:
    """Give what the host spends on quantising, with nothing to wait for."""
    device = cp.cuda.Device().id
    workspace = cp.empty(1 << 24, np.uint8)

    def call() -> None:
        plan = plan_quantize(problem, recipe, is_vector(arrays))
        params = by_value(pack_params(problem, plan, arrays, workspace.data.ptr))
        for launch in plan.launches:
            load_kernel(launch.source, launch.defines, device)((launch.grid,), (launch.threads,), (params,))

    call()
    cp.cuda.Device().synchronize()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        cp.cuda.Device().synchronize()
    return 1e6 * statistics.median(times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(4, 32, 16384, 128), metavar=("B", "H", "S", "D"))
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32", "float64"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()

    shape = tuple(given.shape)
    problem = make_problem(shape, shape, shape, (given.dtype,) * 3)
    draw = cp.random.default_rng(0)
    arrays = tuple(draw.standard_normal(shape, dtype=np.float32).astype(given.dtype) for _ in range(3))
    copied = milliseconds(lambda: cp.copyto(arrays[1], arrays[0]), given.repeats)  # k is then q: as good as any
    copy = 2 * arrays[0].nbytes / copied * 1e3
    print(f"{shape} {given.dtype}: device copy {copy / 1e12:.2f} TB/s")
    for name in given.recipes:
        bench(problem, name, arrays, copy, given.repeats)
    small = (1, 2, 64, 64)
    tiny = tuple(cp.zeros(small, np.float16) for _ in range(3))
    for name in given.recipes:
        spent = host_microseconds(make_problem(small, small, small, ("float16",) * 3), RECIPES[name], tiny)
        print(f"host cost of {name}: {spent:.1f} us")


if __name__ == "__main__":
    main()
