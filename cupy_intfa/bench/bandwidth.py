"""How near the quantise kernels come to a copy of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cupy_intfa.attention import explain
from cupy_intfa.bench.contenders import Inputs, first_line
from cupy_intfa.bench.report import Entry, Measured
from cupy_intfa.bench.timing import Budget, Call, Timer, interleave
from cupy_intfa.quantize.launch import quantize_into

COPY = "device copy"


def measure(inputs: Inputs, presets: Sequence[str], timer: Timer, budget: Budget) -> dict[str, Entry]:
    """Time the quantise kernels of presets and a copy of the inputs, in turn.

    Parameters
    ----------
    inputs : tuple of cupy.ndarray
        q, k and v.
    presets : sequence of str
        Recipes.
    timer : Timer
        Takes the time of a call.
    budget : Budget
        How long.

    Returns
    -------
    dict of str to Entry
        By preset, bytes per second: each byte of q, k and v counts once, however often a recipe reads it, and each
        byte of the packing once. The copy counts each byte twice, read and written.
    """
    import cupy

    source = cupy.concatenate([x.ravel() for x in inputs])
    target = cupy.empty_like(source)
    calls: dict[str, list[Call]] = {COPY: [partial(cupy.copyto, target, source)]}
    nbytes = {COPY: 2 * source.nbytes}
    entries: dict[str, Entry] = {}
    for preset in presets:
        try:
            plan = explain(*inputs, recipe=preset, backend="cuda")
        except NotImplementedError as error:
            entries[preset] = Entry(missing=first_line(error))
            continue
        if plan.cuda is None:
            raise NotImplementedError(f"{preset}: a plan for the CUDA backend has no CUDA part")
        calls[preset] = [partial(quantize_into, plan, plan.cuda, inputs, plan.workspace())]
        nbytes[preset] = source.nbytes + plan.cuda.packing.nbytes
    for (call,) in calls.values():
        call()  # compiles
    for name, timing in interleave(calls, timer, budget).items():
        gbps = nbytes[name] / timing.median_ms / 1e6
        entries[name] = Entry(forms={"copy" if name == COPY else "quantise": Measured(timing=timing, gbps=gbps)})
    return entries
