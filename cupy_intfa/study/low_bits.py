"""Study: Q and K in 4 bits and in 2, which the paper says its framework extends to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from cupy_intfa.metrics import compare
from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.rotate import rotate
from cupy_intfa.recipe import Recipe, get_recipe
from cupy_intfa.reference import oracle
from cupy_intfa.study.errors import measure_error, summarise
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, pick
from cupy_intfa.study.trials import REAL, Samples, Trial

# What shares a scale of Q and of K, and the window in which keys are sorted.
SCALES: Mapping[str, tuple[str, str, int]] = {
    "tensor": ("tensor", "tensor", 0),
    "block": ("block", "block", 0),
    "token": ("token", "token", 0),
    "group": ("token", "group", 64),
}
DATA = (REAL, "normal", "outlier", "channel", "sink_first")
TWO_BITS = "fake"  # what runs 2 bits: no recipe has them, so Q and K are rounded and the rest is float64


def make_recipe(bits: int, scales: str, smooth: bool, rotated: bool) -> Recipe:
    """Quantise Q and K in some way; P and V stay in float16, so that nothing else is seen.

    Parameters
    ----------
    bits : {8, 4}
        Of Q and K.
    scales : str
        A key of `SCALES`.
    smooth, rotated : bool
        Whether the mean key is subtracted, and whether Q and K are rotated.

    Returns
    -------
    Recipe
        Otherwise that of ``half``.

    Examples
    --------
    >>> make_recipe(8, "group", True, False).name
    'half'
    """
    q_granularity, k_granularity, window = SCALES[scales]
    return get_recipe(
        "half",
        qk_bits=bits,
        q_granularity=q_granularity,
        k_granularity=k_granularity,
        key_window=window,
        smooth_k=smooth,
        rotate=rotated,
    )


def _measure(settings: Samples, backend: str) -> Iterator[Row]:
    """Measure 8, 4 and 2 bits with every kind of scale, with and without smoothing and rotation."""
    turns = list(product((False, True), repeat=2))
    ways = product((8, 4), SCALES, turns)
    settings.compile_ahead([make_recipe(bits, scales, *turn) for bits, scales, turn in ways], backend)
    for data in settings.data:
        trials = settings.draw(data, backend)
        for smooth, rotated in turns:
            names = {"smooth_k": smooth, "rotate": rotated}
            for bits, scales in product((8, 4), SCALES):
                found = measure_error(make_recipe(bits, scales, smooth, rotated), trials, backend)
                yield {"data": data, "bits": bits, "scales": scales, **names, **found}
            two = summarise([compare(in_two_bits(t, smooth, rotated), t.exact) for t in trials], "relative_rmse")
            yield {"data": data, "bits": 2, "scales": "token", **names, **two, "ran": TWO_BITS}


def in_two_bits(trial: Trial, smooth: bool, rotated: bool) -> np.ndarray:
    """Attend with every query and key rounded to −1, 0 and 1 times its largest element.

    Parameters
    ----------
    trial : Trial
        The inputs.
    smooth, rotated : bool
        As in `make_recipe`.

    Returns
    -------
    ndarray (B, H, S, D), float64
        The output; everything but Q and K is exact.
    """
    k = trial.k - trial.k.mean(axis=2, keepdims=True) if smooth else trial.k
    q, k = (rotate(x, np) if rotated else x for x in (trial.q, k))
    q, k = (quantize_symmetric(x, "int2", "row").dequantize() for x in (q, k))
    return oracle.attention(q, k, trial.v)[0]


def _findings(rows: Rows) -> Iterator[str]:
    """Say what 4 bits cost at their best, and what smoothing and rotation do to them."""
    for data in distinct(rows, "data"):
        best = {bits: min(pick(rows, data=data, bits=bits), key=_error) for bits in (8, 4, 2)}
        written = ", ".join(f"{bits} bits {_error(row):.3g} ({_name(row)})" for bits, row in best.items())
        yield f"{data}, the best of each: {written}."
        plain, smoothed, turned, both = (
            _error(pick(rows, data=data, bits=4, scales="token", smooth_k=smooth, rotate=rotated)[0])
            for smooth, rotated in ((False, False), (True, False), (False, True), (True, True))
        )
        yield (
            f"{data}, 4 bits with a scale per token: {plain:.3g} plain, {smoothed:.3g} smoothed, {turned:.3g} rotated, "
            f"{both:.3g} both."
        )


def _error(row: Row) -> float:
    return float(row["relative_rmse"])


def _name(row: Row) -> str:
    turned = [name for name, on in (("smoothed", row["smooth_k"]), ("rotated", row["rotate"])) if on]
    return " ".join([str(row["scales"]), *turned])


STUDY = Study(
    name="low_bits",
    question="How far down can the bits of Q and K go?",
    setup=(
        "Q and K in 8 and in 4 bits with one scale per tensor, block of 64, token, or group of 16 sorted keys (Q then "
        "per token), with and without subtracting the mean key, with and without rotation by a Hadamard matrix; P and "
        "V in float16, so that only Q and K err. Two bits are −1, 0 and 1 times the largest element of the token, with "
        "everything else in float64."
    ),
    limits=(
        "The error of one attention. Whether a model bears it is another question; see the study of depth. Four bits "
        "are stored in bytes here: this says what they cost, not what they gain. The real activations have a head "
        "dimension of 32, over which a rotation spreads an outlier less than over 128."
    ),
    sizes={
        "quick": Samples(data=("channel",), heads=1, queries=32, keys=256, head_dim=128, seeds=(0,)),
        "small": Samples(data=DATA, head_dim=128),
        "full": Samples(data=DATA, heads=4, queries=256, keys=8192, head_dim=128),
    },
    measure=_measure,
    keys=("data", "bits", "scales", "smooth_k", "rotate"),
    values=("relative_rmse", "relative_rmse_spread", "ran"),
    findings=_findings,
    table=Pivot(rows=("bits", "scales", "smooth_k", "rotate"), columns=("data",), value="relative_rmse"),
)
