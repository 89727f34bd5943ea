"""Study: how V may be quantised, which the paper leaves open (one scale for all of V is what it has)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from statistics import fmean

from cupy_intfa.bench.cases import Case, square
from cupy_intfa.recipe import Recipe, get_recipe
from cupy_intfa.study.errors import measure_error
from cupy_intfa.study.recipe_speeds import find_speeds
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one, pick
from cupy_intfa.study.trials import REAL, Samples

REFERENCES = {"running": "fast", "tile": "precise"}  # the presets that each reference of P comes from
GRANULARITIES = ("tensor", "channel", "block", "block_channel", "token")
WIDE = {"int8x2": 255, "float16": 1}  # 16 bits for P, and for V in the second; with their p_levels
DATA = ("normal", "outlier", "channel", "outlier_token", "sink_first", REAL)
SPEED: Case = square(batch=4, heads=32, length=16384, head_dim=128)


def schemes(reference: str) -> dict[str, Recipe]:
    """Give every way to quantise V, everything else being that of a preset.

    Parameters
    ----------
    reference : {"running", "tile"}
        What P is relative to.

    Returns
    -------
    dict of str to Recipe
        By what shares a scale, with ``, centred`` where the mean value is subtracted first; then P in two bytes, and
        P and V in float16.

    Examples
    --------
    >>> schemes("running")["channel, centred"].name, schemes("tile")["channel, centred"].name
    ('fast', 'precise')
    """
    base = get_recipe(REFERENCES[reference])
    found = {
        f"{granularity}{', centred' * smooth}": get_recipe(base, v_granularity=granularity, smooth_v=smooth)
        for granularity, smooth in product(GRANULARITIES, (False, True))
    }
    for pv, levels in WIDE.items():
        changes = {"v_granularity": "tensor", "smooth_v": False} if pv == "float16" else {}
        found[pv] = get_recipe(base, pv=pv, p_levels=levels, **changes)
    return found


def _measure(settings: Samples, backend: str) -> Iterator[Row]:
    """Measure every scheme on every set of data."""
    recipes = {(reference, name): recipe for reference in REFERENCES for name, recipe in schemes(reference).items()}
    speeds = find_speeds({": ".join(name): recipe for name, recipe in recipes.items()}, SPEED, backend)
    settings.compile_ahead(recipes.values(), backend)
    trials = {data: settings.draw(data, backend) for data in settings.data}
    for (reference, scheme), recipe in recipes.items():
        for data, drawn in trials.items():
            error = measure_error(recipe, drawn, backend)
            yield {"reference": reference, "scheme": scheme, "data": data, **error, **speeds[f"{reference}: {scheme}"]}


def means(rows: Rows, reference: str) -> dict[str, float]:
    """Average each scheme over the sets of data, in units of one scale for all of V.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    reference : str
        What P is relative to.

    Returns
    -------
    dict of str to float
        By scheme, the mean over the sets of error / error of ``tensor``; from the smallest to the largest.
    """
    data, found = distinct(rows, "data"), pick(rows, reference=reference)
    whole = {name: one(found, "relative_rmse", scheme="tensor", data=name) for name in data}
    shares = {
        scheme: fmean(one(found, "relative_rmse", scheme=scheme, data=name) / whole[name] for name in data)
        for scheme in distinct(found, "scheme")
    }
    return dict(sorted(shares.items(), key=lambda item: item[1]))


def _findings(rows: Rows) -> Iterator[str]:
    """Order the schemes."""
    for reference in distinct(rows, "reference"):
        listed = ", ".join(f"{scheme} {share:.2f}" for scheme, share in means(rows, reference).items())
        yield f"P relative to the {reference} maximum, mean error in units of one scale for all of V: {listed}."
    for data in distinct(rows, "data"):
        narrow = [row for row in pick(rows, data=data) if row["scheme"] not in WIDE]
        best, worst = (f(narrow, key=lambda row: float(row["relative_rmse"])) for f in (min, max))
        yield (
            f"{data}: the best of 8 bits is {best['scheme']} ({best['reference']}) with {best['relative_rmse']:.4f}, "
            f"the worst {worst['scheme']} ({worst['reference']}) with {worst['relative_rmse']:.4f}."
        )
    timed = {(r["reference"], r["scheme"]): r for r in rows if r["tops"] is not None}
    speeds = ", ".join(f"{scheme} ({reference}) {row['tops']:.0f}" for (reference, scheme), row in timed.items())
    sources = ", ".join(dict.fromkeys(row["tops_from"] for row in timed.values()))
    yield f"TOPS of the kernels at {SPEED}, {sources}: {speeds}." if timed else "No speed is known on this machine."


STUDY = Study(
    name="v_quantisation",
    question="What should share a scale of V?",
    setup=(
        "Starting from `fast` (P relative to the running maximum) and from `precise` (to that of its tile), only "
        "the way to quantise V is changed: one scale for all, per channel, per block of 64 keys, per block and "
        "channel, per token (folded into P before P is rounded), each with and without the mean value subtracted; "
        "beside them P in two bytes, and P and V in float16."
    ),
    limits=(
        "Speeds are those of the kernels that exist; a scheme without one is not thereby slow. The real activations "
        "are those of one small encoder. On NumPy the speeds are those of the benchmark's report on the presets, on "
        "other data (N(0, 1)) and of another date."
    ),
    sizes={
        "quick": Samples(data=("normal", "outlier_token"), heads=1, queries=32, keys=256, head_dim=128, seeds=(0,)),
        "small": Samples(data=DATA, keys=4096, head_dim=128, seeds=(0, 1, 2)),
        "full": Samples(data=DATA, heads=4, queries=256, keys=16384, head_dim=128),
    },
    measure=_measure,
    keys=("reference", "scheme", "data"),
    values=("relative_rmse", "relative_rmse_spread", "ran", "tops", "tops_from"),
    findings=_findings,
    table=Pivot(rows=("reference", "scheme"), columns=("data",), value="relative_rmse"),
)
