"""The committed rows of the GEMM ladder and of the format kernels, and on what the toolbox's results were measured."""

import json
from typing import Any

import pytest
from minilm import ROOT

RESULTS = ROOT / "notebooks" / "results"
NAMES = ("gemm_nvidia-h200", "formats_nvidia-h200", "encoder_minilm", "weights_minilm")
STORED: dict[str, dict[str, Any]] = {
    name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES
}
COLUMN, ROW = "column-major", "row-major"
LARGE, FEW = (8192, 8192, 8192), (1, 16, 32, 64)
CUPY, TORCH = "CuPy int8 @ int8", "torch._int_mm"
LADDER = ("naive", "dp4a", "wmma", "sm80", "sm90")

# Of 8192^3, in TOPS. The ceilings are those of the instructions alone, without memory: wgmma, mma.sync, dp4a.
LEAST = {"sm90": 0.70 * 1940, "sm80": 0.65 * 1288, "dp4a": 0.70 * 130}
OVER_TORCH = 1.4
SHARE_OF_COPY = 0.8


def rates(m: int, n: int, k: int, b: str = COLUMN) -> dict[str, float]:
    """Give the TOPS of all contenders of a shape."""
    rows = STORED["gemm_nvidia-h200"]["rows"]
    shape = {"m": m, "n": n, "k": k, "b": b}
    return {row["name"]: row["operations_per_s"] / 1e12 for row in rows if shape.items() <= row.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_result_says_what_it_was_measured_on(name: str) -> None:
    stored = STORED[name]
    assert stored["commit"]
    assert stored["dirty"] is False, f"{name} was measured on files that no commit has"
    assert stored["date"] > "2026"
    assert stored["on"] == ("NVIDIA H200" if "h200" in name else "CPU, NumPy")
    assert {"cupy-intfa", "python", "numpy"} <= stored["versions"].keys()
    assert ("cupy" in stored["versions"]) == ("gpu" in stored) == ("h200" in name)


@pytest.mark.parametrize("b", [COLUMN, ROW])
def test_every_rung_and_both_rivals_stand_at_8192(b: str) -> None:
    assert {*LADDER, "auto", CUPY, TORCH} <= rates(*LARGE, b).keys()


def test_the_ladder_reaches_what_it_must_on_an_h200() -> None:
    found = rates(*LARGE)
    assert found["sm90"] >= OVER_TORCH * found[TORCH]
    for rung, least in LEAST.items():
        assert found[rung] >= least, rung
    assert found["auto"] == pytest.approx(found["sm90"], rel=0.05), "auto is that rung, timed apart"


def test_each_rung_is_faster_than_the_one_below() -> None:
    """Of a large product; the first that beats CuPy's own is dp4a."""
    for size in (4096, 2048):
        found = rates(size, size, size)
        climbed = [found[name] for name in LADDER if name in found]
        assert climbed == sorted(climbed)
    assert rates(2048, 2048, 2048)["dp4a"] > 3 * rates(2048, 2048, 2048)[CUPY]


@pytest.mark.parametrize("m", FEW)
def test_few_rows_are_reported_beside_their_rivals(m: int) -> None:
    """A decoder's products: B is read once, and auto takes the rung that reads it fastest."""
    found = rates(m, 8192, 8192)
    assert {*LADDER, "auto", CUPY} <= found.keys()
    assert (TORCH in found) == (m > 16), "it takes 17 rows and more"
    assert found["auto"] >= 0.95 * max(found.values())


def test_row_major_costs_a_transposition_and_no_more() -> None:
    """128 MB are read and written: at most a tenth of the time of 8192^3 by wgmma."""
    assert rates(*LARGE, ROW)["sm90"] > 0.9 * rates(*LARGE)["sm90"]


def test_format_kernels_come_near_a_device_copy() -> None:
    shares = {row["name"]: row["share_of_copy"] for row in STORED["formats_nvidia-h200"]["rows"]}
    assert len(shares) == 9
    assert all(share >= SHARE_OF_COPY for share in shares.values()), shares


def test_readme_prints_the_rates() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- table:gemm -->")[1].split("<!-- /table -->")[0]
    head, _, *lines = [line for line in table.splitlines() if line.startswith("|")]
    printed = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert {name: cells[0] for name, cells in printed.items() if name in rates(*LARGE)} == {
        name: f"{rate:.0f}" if rate >= 100 else f"{rate:#.3g}" for name, rate in rates(*LARGE).items()
    }
    assert head.count("8192²") == len(FEW)
