"""Study: what the kernels become on the GPUs that nobody has run them on, and how fast they might be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

from cupy_intfa.bench.report import load_reports
from cupy_intfa.kernels import architecture, compile_options, source_text
from cupy_intfa.recipe import PRESETS
from cupy_intfa.study.chips import chips, say_what_is_unchecked
from cupy_intfa.study.counting import Build, count_machine_code, find_plan, macros, rows_of_block, trace_kernel
from cupy_intfa.study.machine_code import compile_machine_code, disassemble, is_readable
from cupy_intfa.study.opcodes import CLASSES, classify
from cupy_intfa.study.rate_model import (
    BOUNDS,
    LEARNT_FROM,
    MEASURED,
    PLANNED,
    add_measured,
    add_model,
    compute_bounds,
    efficiencies,
    nearest_bound,
    stored_rates,
)
from cupy_intfa.study.report import RESULTS
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, pick

_MACHINE, _TRACE = "machine code", "PTX, traced"
_RESOURCES = ("tile", "registers", "spilled_bytes", "shared_bytes", "blocks", "counted", "instructions", *CLASSES)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compiled.

    Parameters
    ----------
    archs, recipes : tuple of str
        Architectures and presets.
    head_dims : tuple of int
        D.
    processes : int
        That compile side by side.
    """

    archs: tuple[str, ...] = tuple(chips())
    recipes: tuple[str, ...] = tuple(PRESETS)
    head_dims: tuple[int, ...] = (64, 128)
    processes: int = 2


def list_builds(settings: Settings) -> list[Build]:
    """List what is compiled: what the plan takes on each chip, and other kernels that were measured on the H200.

    Parameters
    ----------
    settings : Settings
        Of the study.

    Returns
    -------
    list of Build
        Without what no kernel runs where it is not what the plan was asked for.
    """
    found, measured = [], stored_rates()
    for arch in settings.archs:
        for recipe in settings.recipes:
            for head_dim in settings.head_dims:
                build = Build(arch, recipe, head_dim)
                taken = find_plan(build)
                found.append(build)
                for backend in ("sm80", "dp4a") if arch == MEASURED else ():
                    other = Build(arch, recipe, head_dim, backend)
                    plan = find_plan(other)
                    new = plan and (taken is None or plan.kernel != taken.kernel)
                    if plan and new and (plan.kernel, recipe, head_dim) in measured:
                        found.append(other)
    return found


def measure_build(build: Build) -> Row:
    """Compile a kernel, and count what its main loop does for a score.

    Parameters
    ----------
    build : Build
        What and where.

    Returns
    -------
    mapping
        A row without what was measured of it on a GPU; of a recipe without a kernel, one of None.
    """
    chip, plan = chips()[build.arch], find_plan(build)
    row: dict[str, Any] = {"arch": build.arch, "chip": chip.chip, "recipe": build.recipe, "head_dim": build.head_dim}
    row |= {"backend": build.backend, "kernel": plan.kernel if plan else "none"}
    row |= dict.fromkeys((*_RESOURCES, *BOUNDS, "nearest"))
    if plan is None or plan.cuda is None:
        return row
    cuda = plan.cuda
    arch = architecture(cuda.source, chip.device.arch)
    compiled = compile_machine_code(source_text(cuda.source), arch, compile_options(cuda.defines))
    if cuda.source != "attention_dp4a" and is_readable(arch):
        per_score, counted = count_machine_code(disassemble(compiled.cubin), cuda), _MACHINE
    else:
        per_score, counted = trace_kernel(build, cuda), _TRACE
    classes = dict.fromkeys(CLASSES, 0.0)
    for opcode, count in per_score.items():
        classes[classify(opcode)] += count
    row |= {
        "tile": f"{rows_of_block(cuda)} × {macros(cuda).get('BC', plan.key_tile)}",
        "registers": compiled.registers,
        "spilled_bytes": compiled.spilled,
        "shared_bytes": cuda.shared_bytes,
        "blocks": chip.blocks(cuda.threads, compiled.registers, cuda.shared_bytes),
        "counted": counted,
        "instructions": sum(per_score.values()),
        **classes,
        **compute_bounds(chip, build.head_dim, per_score),
    }
    bound = nearest_bound(row)
    return {**row, "nearest": bound[0] if bound else None}


def _measure(settings: Settings, backend: str) -> Iterator[Row]:
    """Compile everything; then put beside it what was measured, and what the model says."""
    builds = list_builds(settings)
    if settings.processes == 1:
        rows = [measure_build(build) for build in builds]
    else:
        with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(measure_build, builds))
    yield from add_model(add_measured(rows, load_reports(RESULTS)))


def _findings(rows: Rows) -> Iterator[str]:
    """Say what compiles, what bounds it, what the model is worth, and what it says."""
    made = [row for row in rows if row["kernel"] != "none"]
    spilling = [
        f"`{r['recipe']}` D {r['head_dim']} on {r['arch']} {r['spilled_bytes']}" for r in made if r["spilled_bytes"]
    ]
    yield (
        f"{len(made)} kernels compile for {len(distinct(rows, 'arch'))} architectures; bytes of spills of a thread: "
        f"{', '.join(spilling) or 'none'}."
    )
    yield from _say_what_is_absent(rows)
    yield from _say_what_bounds(made)
    yield from _say_what_the_model_is_worth(made)
    head_dim = max(distinct(rows, "head_dim"))
    for recipe in distinct(rows, "recipe"):
        found = [
            r for r in pick(made, recipe=recipe, head_dim=head_dim, backend=PLANNED) if r["model_tops"] is not None
        ]
        elsewhere = ", ".join(f"{r['chip']} {r['model_tops']:.0f}" for r in found if r["arch"] != MEASURED)
        if elsewhere:
            yield f"Model, not measured: `{recipe}` D {head_dim}, TOPS: {elsewhere}."


def _say_what_is_absent(rows: Rows) -> Iterator[str]:
    """List the presets that have no kernel, chip by chip."""
    for arch in distinct(rows, "arch"):
        absent = pick(rows, arch=arch, kernel="none")
        listed = [
            f"`{recipe}`"
            + "".join(f" D {row['head_dim']}" for row in found if len(found) < len(distinct(rows, "head_dim")))
            for recipe in distinct(absent, "recipe")
            if (found := pick(absent, recipe=recipe))
        ]
        if listed:
            yield f"No kernel on {arch}: {', '.join(listed)}."


def _say_what_bounds(made: Rows) -> Iterator[str]:
    """Count which bound is nearest, chip by chip."""
    for arch in distinct(made, "arch"):
        found = pick(made, arch=arch, backend=PLANNED)
        counts = Counter(row["nearest"] or "not known" for row in found)
        least, most = (f(row["instructions"] for row in found) for f in (min, max))
        yield (
            f"{arch} ({found[0]['chip']}), instructions of a lane per score {least:.1f} to {most:.1f}; nearest bound, "
            f"and of how many kernels: {', '.join(f'{name} {count}' for name, count in counts.most_common())}."
        )


def _say_what_the_model_is_worth(made: Rows) -> Iterator[str]:
    """Compare the model with what was measured, kernel by kernel."""
    unchecked = []
    for kernel in LEARNT_FROM:
        shares = efficiencies(made, kernel)
        if shares:
            yield (
                f"`{kernel}` on an H200 reaches {min(shares.values()):.2f} to {max(shares.values()):.2f} of its "
                f"nearest bound, {median(shares.values()):.2f} in the middle of {len(shares)}."
            )
        both = [r for r in pick(made, kernel=kernel) if None not in (r["measured_tops"], r["model_tops"])]
        if both:
            off = sorted(row["measured_tops"] / row["model_tops"] for row in both)
            yield (
                f"Measured by model, which has learnt from the other rows of `{LEARNT_FROM[kernel]}`: {off[0]:.2f} to "
                f"{off[-1]:.2f} for the {len(off)} rows of `{kernel}`."
            )
        else:
            unchecked.append(f"`{kernel}`")
    if unchecked:
        yield f"Nothing was measured that the model could be held against for {', '.join(unchecked)}."


STUDY = Study(
    name="architectures",
    question="What do the kernels become on other GPUs, and how fast might they be there?",
    setup=(
        "Every preset is compiled by NVRTC for each architecture; registers, spills, shared memory and the blocks that "
        "they leave room for are the compiler's, instructions per score are counted in the machine code: of the ways "
        "through the main loop that pass all of its matrix instructions the one with fewest others, without masks and "
        "without rescaling. Where machine code cannot be read, or has loops in the loop (`attention_dp4a`), they are "
        "counted in the simulator's trace of the PTX, moves left out. Three bounds follow with the published rates of "
        "a common card: products, exponentials, issue slots. The model is the least of them times the efficiency that "
        "the same kernel was measured to reach on an H200, the median of all presets but the one in question."
    ),
    limits=(
        "The rates of chips other than the H200 are a model and nothing was run there. It knows neither latency nor "
        "memory nor power, and takes one efficiency for all chips: on an H200 the bounds lie near each other and get "
        "in each other's way; where one is far below the others, as products are on GeForce cards, a kernel may come "
        "nearer to it than the model says. It counts a float or integer instruction as one issue slot where some chips "
        "have half as many lanes, and a packing of two floats into 16 bits as well, which newer GeForce cards are said "
        "to do at the rate of exponentials. The numbers of the chips stand in `chips.json` with the text that each was "
        f"compared with; found in none: {say_what_is_unchecked()}. What the check says of attention_sm90, with the "
        "efficiency of attention_sm80, is how far such a transfer can be off."
    ),
    sizes={
        "quick": Settings(archs=("sm_61", "sm_80", MEASURED), recipes=("fast",), head_dims=(64,), processes=1),
        "small": Settings(),
        "full": Settings(),
    },
    measure=_measure,
    keys=("arch", "kernel", "recipe", "head_dim"),
    values=(
        *("chip", "backend"),
        *_RESOURCES,
        *BOUNDS,
        *("nearest", "measured_tops", "measured_on", "model_tops"),
    ),
    findings=_findings,
    table=Pivot(rows=("arch", "kernel", "recipe"), columns=("head_dim",), value="instructions"),
    packages=("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvdisasm"),
)
