"""Every kernel that the package can compile, as its Python tables say it, and a selection that meets every pair.

A build is one source with one set of macros for one device. `pairwise` picks builds until any two values of two macros
(the architecture counts as one) that stand together in some build of a source stand together in a picked one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from devices import DEVICES
from strategies import P_LEVELS, QK_FORMATS

from cupy_intfa import PRESETS, Recipe, launch
from cupy_intfa.device import DeviceInfo
from cupy_intfa.kernel_table import LONG_ROW, common_defines
from cupy_intfa.packing import HEAD_DIM_TILES, KEY_BLOCK
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import DTYPES, AttentionProblem, make_problem
from cupy_intfa.quantize.cuda import plan_quantize


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
_QK = [
    {"qk": "int8", "qk_bits": bits, "q_granularity": q, "k_granularity": k}
    for bits, q, k in product((8, 4), ("token", "block", "tensor"), ("token", "group", "block", "tensor"))
] + [{"qk": qk, "q_granularity": "tensor", "k_granularity": "tensor"} for qk in QK_FORMATS if qk != "int8"]
_PV = [
    {"pv": pv, "p_levels": P_LEVELS[pv][-1], "v_granularity": v}
    for pv, v in product(P_LEVELS, ("tensor", "channel", "block", "block_channel"))
    if pv != "int8x2" and (pv == "int8" or v == "tensor")
]
_SOFTMAX = [{"p_reference": m, "row_sum": l} for m, l in product(("running", "tile"), ("quantised", "exact"))]
_DATA = [
    {"smooth_k": k, "smooth_v": v, "rotate": r, "key_window": w}
    for k, v, r, w in product((False, True), (False, True), (False, True), (0, KEY_BLOCK))
]


def attention_builds() -> list[Build]:
    """List what the plan can choose for the made-up devices: each architecture, class of recipe, D, and long rows."""
    made = [Recipe(**qk, **pv, **softmax) for qk, pv, softmax in product(_QK, _PV, _SOFTMAX)]
    recipes = {common_defines(recipe, 0): recipe for recipe in (*made, *PRESETS.values())}
    builds = {}
    for device, head_dim, kv_len in product(DEVICES.values(), HEAD_DIM_TILES, (KEY_BLOCK, LONG_ROW + 1)):
        for recipe in recipes.values():
            try:
                plan = make_plan(describe(head_dim, kv_len), recipe, "cuda", device)
            except NotImplementedError:  # which refusals are right is a matter of test_plan.py
                continue
            assert plan.cuda
            build = Build(
                device=device,
                source=plan.cuda.source,
                defines=(*plan.cuda.defines, f"PARAMS_BYTES={launch._ATTENTION.size}"),
                threads=plan.cuda.threads,
                shared_bytes=plan.cuda.shared_bytes,
            )
            builds[str(build)] = build
    return list(builds.values())


def quantize_builds(draws: int) -> list[Build]:
    """List what quantises problems and recipes drawn with a fixed seed: all of them are millions."""
    rng = random.Random(0)
    builds = {}
    for _ in range(draws):
        parts = {key: value for part in (_QK, _PV, _DATA) for key, value in rng.choice(part).items()}
        # 28 and 31 are padded to 32 channels, and have Hadamard blocks of 4 and 1.
        problem = describe(rng.choice((28, 31, *HEAD_DIM_TILES[1:])), dtype=rng.choice(DTYPES))
        device = rng.choice(tuple(DEVICES.values()))
        for step in plan_quantize(problem, Recipe(**parts, row_sum="exact"), rng.random() < 0.5).launches:
            build = Build(device=device, source=step.source, defines=step.defines, threads=step.threads)
            builds[str(build)] = build
    return list(builds.values())


def pairwise(builds: Sequence[Build]) -> list[Build]:
    """Pick builds until every pair is met, each time the build that brings most new ones."""
    numbers: dict[object, int] = {}
    pairs = np.zeros((len(builds), 0), np.intp)
    for row, build in enumerate(builds):
        named = {"arch": build.device.arch, **build.macros}
        found = [numbers.setdefault((build.source, pair), 1 + len(numbers)) for pair in combinations(named.items(), 2)]
        if len(found) > pairs.shape[1]:
            pairs = np.pad(pairs, ((0, 0), (0, len(found) - pairs.shape[1])))
        pairs[row, : len(found)] = found
    missing = np.ones(1 + len(numbers), np.bool_)
    missing[0] = False  # fills up the rows of builds with fewer macros
    picked = []
    while missing.any():
        best = int(missing[pairs].sum(axis=1).argmax())
        picked.append(builds[best])
        missing[pairs[best]] = False
    return picked
