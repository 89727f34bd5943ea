"""Study: inputs made to hurt, and which recipe breaks on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from cupy_intfa.data.families import make_qkv
from cupy_intfa.study.beside import Inputs, damage, make_common_trial, measure_rivals, packages_of
from cupy_intfa.study.errors import compare_all, find_kernel, run_trials, study_recipes
from cupy_intfa.study.sage import NAME as SAGE2
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one, pick
from cupy_intfa.study.trials import Samples

BROKEN = 0.1  # relative RMSE: a tenth of the output is error
COMPARED = ("FA3 fp8", "SageAttention 2")
DOMINANT_LOGIT = 12.0  # e¹² = 160 000 times an average key


def _dominant_key(seed: int, **shape: Any) -> Inputs:
    """Draw N(0, 1) with one key, a third down the row, that every query attends to."""
    q, k, v = make_qkv("normal", seed=seed, **shape)
    # Queries lean √D along the first axis, so that x on that axis of a key adds x to its logit.
    q[..., 0] += np.float32(shape["head_dim"] ** 0.5)
    k[:, :, shape["kv_len"] // 3, 0] += np.float32(DOMINANT_LOGIT)
    return q, k, v


def _heavy_tails(seed: int, **shape: Any) -> Inputs:
    """Draw from Student's t of three degrees of freedom, the fewest that have a variance."""
    rng = np.random.default_rng(seed)
    lengths = (shape["q_len"], shape["kv_len"], shape["kv_len"])
    drawn = (rng.standard_t(3.0, (1, shape["heads"], length, shape["head_dim"])) for length in lengths)
    q, k, v = (x.astype(np.float32) for x in drawn)
    return q, k, v


def _scaled(factors: tuple[float, float, float], seed: int, **shape: Any) -> Inputs:
    """Draw N(0, 1) and multiply q, k and v."""
    q, k, v = (x * np.float32(f) for x, f in zip(make_qkv("normal", seed=seed, **shape), factors, strict=True))
    return q, k, v


CASES: Mapping[str, Callable[..., Inputs]] = {
    "normal": partial(make_qkv, "normal"),
    "sink first": partial(make_qkv, "sink_first"),
    "one dominant key": _dominant_key,
    "outliers": partial(make_qkv, "outlier"),
    "heavy tails": _heavy_tails,
    "outlier tokens": partial(make_qkv, "outlier_token"),
    "constant rows": partial(make_qkv, "constant_rows"),
    "scores × 10": partial(_scaled, (10.0, 1.0, 1.0)),
    "scores × 100": partial(_scaled, (100.0, 1.0, 1.0)),
    "all × 100": partial(_scaled, (100.0, 100.0, 100.0)),
    "V × 100": partial(_scaled, (1.0, 1.0, 100.0)),
}


def _measure(settings: Samples, backend: str) -> Iterator[Row]:
    """Measure every recipe, and the rivals that can be imported, on every case."""
    settings.compile_ahead(study_recipes().values(), backend)
    for name in settings.data:
        drawn = [CASES[name](seed=seed, **settings.shape) for seed in settings.seeds]
        trials = [make_common_trial(*qkv, backend) for qkv in drawn]
        for recipe_name, recipe in study_recipes().items():
            found = compare_all(run_trials(recipe, trials, backend), trials)
            ran = find_kernel(recipe, trials[0], backend)
            yield {"case": name, "recipe": recipe_name, **damage(found), "missing": None, "ran": ran}
        yield from measure_rivals(name, trials, COMPARED)


def is_broken(row: Row) -> bool:
    """Tell whether a recipe broke: NaN or infinity, or more error than `BROKEN`.

    Parameters
    ----------
    row : mapping
        Of this study.

    Returns
    -------
    bool
        False for what was not measured.

    Examples
    --------
    >>> is_broken({"not_finite": 0, "relative_rmse": 0.02}), is_broken({"not_finite": 1, "relative_rmse": None})
    (False, True)
    """
    return row["not_finite"] > 0 or (row["relative_rmse"] is not None and row["relative_rmse"] > BROKEN)


def _findings(rows: Rows) -> Iterator[str]:
    """Say what breaks on each case."""
    for case in distinct(rows, "case"):
        measured = [row for row in pick(rows, case=case) if row["missing"] is None]
        broken = [f"`{row['recipe']}` {_written(row)}" for row in measured if is_broken(row)]
        default = one(measured, "relative_rmse", recipe="fast")
        yield f"{case}: broken {', '.join(broken) or 'nothing'}; the default errs by {default:.3g}."
    yield from _say_how_others_fare(rows)
    missing = {row["recipe"]: row["missing"] for row in rows if row["missing"]}
    for name, reason in missing.items():
        stands = f"its scheme is emulated as `{SAGE2}`" if SAGE2.startswith(name) else "`fp8_e4m3` stands for it"
        yield f"{name} was not run ({reason}); {stands}."


def _say_how_others_fare(rows: Rows) -> Iterator[str]:
    """Compare FlashAttention-3 with the preset of its formats, and the scheme of SageAttention 2 with the default."""
    ours, theirs = _errors(rows, "fp8_e4m3"), _errors(rows, COMPARED[0])
    ratios = [error / ours[case] for case, error in theirs.items() if case in ours]
    if ratios:
        yield f"{COMPARED[0]} errs {min(ratios):.3f} to {max(ratios):.3f} times as much as `fp8_e4m3`."
    default, emulated = _errors(rows, "fast"), _errors(rows, SAGE2)
    ratios = [error / default[case] for case, error in emulated.items() if case in default]
    if ratios:
        better = [case for case, error in emulated.items() if case in default and error < default[case]]
        yield (
            f"{SAGE2}, errs {min(ratios):.2f} to {max(ratios):.2f} times as much as the default; less on "
            f"{', '.join(better) or 'none'}."
        )


def _errors(rows: Rows, recipe: str) -> dict[str, float]:
    return {row["case"]: row["relative_rmse"] for row in pick(rows, recipe=recipe) if row["relative_rmse"] is not None}


def _written(row: Row) -> str:
    return "not finite" if row["relative_rmse"] is None else f"{row['relative_rmse']:.3g}"


STUDY = Study(
    name="adversarial",
    question="Which recipe breaks on inputs made to hurt, and by how much?",
    setup=(
        "Eleven sets, from N(0, 1) to scores that leave one key alone, rounded to float16. Relative RMSE against "
        f"float64 of the rounded inputs; more than {BROKEN} counts as broken. FlashAttention-3 in fp8 and "
        "SageAttention 2 see the same inputs where they can be imported; the published scheme of the latter is "
        "emulated as well, which needs no import."
    ),
    limits=(
        "Where scores are hundreds of nats apart, attention picks one key, and an error of half a per cent in a score "
        "can pick another: that is a limit of eight bits in Q·Kᵀ, not of a recipe. The preset fp8_e4m3 is not "
        "FlashAttention-3: it has the same formats and one scale per head, but other tiles. The emulation of "
        "SageAttention 2 has its formats and scales, and neither its tiles nor its sums of 22 bits."
    ),
    sizes={
        "quick": Samples(data=tuple(CASES), heads=1, queries=16, keys=256, seeds=(0, 1)),
        "small": Samples(data=tuple(CASES), keys=4096),
        "full": Samples(data=tuple(CASES), heads=4, queries=256, keys=8192),
    },
    measure=_measure,
    keys=("case", "recipe"),
    values=("relative_rmse", "relative_rmse_spread", "not_finite", "missing", "ran"),
    findings=_findings,
    table=Pivot(rows=("case",), columns=("recipe",), value="relative_rmse"),
    packages=packages_of(COMPARED),
)
