"""The committed record of what an H200 and the simulator computed of the same inputs (`ptxsim.confirm`)."""

from __future__ import annotations

import json
from pathlib import Path

from ptxsim.confirm import probes

from cupy_intfa.gemm_ladder import RUNGS
from cupy_intfa.kernel_table import NAMED_KERNELS

RECORD = json.loads((Path(__file__).parents[2] / "notebooks" / "results" / "simulator_nvidia-h200.json").read_text())
INSTRUCTIONS = {
    "rounding",
    "conversions",
    "integers",
    "packed",
    "shuffles",
    "mma",
    "ldmatrix",
    "wgmma",
    "tensor",
    "ring",
}


def test_an_h200_gave_the_same_bits_where_nothing_is_approximate() -> None:
    assert RECORD["gpu"]["name"] == "NVIDIA H200"
    rows = {row["name"]: row for row in RECORD["results"] if "missing" not in row}
    exact = {name for name, row in rows.items() if "of_bound" not in row}
    assert all(rows[name]["equal"] == rows[name]["elements"] > 0 for name in exact)
    assert all(row["of_bound"] <= 1 for name, row in rows.items() if name not in exact)
    kernels = {"quantise", "formats_pack", "formats_encode"} | {f"gemm_{rung}" for rung in RUNGS}
    assert {name.split()[0] for name in exact} >= INSTRUCTIONS | kernels
    for kernel in NAMED_KERNELS:
        for what in ("scores", "products"):
            assert any(name.startswith(f"integers of attention_{kernel}") and what in name for name in exact)


def test_what_is_listed_is_what_is_recorded() -> None:
    asked = {probe.name for probe in probes()}
    assert asked <= {row["name"] for row in RECORD["results"]}
    assert not RECORD["missing"]
