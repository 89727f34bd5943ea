"""What a kernel's main loop does for one score, counted in its machine code, or in the simulator's trace of its PTX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cupy_intfa.plan import CudaPlan, Plan, make_plan
from cupy_intfa.problem import make_problem
from cupy_intfa.recipe import PRESETS
from cupy_intfa.simulate import simulate
from cupy_intfa.simulator import ARCHITECTURES
from cupy_intfa.study.chips import chips
from cupy_intfa.study.opcodes import multiplications
from cupy_intfa.study.rate_model import PLANNED, measured_case
from cupy_intfa.study.turns import read_blocks, shortest_turn

_TRACED = (128, 256)  # keys of two runs of the simulator: what the longer one does more is the main loop


@dataclass(frozen=True)
class Build:
    """A recipe on a chip.

    Parameters
    ----------
    arch, recipe : str
        Architecture and preset.
    head_dim : int
        D.
    backend : str
        ``cuda`` for the kernel that the plan takes, or one by its name.
    """

    arch: str
    recipe: str
    head_dim: int
    backend: str = PLANNED


def find_plan(build: Build) -> Plan | None:
    """Plan a long call.

    Parameters
    ----------
    build : Build
        What and where.

    Returns
    -------
    Plan or None
        None where there is no kernel.
    """
    case = measured_case(build.head_dim)
    problem = make_problem(case.q_shape, case.kv_shape, case.kv_shape, (case.dtype,) * 3)
    try:
        return make_plan(problem, PRESETS[build.recipe], build.backend, chips()[build.arch].device)
    except NotImplementedError:
        return None


def macros(cuda: CudaPlan) -> Mapping[str, int]:
    """Give the numbers that a kernel is compiled with, by name.

    Parameters
    ----------
    cuda : CudaPlan
        Of a plan.

    Returns
    -------
    mapping of str to int
        Without the prefix.
    """
    return {name: int(value) for name, value in (define.split("=") for define in cuda.defines)}


def rows_of_block(cuda: CudaPlan) -> int:
    """Give B_r.

    Parameters
    ----------
    cuda : CudaPlan
        Of a plan.

    Returns
    -------
    int
        Query rows of a block.
    """
    found = macros(cuda)
    return 16 * found["WARPS"] * found.get("M_TILES", 1)


def count_machine_code(listing: str, cuda: CudaPlan) -> dict[str, float]:
    """Count the instructions of a lane for a score in the main loop of a listing.

    Parameters
    ----------
    listing : str
        Of nvdisasm.
    cuda : CudaPlan
        What was compiled.

    Returns
    -------
    dict of str to float
        By opcode.
    """
    turn, found = shortest_turn(read_blocks(listing)), macros(cuda)
    tile = 16 * found.get("M_TILES", 1) * found["BC"]  # scores of a warp
    products = sum(count * multiplications(opcode) for opcode, count in turn.items())
    # Row sums are products too, a thirtieth of the whole at most: what is left of a tile is not another one.
    tiles = round(products / (2 * found["D"] * tile))
    return {opcode: 32 * count / (tiles * tile) for opcode, count in turn.items()}


def trace_kernel(build: Build, cuda: CudaPlan) -> dict[str, float]:
    """Count the instructions of a lane for a score by running two lengths in the simulator: PTX, moves left out.

    Parameters
    ----------
    build : Build
        What and where; what is older than the simulator knows is run as the oldest that it knows.
    cuda : CudaPlan
        What the plan takes.

    Returns
    -------
    dict of str to float
        By opcode. ptxas renames registers, so that most moves are no instructions.
    """
    arch = build.arch if build.arch in ARCHITECTURES else ARCHITECTURES[0]
    found: Counter[str] = Counter()
    for keys, sign in zip(_TRACED, (-1, 1), strict=True):
        rng = np.random.default_rng(0)
        q = rng.standard_normal((1, 1, rows_of_block(cuda), build.head_dim), np.float32)
        k, v = rng.standard_normal((2, 1, 1, keys, build.head_dim), np.float32)
        backend = cuda.source.removeprefix("attention_")
        _, trace = simulate(q, k, v, arch=arch, recipe=build.recipe, backend=backend)
        found.update({opcode: sign * count for opcode, count in trace.instructions.items()})
    scores = rows_of_block(cuda) * (_TRACED[1] - _TRACED[0])
    return {
        opcode: 32 * count / scores for opcode, count in found.items() if count > 0 and not opcode.startswith("mov.")
    }
