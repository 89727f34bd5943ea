"""Study: how fast the presets are beside what a user would take instead, and what becomes of the paper's 72 %."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from cupy_intfa.bench.cases import SUITES
from cupy_intfa.bench.report import load_reports
from cupy_intfa.bench.runner import run_suite
from cupy_intfa.device import gpu_for
from cupy_intfa.recipe import PRESETS
from cupy_intfa.study.rate_model import BOUNDS, nearest_bound
from cupy_intfa.study.report import RESULTS
from cupy_intfa.study.speed_rows import EARLIER, PLAIN, choose_reports, gains, load_roofline, make_rows, seen_as
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, pick
from cupy_intfa.study.tables import format_keys

YARDSTICKS = ("FA2 fp16", "cuDNN fp16", "FA3 bf16")  # 16 bits, from the paper's own rival to the fastest
AUTHORS = "INT-FlashAttention authors, INT8"
PUBLISHED = {1024: 31, 2048: 52, 4096: 66, 8192: 72, 16384: 73}
"""By length, per cent by which the paper's INT8 kernel is faster than FlashAttention in FP16 (arXiv 2409.16997, on an
RTX 4090 at D 64); its abstract has the 72."""
_FORMS = {"kernel": "from quantised tensors", "e2e": "from 16-bit tensors"}
_TOP = 3  # contenders that a ranking names


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which suites of the benchmark are read, or measured where there is a GPU.

    Parameters
    ----------
    suites : tuple of str
        A case that several have is taken from the first.
    """

    suites: tuple[str, ...] = ("paper", "prefill", "causal")


def _measure(settings: Settings, backend: str) -> list[Row]:
    """Read the benchmark's reports, or make them on the GPU that is there."""
    if gpu_for(backend) is not None:
        reports = [run_suite(SUITES[name]) for name in settings.suites]
    else:
        reports = choose_reports(load_reports(RESULTS), settings.suites)
    return make_rows(reports, load_roofline(RESULTS))


def fastest_of_ours(rows: Rows) -> str:
    """Name the preset that is fastest on the longest rows of the paper's set-up, from quantised tensors.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.

    Returns
    -------
    str
        A preset.
    """
    found = [row for row in pick(rows, mask=PLAIN, head_dim=64, form="kernel") if row["contender"] in PRESETS]
    longest = pick(found, keys=max(distinct(found, "keys")))
    return str(max(longest, key=lambda row: float(row["tops"]))["contender"])


def _findings(rows: Rows) -> Iterator[str]:
    """Say where it was measured, what becomes of the claim, who is fastest, and what bounds us."""
    yield f"Measured on: {'; '.join(distinct([r for r in rows if r['measured_on'] != EARLIER], 'measured_on'))}."
    if absent := [name for name in Settings().suites if name not in distinct(rows, "suite")]:
        yield f"Not measured: {', '.join(absent)} of the benchmark's suites."
    for ours in dict.fromkeys(("paper", fastest_of_ours(rows))):
        for rival in YARDSTICKS:
            for head_dim in (64, 128):
                yield from _say_gain(rows, ours, rival, head_dim)
    yield from _say_gain(rows, AUTHORS, YARDSTICKS[0], 64)
    for mask in distinct(rows, "mask"):
        for head_dim in distinct(pick(rows, mask=mask), "head_dim"):
            yield from _rank(pick(rows, mask=mask, head_dim=head_dim))
    yield from _say_what_bounds(rows)
    yield from _say_how_runs_differ(rows)


def _say_gain(rows: Rows, ours: str, rival: str, head_dim: int) -> Iterator[str]:
    """Say how much faster than a rival we are; at the paper's D also whether that is what it publishes."""
    found = {form: gains(rows, ours, rival, form, head_dim) for form in _FORMS}
    listed = "; ".join(
        f"{_FORMS[form]} "
        + ", ".join(f"{format_keys(keys)} {100 * (gain - 1):+.0f} %" for keys, gain in of_form.items())
        for form, of_form in found.items()
        if of_form
    )
    verdict = ""
    if head_dim == 64:
        reached = [format_keys(n) for n, gain in found["kernel"].items() if 100 * (gain - 1) >= PUBLISHED.get(n, 72)]
        where = f"reached at {', '.join(reached)}" if reached else "not reached"
        verdict = f" The paper's gain, from quantised tensors: {where}."
    if listed:
        name = f"`{ours}`" if ours in PRESETS else ours
        yield f"{name} against {rival}, D {head_dim}, faster by: {listed}.{verdict}"


def _rank(rows: Rows) -> Iterator[str]:
    """Order the contenders on the longest rows, and say where our fastest is."""
    rows = pick(rows, keys=max(distinct(rows, "keys")))
    for form, text in _FORMS.items():
        found = [row for row in seen_as(rows, form) if row["form"] == form or form == "kernel"]
        found = sorted(found, key=lambda row: -float(row["tops"]))
        places = [i for i, row in enumerate(found) if row["contender"] in PRESETS]
        if places:
            shown = [_written(row) for row in found[:_TOP]]
            own = found[places[0]]
            mine = "" if places[0] < _TOP else f"; the first of ours {_written(own)}, place {places[0] + 1}"
            yield f"{own['case']}, {text}, TOPS of {len(found)}: {', '.join(shown)}{mine}."


def _written(row: Row) -> str:
    name = f"`{row['contender']}`" if row["contender"] in PRESETS else row["contender"]
    return f"{name} {row['tops']:.0f}{' (an earlier date)' if row['measured_on'] == EARLIER else ''}"


def _say_what_bounds(rows: Rows) -> Iterator[str]:
    """Say how near our kernels come to their nearest bound on the longest rows without a mask."""
    bounded = [row for row in pick(rows, mask=PLAIN) if row["nearest"] is not None]
    for head_dim in distinct(bounded, "head_dim"):
        found = pick(bounded, head_dim=head_dim)
        found = pick(found, keys=max(distinct(found, "keys")))
        shares = ", ".join(
            f"`{row['contender']}` {100 * row['tops'] / bound[1]:.0f} % of {bound[0]}"
            for row in found
            if (bound := nearest_bound(row))
        )
        yield f"D {head_dim}, {format_keys(found[0]['keys'])} keys, share of the nearest bound: {shares}."


def repetitions(rows: Rows) -> list[float]:
    """Give by how much rates differ that two suites measured, one after the other.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.

    Returns
    -------
    list of float
        Shares of the first rate, from the smallest to the largest.
    """
    return sorted(abs(row["tops_again"] / row["tops"] - 1.0) for row in rows if row["tops_again"] is not None)


def _say_how_runs_differ(rows: Rows) -> Iterator[str]:
    """State the spread of a suite, and by how much another one differs."""
    spreads = [row["tops_spread"] / row["tops"] for row in rows if row["tops_spread"] is not None]
    again = repetitions(rows)
    if spreads and again:
        yield (
            f"Quartiles of a rate lie {100 * median(spreads):.1f} % of it apart in the middle of {len(spreads)}. Two "
            f"suites measured {len(again)} of them, one after the other: they differ by {100 * median(again):.1f} % in "
            f"the middle and {100 * again[-1]:.1f} % at most."
        )


STUDY = Study(
    name="speed",
    question="How fast are the presets beside what a user would take instead, and what becomes of the paper's 72 %?",
    setup=(
        "The suites `paper`, `prefill` and `causal` of the benchmark: B4 H32, D 64 and 128, 1k to 16k keys, N(0, 1), "
        "all contenders in turn in one process, each on a cold cache, medians. `kernel` is attention from tensors that "
        "are quantised already, `e2e` from 16-bit ones, quantising included; who quantises nothing has `e2e` alone, "
        "which counts for both. The paper's gain is the one that it publishes for each length over FlashAttention in "
        "FP16, held against FlashAttention 2, cuDNN and FlashAttention 3. Bounds beside our kernels are those of the "
        "study `architectures`: products, exponentials and issue slots of an H200."
    ),
    limits=(
        "One machine, random numbers, equal lengths, one key head for each query head. Rates of an earlier date were "
        "not taken in the same process. A spread is the range of the quartiles over the rounds of a suite; in another "
        "run and other company, that of the study `v_quantisation`, `fast` came out by 6 % faster. The paper's "
        "gain is that of its code on an RTX 4090, ours that of other kernels on another chip: that it is or is not "
        "reached here says nothing about its measurement. A bound is what one unit alone would allow, not what a "
        "better kernel would reach."
    ),
    sizes={"quick": Settings(suites=("prefill",)), "small": Settings(), "full": Settings()},
    measure=_measure,
    keys=("mask", "head_dim", "keys", "contender", "form"),
    values=(
        *("tops", "tops_spread", "tops_again", "ms", "relative_rmse", "case", "suite", "measured_on"),
        *("kernel", *BOUNDS, "nearest"),
    ),
    findings=_findings,
    table=Pivot(rows=("contender", "form"), columns=("mask", "head_dim", "keys"), value="tops"),
)
