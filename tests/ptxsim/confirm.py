"""Confirm the simulator on a GPU: the same kernels on the same inputs, there and here, bit for bit.

On a machine with an H200, then on any machine:

    PYTHONPATH=tests:. python -m ptxsim.confirm gpu answers.npz
    PYTHONPATH=tests:. python -m ptxsim.confirm compare answers.npz notebooks/results/simulator_nvidia-h200.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ptxsim.probes import Answer, Probe, instruction_probes
from ptxsim.probes_kernels import kernel_probes

from cupy_intfa.bench.stamp import commit, gpu_state, versions

_SECONDS = 240  # on the GPU, of which compiling takes nearly all


def probes() -> Iterator[Probe]:
    """List everything that is confirmed."""
    yield from instruction_probes()
    yield from kernel_probes()


def ask(file: Path, probes: Iterable[Probe], answer: Callable[[Probe], Answer]) -> None:
    """Run probes and keep the answers; what fails, or comes too late, is missing, and `compare` says so."""
    answers: dict[str, Any] = {"stamp": json.dumps({"gpu": gpu_state(), "versions": versions(())})}
    start = time.perf_counter()
    for probe in probes:
        if time.perf_counter() - start > _SECONDS:
            print(f"{probe.name} and what follows: {_SECONDS} s are over", file=sys.stderr)
            break
        try:
            answers |= {f"{probe.name}/{name}": x for name, x in answer(probe).items()}
        except Exception as error:
            print(f"{probe.name}: {type(error).__name__}: {error}", file=sys.stderr)
    np.savez_compressed(file, **answers)


def compare(file: Path, probes: Iterable[Probe]) -> dict[str, Any]:
    """Run everything in the simulator and compare."""
    answers = np.load(file)
    rows: list[dict[str, Any]] = []
    asked = {name.rpartition("/")[0] for name in answers.files}
    for probe in probes:
        if probe.name not in asked:
            rows.append({"name": probe.name, "missing": True})
            continue
        mine, limits = probe.simulated(), {} if probe.limit is None else probe.limit()
        row: dict[str, Any] = {"name": probe.name, "elements": 0, "equal": 0}
        for name, x in mine.items():
            y = answers[f"{probe.name}/{name}"]
            bits = f"u{x.itemsize}"
            same = np.ascontiguousarray(x).view(bits) == np.ascontiguousarray(y).view(bits)
            if x.dtype.kind == "f":
                same |= np.isnan(x) & np.isnan(y)
            row["elements"] += x.size
            row["equal"] += int(same.sum())
            if limits:
                off = np.abs(np.nan_to_num(x.astype(np.float64)) - np.nan_to_num(y.astype(np.float64)))
                allowed = np.maximum(limits[name], 1e-30)
                row["of_bound"] = max(row.get("of_bound", 0.0), float(np.nanmax(off / allowed)))
                row["farthest"] = max(row.get("farthest", 0.0), float(off.max()))
        rows.append(row)
        print(row, flush=True)
    exact = [row for row in rows if "of_bound" not in row and "missing" not in row]
    return {
        "schema": 1,
        "record": "simulator",
        **commit(),
        **json.loads(str(answers["stamp"])),
        "bit_for_bit": all(row["equal"] == row["elements"] for row in exact),
        "within_bound": all(float(row.get("of_bound", 0.0)) <= 1 for row in rows),
        "missing": [row["name"] for row in rows if "missing" in row],
        "results": rows,
    }


def main() -> int:
    """Do what the command line says."""
    what, file, *rest = sys.argv[1:]
    if what == "gpu":
        ask(Path(file), probes(), lambda probe: probe.on_gpu())
        return 0
    record = compare(Path(file), probes())
    Path(rest[0]).write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(record["missing"]) or not (record["bit_for_bit"] and record["within_bound"]))


if __name__ == "__main__":
    sys.exit(main())
