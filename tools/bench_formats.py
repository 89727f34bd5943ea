"""Bandwidth of the format kernels as a share of a device copy, as a table and, with ``--output``, as JSON.

Run it as ``python tools/bench_formats.py --output notebooks/results/formats_nvidia-h200.json`` on a machine with a GPU
and CuPy. Each byte that is read or written counts once; the copy counts each byte twice, read and written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np
from results_file import make_stamp, write_results

from cupy_intfa.bench.timing import Budget, EventTimer, interleave
from cupy_intfa.quantize.formats_launch import decode, encode, pack, unpack


def cases(count: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Give a name, some work and the bytes that it reads and writes, on arrays of some elements."""
    given, taken = cp.zeros(2 * count, np.uint8), cp.zeros(2 * count, np.uint8)
    yield "device copy", partial(cp.copyto, taken, given), 4 * count
    draw = cp.random.default_rng(0)
    for bits in (4, 2):
        codes = draw.integers(0, 256, count).astype(np.int8)
        packed = pack(codes, bits, "twos_complement")
        yield f"pack {bits} bits", partial(pack, codes, bits, "twos_complement"), count + packed.size
        yield f"unpack {bits} bits", partial(unpack, packed, bits, count, "twos_complement"), count + packed.size
    for dtype in (np.dtype(np.float16), np.dtype(np.float32)):
        x = draw.standard_normal(count, dtype=np.float32).astype(dtype)
        packed, scale = encode(x, "nf4")
        moved = x.nbytes + packed.nbytes + scale.nbytes
        yield f"NF4 from {dtype}", partial(encode, x, "nf4"), moved
        yield f"NF4 to {dtype}", partial(decode, packed, scale, "nf4", (count,), dtype), moved


def main() -> None:
    """Print the table, and write the file that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1 << 28, help="elements (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (%(default)s)")
    parser.add_argument("--output", type=Path, help="a .json to write")
    parser.add_argument("--commit", help="what git describe says, where there is no checkout")
    asked = parser.parse_args()
    every = {name: (work, moved) for name, work, moved in cases(asked.count)}
    for work, _ in every.values():
        work()  # compiles
    calls = {name: [work] for name, (work, _) in every.items()}
    times = interleave(calls, EventTimer(), Budget(rounds=asked.repeats))
    rows: list[dict[str, Any]] = []
    for name, (_, moved) in every.items():
        rate = moved / times[name].median_ms * 1e3
        share = rate / rows[0]["bytes_per_s"] if rows else 1.0
        rows.append({"name": name, "bytes": moved, "bytes_per_s": rate, "share_of_copy": share, **asdict(times[name])})
        print(f"{name:18s} {times[name].median_ms:8.3f} ms {rate / 1e12:6.2f} TB/s {share:6.1%}")
    if asked.output:
        write_results(asked.output, make_stamp(described=asked.commit), {"count": asked.count, "rows": rows})


if __name__ == "__main__":
    main()
