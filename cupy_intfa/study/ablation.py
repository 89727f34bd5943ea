"""Study: each knob of the recipe turned alone, on top of the paper's recipe and out of the default one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cupy_intfa.bench.cases import Case, square
from cupy_intfa.recipe import Recipe, get_recipe
from cupy_intfa.study.errors import measure_error
from cupy_intfa.study.recipe_speeds import find_speeds
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one, pick
from cupy_intfa.study.trials import REAL, Samples

BASES = ("paper", "fast")
KNOBS: Mapping[str, tuple[object, ...]] = {
    "p_levels": (127, 255),
    "p_reference": ("running", "tile"),
    "row_sum": ("quantised", "exact"),
    "key_order": ("first_to_last", "last_to_first"),
    "smooth_k": (False, True),
    "smooth_v": (False, True),
    "rotate": (False, True),
    "k_granularity": ("tensor", "block", "token", "group"),
    "v_granularity": ("tensor", "channel", "block_channel"),
    "key_window": (0, 64, 256),
}
UNTURNED = "none"
DATA = (REAL, "normal", "outlier", "channel", "sink_first")
SPEED: Case = square(batch=4, heads=32, length=4096, head_dim=128)


def turned(base: str) -> dict[tuple[str, str], Recipe]:
    """Turn every knob of a preset alone.

    Parameters
    ----------
    base : str
        Name of the preset.

    Returns
    -------
    dict of (str, str) to Recipe
        By knob and setting; first the preset itself. What the preset already has is not repeated.

    Examples
    --------
    >>> [setting for knob, setting in turned("fast") if knob == "k_granularity"]
    ['tensor', 'block', 'token']
    """
    recipe = get_recipe(base)
    recipes = {(UNTURNED, base): recipe}
    for knob, settings in KNOBS.items():
        for setting in settings:
            if setting != getattr(recipe, knob):
                recipes[knob, str(setting)] = get_recipe(recipe, **{knob: setting})
    return recipes


def _measure(settings: Samples, backend: str) -> Iterator[Row]:
    """Measure every turned recipe on every set of data."""
    recipes = {(base, *turn): recipe for base in BASES for turn, recipe in turned(base).items()}
    speeds = find_speeds({" ".join(name): recipe for name, recipe in recipes.items()}, SPEED, backend)
    settings.compile_ahead(recipes.values(), backend)
    trials = {data: settings.draw(data, backend) for data in settings.data}
    for (base, knob, setting), recipe in recipes.items():
        for data, drawn in trials.items():
            yield {
                "base": base,
                "knob": knob,
                "setting": setting,
                "data": data,
                **measure_error(recipe, drawn, backend),
                **speeds[f"{base} {knob} {setting}"],
            }


def effects(rows: Rows, base: str, data: str) -> dict[tuple[str, str], float]:
    """Give what each knob does to the error.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    base, data : str
        The preset and the set of data.

    Returns
    -------
    dict of (str, str) to float
        By knob and setting, the error in units of that of the preset; from the smallest to the largest.
    """
    found = pick(rows, base=base, data=data)
    whole = one(found, "relative_rmse", knob=UNTURNED)
    shares = {(r["knob"], r["setting"]): r["relative_rmse"] / whole for r in found if r["knob"] != UNTURNED}
    return dict(sorted(shares.items(), key=lambda item: item[1]))


def _findings(rows: Rows) -> Iterator[str]:
    """Name the knobs that do most, and those that do harm."""
    for base in BASES:
        for data in distinct(rows, "data"):
            shares = effects(rows, base, data)
            best = ", ".join(f"{knob} {setting} {shares[knob, setting]:.2f}" for knob, setting in [*shares][:3])
            worst = ", ".join(f"{knob} {setting} {shares[knob, setting]:.2f}" for knob, setting in [*shares][:-4:-1])
            yield f"`{base}` on {data}, error times: the best {best}; the worst {worst}."
        yield from _say_speeds(rows, base)


def speeds(rows: Rows, base: str) -> dict[tuple[str, str], float]:
    """Give what each knob does to the speed, where both were measured.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    base : str
        The preset.

    Returns
    -------
    dict of (str, str) to float
        By knob and setting, the rate in units of that of the preset; from the slowest to the fastest.
    """
    found = {(row["knob"], row["setting"]): row["tops"] for row in pick(rows, base=base) if row["tops"] is not None}
    whole = found.pop((UNTURNED, base), None)
    shares = {} if whole is None else {name: tops / whole for name, tops in found.items()}
    return dict(sorted(shares.items(), key=lambda item: item[1]))


def _say_speeds(rows: Rows, base: str) -> Iterator[str]:
    """Say what the knobs cost on a GPU, and which of them no kernel turns."""
    shares = speeds(rows, base)
    if not shares:
        yield f"`{base}`: the speed of no turned knob was measured."
        return
    listed = ", ".join(f"{knob} {setting} {share:.2f}" for (knob, setting), share in shares.items())
    absent = dict.fromkeys(
        f"{row['knob']} {row['setting']} ({row['tops_from'] or 'not known'})"
        for row in pick(rows, base=base)
        if row["tops"] is None
    )
    whole = pick(rows, base=base, knob=UNTURNED)[0]
    yield (
        f"`{base}`, {whole['tops']:.0f} TOPS on {whole['tops_from']}; rate times: {listed}. "
        f"Not measured: {', '.join(absent) or 'none'}."
    )


STUDY = Study(
    name="ablation",
    question="What does each knob of the recipe do alone?",
    setup=(
        "One field of the recipe at a time is changed: in `paper`, to see what it would gain there, and in `fast`, to "
        "see what is lost without it. Relative RMSE against float64, no mask. The speed is that of the kernel from "
        f"quantised tensors at {SPEED}, the median of rounds in which all take turns, where there is a kernel and a "
        "GPU measured it; elsewhere that of the presets alone, from the benchmark's report."
    ),
    limits=(
        "Knobs act on each other: an exact row sum needs a centred V, a group scale needs sorted keys. What a knob "
        "does alone says little about what it does beside others. Speeds are of N(0, 1), on which a running maximum "
        "settles early; compare them with each other, for in other company the same kernel came out by 6 % faster. "
        "Spread is over the seeds, and over the layers for the real activations."
    ),
    sizes={
        "quick": Samples(data=("sink_first", "normal"), heads=1, queries=32, keys=512, seeds=(0,)),
        "small": Samples(data=DATA),
        "full": Samples(data=DATA, heads=4, queries=256, keys=8192),
    },
    measure=_measure,
    keys=("base", "knob", "setting", "data"),
    values=("relative_rmse", "relative_rmse_spread", "ran", "tops", "tops_from"),
    findings=_findings,
    table=Pivot(rows=("base", "knob", "setting"), columns=("data",), value="relative_rmse", beside=("tops",)),
)
