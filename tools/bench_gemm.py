"""Rates of the INT8 GEMM ladder beside torch._int_mm and CuPy, as a table and, with ``--output``, as JSON.

Run it as ``python tools/bench_gemm.py --output notebooks/results/gemm_nvidia-h200.json`` on a machine with a GPU, CuPy
and torch. A call is timed as a user makes it, its output allocated and a row-major B transposed, with cold inputs, all
contenders of a shape in turn; those without tiles, which take 1.2 s for 8192^3, in turns of their own, and fewer. Every
product is compared with the first contender's. The file is written anew after each shape, so that what was measured is
kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np
from results_file import make_stamp, write_results

from cupy_intfa.bench.timing import Budget, EventTimer, Timing, interleave
from cupy_intfa.gemm import explain_int8_matmul, int8_matmul
from cupy_intfa.gemm_ladder import RUNGS

CUPY = "CuPy int8 @ int8"
SLOW = ("naive", CUPY)
SLOW_SHARE = 0.25  # of the time for the rounds of the others
LEAST, SLOW_LEAST = 5, 3  # rounds


@dataclass(frozen=True)
class Shape:
    """A product and the layout of its B."""

    m: int
    n: int
    k: int
    b: str = "column-major"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k

    def __str__(self) -> str:
        """Give the sides, and the layout of B."""
        return f"{self.m:5d} x {self.n} x {self.k}, B {self.b}"


SHAPES = (
    Shape(8192, 8192, 8192),
    Shape(8192, 8192, 8192, "row-major"),
    Shape(4096, 4096, 4096),
    Shape(2048, 2048, 2048),
    *(Shape(m, 8192, 8192) for m in (1, 16, 32, 64)),
)


def contenders(shape: Shape, a: Any, b: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the calls that can run the shape on this GPU."""
    for rung in ("auto", *RUNGS):
        try:
            explain_int8_matmul(a, b, backend=rung)
        except NotImplementedError:
            continue
        yield rung, partial(int8_matmul, a, b, backend=rung)
    try:
        import torch
    except ImportError:
        pass
    else:
        # The layout that it is given is the caller's; it refuses products of fewer than 17 rows.
        if shape.m > 16:
            yield "torch._int_mm", partial(torch._int_mm, torch.as_tensor(a), torch.as_tensor(b.T).T)
    yield CUPY, partial(cp.matmul, a, b)


def agree(name: str, found: Any, wanted: Any) -> None:
    """Raise where a product is another; CuPy's stays in int8, which wraps."""
    if not (cp.asarray(found) == (wanted.astype(np.int8) if name == CUPY else wanted)).all():
        raise ArithmeticError(f"{name} gives another product than the others")


def measure(shape: Shape, seconds: float) -> Iterator[dict[str, Any]]:
    """Time all contenders on a shape."""
    draw = cp.random.default_rng(0)
    a = draw.integers(-128, 128, (shape.m, shape.k)).astype(np.int8)
    b = draw.integers(-128, 128, (shape.n, shape.k)).astype(np.int8).T
    b = b if shape.b == "column-major" else cp.ascontiguousarray(b)
    calls = dict(contenders(shape, a, b))
    wanted = int8_matmul(a, b)
    for name, call in calls.items():
        agree(name, call(), wanted)  # compiles, too
    timer, times = EventTimer(), dict[str, Timing]()
    for names, budget in (
        ([name for name in calls if name not in SLOW], Budget(seconds=seconds, least=LEAST)),
        ([name for name in calls if name in SLOW], Budget(seconds=SLOW_SHARE * seconds, least=SLOW_LEAST)),
    ):
        print(f"{shape}: {', '.join(names)}, at least {budget.least} rounds …", flush=True)
        times |= interleave({name: [calls[name]] for name in names}, timer, budget)
    for name in calls:
        timing = times[name]
        plan = explain_int8_matmul(a, b, backend=name) if name in ("auto", *RUNGS) else None
        yield {
            **asdict(shape),
            "name": name,
            "rung": plan.rung if plan else None,
            "tile": asdict(plan.kernel.tile) if plan and plan.kernel else None,
            "operations_per_s": shape.operations / timing.median_ms * 1e3,
            # A and B read once, the product written once.
            "bytes_per_s": (a.nbytes + b.nbytes + 4 * shape.m * shape.n) / timing.median_ms * 1e3,
            **asdict(timing),
        }


def main() -> None:
    """Print the table, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a shape (%(default)s)")
    parser.add_argument("--output", type=Path, help="a .json to write")
    parser.add_argument("--commit", help="what git describe says, where there is no checkout")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for row in measure(shape, asked.seconds):
            rows.append(row)
            print(
                f"{shape!s:36s} {row['name']:17s} {row['median_ms']:9.4f} ms "
                f"{row['operations_per_s'] / 1e12:7.1f} TOPS {row['bytes_per_s'] / 1e12:5.2f} TB/s",
                flush=True,
            )
        if asked.output:
            write_results(asked.output, make_stamp(("torch",), asked.commit), {"rows": rows})


if __name__ == "__main__":
    main()
