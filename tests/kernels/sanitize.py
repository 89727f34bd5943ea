"""Every kernel, at the smallest sizes that meet its edges: what compute-sanitizer runs, which slows a kernel a lot.

    compute-sanitizer --tool memcheck python -m kernels.sanitize memcheck

`make sanitize` runs it for memcheck and for racecheck. racecheck does not follow a wait for an mbarrier's parity, by
which attention_sm80 orders its copies on Hopper, and attention_sm90 the copies into a stage that was read before, and
calls them hazards. For it the former meets at every tile (SLACK 0) and the latter takes no row of more tiles than
stages; their mbarriers are for the simulator, which follows parities and finds what is planted there
(tests/ptxsim/mutations.py).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from kernels.harness import ROWS, TILES, runs, spread, to_device
from strategies import DTYPES, Case

from cupy_intfa import PRESETS, attention, attention_quantized, get_recipe, kernel_table, quantize_qkv
from cupy_intfa.recipe import Recipe
from cupy_intfa.tiles import find_tile

EDGES = Case(heads=2, q_len=70, kv_len=130, is_causal=True, causal_alignment="bottom_right")


def calls() -> Iterator[tuple[str, Recipe, Case]]:
    """Give kernel, recipe and case: presets and dtypes go round the head dimensions, `fast` and `precise` meet all."""
    head_dims = [sizes[0] for sizes in TILES.values()]
    for start, name in enumerate(ROWS):
        for i, preset in enumerate(PRESETS):
            every = preset in ("fast", "precise")
            for head_dim in head_dims if every else [head_dims[(start + i) % len(head_dims)]]:
                yield name, PRESETS[preset], replace(EDGES, head_dim=head_dim, dtype=DTYPES[i % 4])
        for changes in ({"k_granularity": "tensor", "q_granularity": "tensor"}, {"smooth_k": True, "rotate": True}):
            yield name, get_recipe("paper", **changes), replace(EDGES, head_dim=96, dtype="float16")
        # Rows that put their sums aside on the way, and more rows than the mask shows keys to.
        yield name, get_recipe("paper", p_levels=255), Case(q_len=3, kv_len=65_600, head_dim=16, dtype="float16")
        yield name, PRESETS["fast"], replace(EDGES, q_len=140, kv_len=65)


def meet_at_every_tile() -> None:
    """Let the warps of attention_sm80 meet at a barrier instead of mbarriers."""

    def without_slack(*args: Any) -> Any:
        tile = find_tile(*args)
        return tile and replace(tile, slack=0)

    patch.object(kernel_table, "find_tile", without_slack).start()


def main(tool: str) -> None:
    """Run them all, each array in an allocation of its own: inside a pool's block nothing is out of bounds."""
    import cupy as cp

    if tool == "racecheck":
        meet_at_every_tile()

    cp.cuda.set_allocator(None)
    done = 0
    for (name, recipe, case), layout in zip(calls(), itertools.cycle(("bhsd", "bshd"))):
        if not runs(name, recipe, case.head_dim) or (tool, name, case.kv_len > 1000) == ("racecheck", "sm90", True):
            continue
        arrays = [to_device(x if layout == "bhsd" else x.swapaxes(1, 2)) for x in case.arrays()]
        _, out = spread(arrays[0].shape, case.dtype)
        _, lse = attention(*arrays, recipe=recipe, layout=layout, out=out, return_lse=True, backend=name, **case.mask)
        dense = attention_quantized(quantize_qkv(*arrays, recipe=recipe, layout=layout), backend=name, **case.mask)
        assert (out.view(f"u{out.itemsize}") == dense.view(f"u{out.itemsize}")).all(), f"{name}, {recipe.name}, {case}"
        assert not np.isnan(lse.get()).any()
        done += 1
    print(f"{done} calls of {len(ROWS)} kernels")


if __name__ == "__main__":
    main(*sys.argv[1:])
