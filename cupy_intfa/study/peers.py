"""Study: who errs less on the same inputs, the presets or what a user would take instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cupy_intfa.data.families import make_qkv
from cupy_intfa.demo import layer_samples
from cupy_intfa.recipe import DEFAULT_RECIPE, PRESETS
from cupy_intfa.study.beside import Inputs, damage, make_common_trial, measure_rivals, packages_of
from cupy_intfa.study.errors import compare_all, find_kernel, run_trials
from cupy_intfa.study.sage import NAME as SAGE2
from cupy_intfa.study.study import Pivot, Row, Rows, Study, pick
from cupy_intfa.study.trials import Samples, Trial

OURS = ("paper", "fast", "precise", "half", "fp8_e4m3")
CLAIMED = (DEFAULT_RECIPE, "precise", "half")  # presets that are to err less than rivals do
RIVALS = ("FA3 fp8", "cuDNN fp8", "comfy-kitchen INT8", "SageAttention 1", "SageAttention 2")
STAND_IN = {"FA3 fp8": "fp8_e4m3", "SageAttention 2": SAGE2}  # where the rival itself was not run
NARROWEST = 64  # channels of a head, for most rivals
LAYERS = tuple(f"layer {i}" for i in range(6))


def widen(q: np.ndarray, k: np.ndarray, v: np.ndarray, head_dim: int) -> Inputs:
    """Append channels of zeros, and scale q so that 1/√D leaves the same scores.

    Parameters
    ----------
    q, k, v : ndarray (B, H, S, D)
        Queries, keys and values.
    head_dim : int
        At least D.

    Returns
    -------
    tuple of ndarray (B, H, S, head_dim)
        q, k and v.

    Examples
    --------
    >>> x = np.ones((1, 1, 1, 16), np.float32)
    >>> q, k, v = widen(x, x, x, 64)
    >>> q[..., :17].ravel().tolist() == [2.0] * 16 + [0.0], k.sum(), v.shape
    (True, np.float32(16.0), (1, 1, 1, 64))
    """
    more = [(0, 0)] * 3 + [(0, head_dim - q.shape[-1])]
    factor = q.dtype.type((head_dim / q.shape[-1]) ** 0.5)
    return np.pad(q * factor, more), np.pad(k, more), np.pad(v, more)


def _draw(case: str, settings: Samples, backend: str) -> list[Trial]:
    """Make the trials of a case: one of a layer, one for each seed of a family."""
    if case in LAYERS:
        x = layer_samples()[LAYERS.index(case)]
        return [make_common_trial(*widen(x.q, x.k, x.v, NARROWEST), backend)]
    shape: Mapping[str, Any] = settings.shape
    drawn = [make_qkv(case, seed=seed, **shape) for seed in settings.seeds]
    return [make_common_trial(*qkv, backend) for qkv in drawn]


def _measure(settings: Samples, backend: str) -> Iterator[Row]:
    """Measure presets and rivals on every case."""
    settings.compile_ahead((PRESETS[name] for name in OURS), backend)
    for case in settings.data:
        trials = _draw(case, settings, backend)
        for name in OURS:
            found = compare_all(run_trials(PRESETS[name], trials, backend), trials)
            ran = find_kernel(PRESETS[name], trials[0], backend)
            yield {"case": case, "recipe": name, **damage(found), "missing": None, "ran": ran}
        yield from measure_rivals(case, trials, RIVALS)


def _findings(rows: Rows) -> Iterator[str]:
    """Compare the presets with each rival, and then with what stands for those that were not run."""
    finite = {row["recipe"] for row in rows if row["relative_rmse"] is not None}
    for rival in RIVALS:
        name = rival if rival in finite else STAND_IN.get(rival)
        if name:
            stands = rival if name == rival else f"{rival}, for which `{name}` stands,"
            said = ", ".join(_compared(rows, preset, name) for preset in CLAIMED)
            yield f"Error in units of that of {stands} {said}."
    missing = {row["recipe"]: row["missing"] for row in rows if row["missing"]}
    if missing:
        yield f"These were not run: {', '.join(f'{name} ({reason})' for name, reason in missing.items())}."


def _compared(rows: Rows, preset: str, rival: str) -> str:
    """Say how many times the error of a rival a preset has, and where it is more."""
    ours, theirs = (
        {row["case"]: row["relative_rmse"] for row in pick(rows, recipe=name) if row["relative_rmse"] is not None}
        for name in (preset, rival)
    )
    ratios = {case: ours[case] / error for case, error in theirs.items() if case in ours}
    more = [case for case, ratio in ratios.items() if ratio >= 1]
    span = f"`{preset}` {min(ratios.values()):.2f} to {max(ratios.values()):.2f}"
    return f"{span} ({'more on ' + ', '.join(more) if more else 'less on all'})"


STUDY = Study(
    name="peers",
    question="Who errs less on the same inputs, the presets or the rivals that run as fast?",
    setup=(
        "The six layers of all-MiniLM-L6-v2 on real text, whose heads of 32 channels are padded with zeros to the 64 "
        "that most rivals need, and three sets drawn from seeds; all rounded to float16, which everyone reads. "
        "Relative RMSE against float64 of the rounded inputs."
    ),
    limits=(
        "The error of a rival holds the rounding of its output to 16 bits; the presets answer in float32. The "
        "emulation of SageAttention 2 has its formats and scales, and neither its tiles nor its sums of 22 bits; "
        "fp8_e4m3 has the formats of FlashAttention-3 and other tiles."
    ),
    sizes={
        "quick": Samples(data=("layer 4", "normal", "outlier"), heads=1, queries=16, keys=256, seeds=(0, 1)),
        "small": Samples(data=(*LAYERS, "normal", "outlier", "channel"), keys=4096, head_dim=128),
        "full": Samples(data=(*LAYERS, "normal", "outlier", "channel"), heads=4, queries=1024, keys=4096, head_dim=128),
    },
    measure=_measure,
    keys=("case", "recipe"),
    values=("relative_rmse", "relative_rmse_spread", "not_finite", "missing", "ran"),
    findings=_findings,
    table=Pivot(rows=("recipe",), columns=("case",), value="relative_rmse"),
    packages=packages_of(RIVALS),
)
