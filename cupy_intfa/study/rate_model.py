"""A model of a kernel's rate: the nearest of three bounds, times the share of it that an H200 was measured to reach.

The bounds are what the chip could do if it did nothing else: multiply, take exponentials, issue instructions. Nothing
here knows of latencies, of memory or of how well the three overlap; all of that is in one measured number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from cupy_intfa.bench.cases import Case, square
from cupy_intfa.bench.report import Report
from cupy_intfa.recipe import PRESETS
from cupy_intfa.study.chips import Chip, chips, read_chips_file
from cupy_intfa.study.opcodes import is_slow, matrix_unit, multiplications
from cupy_intfa.study.study import Row, Rows, pick

MEASURED = "sm_90a"
"""The architecture whose kernels were timed."""
PLANNED = "cuda"
"""The backend that takes the kernel of the plan."""
BOUNDS = ("tensor_tops", "exponential_tops", "issue_tops")
LEARNT_FROM = {
    "attention_sm80": "attention_sm80",
    "attention_sm90": "attention_sm80",
    "attention_dp4a": "attention_dp4a",
}
"""By kernel, the one whose measured efficiency the model takes: attention_sm90 tests whether it carries over."""


def compute_bounds(chip: Chip, head_dim: int, per_score: Mapping[str, float]) -> dict[str, float | None]:
    """Give the rate at which each unit of a chip alone would run a kernel.

    Parameters
    ----------
    chip : Chip
        The GPU.
    head_dim : int
        D: a score stands for 4 D operations.
    per_score : mapping of str to float
        By opcode, instructions of a lane for each score.

    Returns
    -------
    dict of str to float or None
        10¹² operations per second by `BOUNDS`; None for a product whose rate is not published.
    """
    clock = 1e-3 * chip.clock_ghz * chip.multiprocessors  # 10¹² per second
    seconds: float | None = 0.0
    for opcode, count in per_score.items():
        if products := multiplications(opcode):
            rate = chip.tops.get(str(matrix_unit(opcode)))
            seconds = None if rate is None or seconds is None else seconds + 2 * count * products / 32 / rate
    slow = sum(count for opcode, count in per_score.items() if is_slow(opcode))
    issued = 32 * read_chips_file()["schedulers"]
    return {
        "tensor_tops": 4 * head_dim / seconds if seconds else None,
        "exponential_tops": 4 * head_dim * clock * chip.exponentials / slow,
        "issue_tops": 4 * head_dim * clock * issued / sum(per_score.values()),
    }


def nearest_bound(row: Row) -> tuple[str, float] | None:
    """Name the least of a row's bounds.

    Parameters
    ----------
    row : mapping
        With `BOUNDS`.

    Returns
    -------
    (str, float) or None
        Its name without the unit, and the bound; None where one is not known.
    """
    if any(row[name] is None for name in BOUNDS):
        return None
    name = min(BOUNDS, key=lambda bound: float(row[bound]))
    return name.removesuffix("_tops"), float(row[name])


def measured_case(head_dim: int) -> Case:
    """Give the case whose measured rate the model is held against.

    Parameters
    ----------
    head_dim : int
        D.

    Returns
    -------
    Case
        Long, and not masked.
    """
    return square(batch=4, heads=32, length=16384, head_dim=head_dim)


def attention_sm90_was_there(report: Report) -> bool:
    """Tell whether a benchmark's report is younger than attention_sm90: before, all presets ran attention_sm80.

    Parameters
    ----------
    report : Report
        Of the benchmark, which does not record kernels.

    Returns
    -------
    bool
        By its date.
    """
    return report.date > str(read_chips_file()["measured"]["until"])


def add_measured(rows: Rows, reports: Iterable[Report]) -> list[Row]:
    """Put beside each row of the H200 what was measured of its kernel.

    Parameters
    ----------
    rows : sequence of mapping
        With ``arch``, ``kernel``, ``backend``, ``recipe`` and ``head_dim``.
    reports : iterable of Report
        Of the benchmark. Their presets ran the kernel that the plan takes; for what was measured before see
        ``chips.json``.

    Returns
    -------
    list of mapping
        With ``measured_tops`` and ``measured_on``, None where nobody measured.
    """
    here = pick(rows, arch=MEASURED)
    planned = {(row["recipe"], row["head_dim"]): row["kernel"] for row in pick(here, backend=PLANNED)}
    rates = stored_rates() | {
        (planned[key], *key): rate
        for report in sorted(reports, key=lambda one: one.date)
        for key, rate in _rates_of(report).items()
        if key in planned
    }
    found: list[Row] = []
    for row in rows:
        key = row["kernel"], row["recipe"], row["head_dim"]
        tops, source = rates.get(key, (None, None)) if row["arch"] == MEASURED else (None, None)
        found.append({**row, "measured_tops": tops, "measured_on": source})
    return found


def stored_rates() -> dict[tuple[str, str, int], tuple[float, str]]:
    """Give what was measured on an H200 before attention_sm90 was there.

    Returns
    -------
    dict of (str, str, int) to (float, str)
        By kernel, recipe and D: 10¹² operations per second, and where they are from.
    """
    stored = read_chips_file()["measured"]
    return {
        (kernel, recipe, int(head_dim)): (float(tops), str(stored["sources"][kernel]))
        for kernel, recipes in stored["tops"].items()
        for recipe, rates in recipes.items()
        for head_dim, tops in rates.items()
    }


def _rates_of(report: Report) -> dict[tuple[str, int], tuple[float, str]]:
    """Give what a later report says of the presets in the case of the model, by recipe and D."""
    if not attention_sm90_was_there(report) or chips()[MEASURED].chip not in report.gpu:
        return {}
    return {
        (recipe, result.case.head_dim): (form.tops, report.measured_on)
        for result in report.results
        if result.case == measured_case(result.case.head_dim)
        for recipe in PRESETS
        if recipe in result.entries and (form := result.entries[recipe].forms.get("kernel")) and form.tops is not None
    }


def efficiencies(rows: Rows, kernel: str) -> dict[tuple[str, int], float]:
    """Give the share of its nearest bound that a kernel was measured to reach.

    Parameters
    ----------
    rows : sequence of mapping
        With bounds and measured rates.
    kernel : str
        Which.

    Returns
    -------
    dict of (str, int) to float
        By recipe and D.
    """
    return {
        (row["recipe"], row["head_dim"]): row["measured_tops"] / bound[1]
        for row in pick(rows, kernel=kernel)
        if row["measured_tops"] is not None and (bound := nearest_bound(row))
    }


def add_model(rows: Rows) -> list[Row]:
    """Put the model's rate beside each row.

    Parameters
    ----------
    rows : sequence of mapping
        With bounds and measured rates.

    Returns
    -------
    list of mapping
        With ``model_tops``: the nearest bound times the median efficiency of all measured rows of the kernel that
        `LEARNT_FROM` names, the row itself left out; None where a bound is not known.
    """
    learnt = {kernel: efficiencies(rows, source) for kernel, source in LEARNT_FROM.items()}
    found: list[Row] = []
    for row in rows:
        bound = nearest_bound(row) if row["kernel"] in learnt else None
        own = (row["recipe"], row["head_dim"]) if row["measured_tops"] is not None else None
        others = [share for key, share in learnt.get(row["kernel"], {}).items() if key != own]
        found.append({**row, "model_tops": median(others) * bound[1] if bound and others else None})
    return found
