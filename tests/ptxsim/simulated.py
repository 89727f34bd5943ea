"""Run the shipped kernels in the simulator, and hold them against their twins like a GPU's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kernels.bounds import arithmetic_of, kernel_bound
from kernels.harness import assert_twins, describe
from kernels.test_quantize import assert_same_bits, expected
from strategies import Array, Case, dtype_of

from cupy_intfa import Recipe
from cupy_intfa.device import DeviceInfo
from cupy_intfa.plan import Plan, make_plan
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.ptxsim import PLAIN, Options
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.reference import emulator
from cupy_intfa.simulate import attend_simulated, place_packing, quantise_simulated
from cupy_intfa.simulator import Simulator, simulated_device

_FEW_STAGES = 80 * 1024  # bytes: two or three stages of attention_sm90 at D 64


@dataclass(frozen=True)
class Setting:
    """What to run, and how: a kernel of the ladder on a made-up GPU, from the package's sources or from others.

    A ``small`` GPU has one multiprocessor, and up to D 64 shared memory for few stages: rings of buffers come round.
    """

    name: str
    arch: str
    options: Options = PLAIN
    folder: Path | None = None
    small: bool = False

    def device(self, head_dim: int = 64) -> DeviceInfo:
        """Make the GPU up."""
        device = simulated_device(self.arch)
        if not self.small:
            return device
        shared = _FEW_STAGES if head_dim <= 64 else device.shared_per_block
        return replace(device, multiprocessors=1, shared_per_block=shared)

    def plan(self, recipe: Recipe, problem: AttentionProblem) -> Plan:
        """Plan a problem; NotImplementedError for what the kernel does not run on that GPU."""
        return make_plan(problem, recipe, self.name, self.device(problem.head_dim))

    def simulator(self) -> Simulator:
        """Make a GPU."""
        return Simulator(self.device(), self.options, self.folder)

    def runs(self, recipe: Recipe, head_dim: int) -> bool:
        """Tell whether there is such a kernel."""
        try:
            return self.plan(recipe, describe(Case(head_dim=head_dim))).cuda is not None
        except NotImplementedError:
            return False


def check_attention(setting: Setting, recipe: Recipe, case: Case, layout: str = "bhsd") -> None:
    """Quantise on the host, run the kernel, and compare with the emulator within the bound that a GPU has to keep."""
    problem = describe(case, layout)
    qkv = replace(quantize_arrays(*case.arrays(), recipe=recipe), layout=layout)
    plan = setting.plan(recipe, problem)
    simulator = setting.simulator()
    out, lse = attend_simulated(simulator, plan, place_packing(simulator, plan, qkv), True, dtype_of(case.dtype))
    assert lse is not None
    keywords: dict[str, Any] = {
        "scale": case.softmax_scale,
        "key_tile": plan.key_tile,
        "causal_offset": case.causal_offset,
    }
    bound = kernel_bound(qkv, **keywords, arithmetic=arithmetic_of(plan))
    wanted = (*emulator.attention(qkv, **keywords), bound)
    out = out if layout == "bhsd" else out.swapaxes(1, 2)
    assert_twins((out, lse), wanted, case.dtype, f"{setting.name} on {setting.arch}, {recipe.name}, {case}")


def check_quantise(setting: Setting, recipe: Recipe, problem: AttentionProblem, arrays: tuple[Array, ...]) -> None:
    """Run the quantise kernels and compare the packing with NumPy's, bit for bit."""
    plan = setting.plan(recipe, problem)
    assert plan.cuda
    simulator = setting.simulator()
    workspace = quantise_simulated(simulator, plan, arrays)
    written = simulator.memory.read(workspace, plan.cuda.packing.nbytes)
    assert_same_bits(plan.cuda.packing.views(written), expected(problem, recipe, arrays))


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Draw an array of any float dtype."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype_of(dtype))
