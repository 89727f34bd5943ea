"""Every kernel that the package can compile, as its Python tables say it, and selections that meet all pairs of macros.

A build is one source with one set of macros for one device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from devices import DEVICES
from strategies import INTEGER_PV, P_LEVELS, QK_FORMATS

from cupy_intfa import PRESETS, Recipe
from cupy_intfa.device import DeviceInfo
from cupy_intfa.kernel_table import KERNELS, NAMED_KERNELS, KernelChoice, common_defines, no_packing
from cupy_intfa.launch import ATTENTION_PARAMS_BYTES
from cupy_intfa.packing import HEAD_DIM_TILES, KEY_BLOCK
from cupy_intfa.problem import DTYPES, AttentionProblem, make_problem
from cupy_intfa.quantize.cuda import plan_quantize
from cupy_intfa.tiles import LONG_ROW


@dataclass(frozen=True, kw_only=True)
class Build:
    """A kernel on a device: source, macros, threads of a block, its dynamic shared memory in bytes."""

    device: DeviceInfo
    source: str
    defines: tuple[str, ...]
    threads: int
    shared_bytes: int = 0

    @property
    def macros(self) -> dict[str, str]:
        """Macros by name, without the counts of bytes, which are checked and choose nothing."""
        named = dict(define.split("=") for define in self.defines)
        return {name: value for name, value in named.items() if not name.endswith("_BYTES")}

    def __str__(self) -> str:
        """Name a test."""
        return "-".join((self.device.arch, self.source, *(name + value for name, value in self.macros.items())))


def describe(head_dim: int, kv_len: int = 64, dtype: str = "float16") -> AttentionProblem:
    """Make a problem of one head."""
    kv = (1, 1, kv_len, head_dim)
    return make_problem((1, 1, 64, head_dim), kv, kv, (dtype,) * 3)


# What recipes can be, in parts that do not depend on each other: Q and K; P and V; softmax; what is done to K and V.
Part = Mapping[str, Any]
QK_PARTS: Sequence[Part] = (
    *(
        {"qk": "int8", "qk_bits": bits, "q_granularity": q, "k_granularity": k}
        for bits, q, k in product((8, 4), ("token", "block", "tensor"), ("token", "group", "block", "tensor"))
    ),
    *({"qk": qk, "q_granularity": "tensor", "k_granularity": "tensor"} for qk in QK_FORMATS if qk != "int8"),
)
PV_PARTS: Sequence[Part] = (
    *({"pv": "int8", "p_levels": 255, "v_granularity": v} for v in ("tensor", "channel", "block", "block_channel")),
    *({"pv": pv, "p_levels": 1} for pv in P_LEVELS if pv not in INTEGER_PV),
)
_SOFTMAX_PARTS: Sequence[Part] = tuple(
    {"p_reference": reference, "row_sum": row_sum}
    for reference, row_sum in product(("running", "tile"), ("quantised", "exact"))
)
_DATA_PARTS: Sequence[Part] = tuple(
    {"smooth_k": smooth_k, "smooth_v": smooth_v, "rotate": rotate, "key_window": window}
    for smooth_k, smooth_v, rotate, window in product(*[(False, True)] * 3, (0, KEY_BLOCK))
)


def attention_builds() -> tuple[list[Build], list[Build]]:
    """List the attention kernels for each made-up device, class of recipe, padded D, and rows with and without flush.

    First those that the plan takes by itself, then those that run only where a call names a kernel.
    """
    made = [Recipe(**qk, **pv, **softmax) for qk, pv, softmax in product(QK_PARTS, PV_PARTS, _SOFTMAX_PARTS)]
    runnable = (recipe for recipe in (*made, *PRESETS.values()) if no_packing(recipe) is None)
    recipes = {common_defines(recipe, 0): recipe for recipe in runnable}.values()
    problems = [describe(d, kv_len) for d, kv_len in product(HEAD_DIM_TILES, (KEY_BLOCK, 1024, 16384, LONG_ROW + 1))]
    rows = (*KERNELS, *(row for row in NAMED_KERNELS.values() if row not in KERNELS))
    taken: dict[Build, None] = {}
    named: dict[Build, None] = {}
    for device, problem, recipe in product(DEVICES.values(), problems, recipes):
        found = {row: row(problem, recipe, device) for row in rows}
        builds = {row: _build(device, choice) for row, choice in found.items() if isinstance(choice, KernelChoice)}
        first = next((row for row in KERNELS if row in builds), None)
        for row, build in builds.items():
            (taken if row is first else named)[build] = None
    return list(taken), [build for build in named if build not in taken]


def _build(device: DeviceInfo, choice: KernelChoice) -> Build:
    counts = (f"SHARED_BYTES={choice.shared_bytes}", f"PARAMS_BYTES={ATTENTION_PARAMS_BYTES}")
    return Build(
        device=device,
        source=choice.source,
        defines=(*choice.defines, *counts),
        threads=choice.threads,
        shared_bytes=choice.shared_bytes,
    )


def quantize_builds(draws: int) -> list[Build]:
    """List what quantises problems and recipes drawn with a fixed seed: all of them are millions."""
    rng = random.Random(0)
    builds: dict[Build, None] = {}
    for _ in range(draws):
        parts = {key: value for part in (QK_PARTS, PV_PARTS, _DATA_PARTS) for key, value in rng.choice(part).items()}
        # 28 and 31 are padded to 32 channels, and have Hadamard blocks of 4 and 1.
        problem = describe(rng.choice((28, 31, *HEAD_DIM_TILES[1:])), dtype=rng.choice(DTYPES))
        device = rng.choice(tuple(DEVICES.values()))
        for step in plan_quantize(problem, Recipe(**parts, row_sum="exact"), rng.random() < 0.5).launches:
            builds[Build(device=device, source=step.source, defines=step.defines, threads=step.threads)] = None
    return list(builds)


# Macros that follow from the others, by the tables of tiles: each value is met, but not in all pairs.
_TILE = ("WARPS", "M_TILES", "BC", "STEP", "Q_SHARED", "STAGES", "SLACK", "MIN_BLOCKS", "ITEM_BUFFERS", "CUBIC")


def combinations_of(build: Build, size: int) -> set[tuple[object, ...]]:
    """List the values of a build's macros, and from size 2 on pairs of those that are chosen freely.

    The architecture counts as one of them.
    """
    items = {"arch": build.device.arch, **build.macros}
    chosen = [item for item in items.items() if item[0] not in _TILE]
    pairs = combinations(chosen, 2) if size > 1 else ()
    return {(build.source, *combination) for combination in (*combinations(items.items(), 1), *pairs)}


def cover(builds: Sequence[Build], size: int, before: Sequence[Build] = ()) -> list[Build]:
    """Pick builds until all combinations are met, by them or by those before; the next is the one that brings most."""
    numbers: dict[object, int] = {}
    rows = [[numbers.setdefault(one, len(numbers)) for one in combinations_of(build, size)] for build in builds]
    missing = np.ones(len(numbers) + 1, np.bool_)
    missing[-1] = False  # fills up the rows of builds with fewer macros
    for build in before:
        missing[[numbers[one] for one in combinations_of(build, size) if one in numbers]] = False
    table = np.full((len(rows), max(map(len, rows))), len(numbers))
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    picked = []
    while missing.any():
        best = int(missing[table].sum(axis=1).argmax())
        picked.append(builds[best])
        missing[table[best]] = False
    return picked
