"""Study: what longer rows and larger models do to the error, beside what theory says that rounding P must cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cupy_intfa.recipe import Recipe, get_recipe
from cupy_intfa.study.compile_ahead import compile_ahead, shapes_of
from cupy_intfa.study.errors import measure_error
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one, pick
from cupy_intfa.study.theory import predict_rounding
from cupy_intfa.study.trials import Trial, make_trials

SERIES = "one head"
FLOAT8 = "fp8_e4m3"
EMULATED = 64  # query rows that a recipe without a kernel is run on
LAYOUTS: Mapping[str, tuple[int, int, int]] = {  # heads, KV heads, D
    "7B, 32 heads": (32, 32, 128),
    "8B, 32 heads on 8": (32, 8, 128),
    "13B, 40 heads": (40, 40, 128),
    "70B, 64 heads on 8": (64, 8, 128),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Parameters
    ----------
    lengths, head_dims : tuple of int
        Skv and D of the rows of one head.
    layouts : tuple of str
        Names in `LAYOUTS`.
    head_dim : int
        D where the length is what varies.
    length : int
        Skv where D or the layout is what varies.
    queries, layout_queries : int
        Sampled query rows, of one head and of the layouts.
    seeds : tuple of int
        One trial for each.
    """

    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536, 131072)
    head_dims: tuple[int, ...] = (32, 64, 128, 256)
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    head_dim: int = 128
    length: int = 2048
    queries: int = 64
    layout_queries: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)


def compared() -> dict[str, tuple[Recipe, Recipe | None]]:
    """Give the recipes, and for those with P in 8 bits the same with P in 16, which has every other error.

    Returns
    -------
    dict of str to (Recipe, Recipe or None)
        By preset.
    """
    narrow = {name: get_recipe(name) for name in ("paper", "fast", "precise")}
    rest = {name: get_recipe(name) for name in ("half", FLOAT8)}
    return {
        **{name: (recipe, get_recipe(recipe, pv="int8x2", p_levels=255)) for name, recipe in narrow.items()},
        **{name: (recipe, None) for name, recipe in rest.items()},
    }


def list_cases(settings: Settings) -> list[tuple[str, dict[str, int]]]:
    """List what is measured: one head over length and over head dimension, then the layouts of models.

    Parameters
    ----------
    settings : Settings
        Of the study.

    Returns
    -------
    list of (str, dict)
        Name of the layout, and the sizes as `make_qkv` calls them.
    """
    by_length = [(settings.head_dim, keys) for keys in settings.lengths]
    by_head_dim = [(head_dim, settings.length) for head_dim in settings.head_dims]
    rows = {"heads": 1, "kv_heads": 1, "q_len": settings.queries}
    series = [(SERIES, {**rows, "head_dim": d, "kv_len": n}) for d, n in sorted({*by_length, *by_head_dim})]
    few = {"q_len": settings.layout_queries, "kv_len": settings.length}
    layouts = [
        (name, {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **few})
        for name, (heads, kv_heads, head_dim) in ((name, LAYOUTS[name]) for name in settings.layouts)
    ]
    return series + layouts


def _measure(settings: Settings, backend: str) -> Iterator[Row]:
    """Measure the error over length, over head dimension and over the layouts of models."""
    cases = list_cases(settings)
    compile_ahead((recipe for recipe, _ in compared().values()), [shapes_of(**shape) for _, shape in cases], backend)
    for layout, shape in cases:
        head_dim, keys = shape["head_dim"], shape["kv_len"]
        trials = make_trials("normal", settings.seeds, shape, backend)
        for name, (recipe, fine) in compared().items():
            theory = dict.fromkeys(("fine_p", "rounding", "predicted"))
            if fine is not None and layout == SERIES:
                theory = _predict(recipe, fine, trials, backend)
            error = measure_error(recipe, trials, backend)
            yield {"layout": layout, "head_dim": head_dim, "keys": keys, "recipe": name, **error, **theory}


def _predict(recipe: Recipe, fine: Recipe, trials: Sequence[Trial], backend: str) -> dict[str, float | None]:
    """Add what rounding P must cost to the error that the recipe has with P in 16 bits, which is the emulator's."""
    keys, head_dim = trials[0].k.shape[2:]
    rounding = predict_rounding(recipe, keys, head_dim)
    others = measure_error(fine, [trial.first(EMULATED) for trial in trials], backend)["relative_rmse"]
    return {"fine_p": others, "rounding": rounding, "predicted": math.hypot(rounding, others)}


def growth(rows: Rows, recipe: str) -> tuple[float, float]:
    """Give the error of one head at the shortest and at the longest row.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    recipe : str
        The preset.

    Returns
    -------
    tuple of float
        Relative RMSE.
    """
    lines = series(rows, recipe)
    return lines[0]["relative_rmse"], lines[-1]["relative_rmse"]


def series(rows: Rows, recipe: str) -> list[Row]:
    """Select the rows over length, one head.

    Parameters
    ----------
    rows : sequence of mapping
        Of this study.
    recipe : str
        The preset.

    Returns
    -------
    list of mapping
        From the shortest to the longest.
    """
    found = pick(rows, layout=SERIES, recipe=recipe)
    counts = [row["head_dim"] for row in found]
    return sorted((row for row in found if row["head_dim"] == max(counts, key=counts.count)), key=lambda r: r["keys"])


def _findings(rows: Rows) -> Iterator[str]:
    """Say what grows, how well theory knows it, and what the head dimension and the layout do."""
    names = distinct(rows, "recipe")
    keys = [row["keys"] for row in series(rows, names[0])]
    grown = ", ".join("`{}` from {:.4f} to {:.4f}".format(name, *growth(rows, name)) for name in names)
    yield f"N(0, 1), one head, {keys[0]} to {keys[-1]} keys: {grown}."
    errors = {name: {row["keys"]: row["relative_rmse"] for row in series(rows, name)} for name in names}
    for name in names:
        worse = [n for n in keys if errors[name][n] > errors[FLOAT8][n]]
        if name != FLOAT8 and worse:
            yield f"`{name}` errs more than `{FLOAT8}` at {', '.join(map(str, worse))} keys."
    predicted = [row for row in rows if row["predicted"] is not None]
    for name in distinct(predicted, "recipe"):
        ratios = [row["relative_rmse"] / row["predicted"] for row in pick(predicted, recipe=name)]
        yield f"`{name}`: measured error {min(ratios):.2f} to {max(ratios):.2f} times the predicted one."
    for name in names:
        found = [row for row in pick(rows, layout=SERIES, recipe=name) if row["keys"] == common_keys(rows)]
        by_head_dim = ", ".join(f"D {row['head_dim']} {row['relative_rmse']:.4f}" for row in sorted(found, key=_by_d))
        yield f"`{name}` at {common_keys(rows)} keys: {by_head_dim}."
    layouts = [layout for layout in distinct(rows, "layout") if layout != SERIES]
    for name in names:
        written = ", ".join(f"{it} {one(rows, 'relative_rmse', layout=it, recipe=name):.4f}" for it in layouts)
        yield f"`{name}` in the layouts of models: {written}."


def _by_d(row: Row) -> int:
    return int(row["head_dim"])


def common_keys(rows: Rows) -> int:
    """Give the length at which head dimension and layout vary."""
    return next(int(row["keys"]) for row in rows if row["layout"] != SERIES)


STUDY = Study(
    name="length",
    question="How does the error grow with the length of the row and the size of the model?",
    setup=(
        "N(0, 1), sampled query rows against float64. The same recipe with P in 16 bits has every error but that of "
        "rounding P; the theory of `cupy_intfa.study.theory` adds the rounding to it, from the recipe alone, without a "
        "constant to fit. Beside it the head dimension, and the heads and KV heads of models from 7B to 70B."
    ),
    limits=(
        "N(0, 1) is what the theory knows: scores of a standard deviation of 1. Real rows are sharper, and their "
        "error depends on where the largest key stands more than on how many there are. The layouts have the shapes "
        "of models and nothing of their data. Kernels may take tiles of more than 64 keys, which changes the running "
        "maximum, not its growth."
    ),
    sizes={
        "quick": Settings(
            lengths=(256, 1024),
            head_dims=(64, 128),
            layouts=("8B, 32 heads on 8",),
            length=256,
            queries=16,
            layout_queries=1,
            seeds=(0,),
        ),
        "small": Settings(),
        "full": Settings(
            lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072),
            queries=128,
        ),
    },
    measure=_measure,
    keys=("layout", "head_dim", "keys", "recipe"),
    values=("relative_rmse", "relative_rmse_spread", "fine_p", "rounding", "predicted", "ran"),
    findings=_findings,
    table=Pivot(rows=("recipe",), columns=("layout", "head_dim", "keys"), value="relative_rmse"),
)
