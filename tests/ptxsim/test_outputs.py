"""Where and as what an attention kernel writes its output: every type, every kind of strides, and nothing beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels.harness import describe
from ptxsim.simulated import Setting
from strategies import DTYPES, Array, Case, dtype_of

from cupy_intfa import PRESETS, launch
from cupy_intfa.plan import Plan
from cupy_intfa.quantize import QuantizedQKV, quantize_arrays
from cupy_intfa.simulate import place_packing

ROWS, POISON = 19, 0x5A
SETTINGS = {
    "sm90": ("sm_90a", ("fast", "half", "precise")),
    "sm80": ("sm_80", ("fast", "half", "precise")),
    "dp4a": ("sm_75", ("fast", "precise")),
    "naive": ("sm_80", ("fast",)),
}
CASES = [
    pytest.param(Setting(name, arch), recipe, id=f"{name}-{recipe}")
    for name, (arch, recipes) in SETTINGS.items()
    for recipe in recipes
] + [pytest.param(Setting("sm80", "sm_75"), "fast", id="sm80-sm_75-fast")]  # no conversion to bfloat16

# Shape of the memory of (heads, rows, channels), and which of it is the output: side by side, which may be stored 16
# bytes at a time; rows that begin in an odd place, or end in a gap; gaps everywhere, backwards.
WHERE: dict[str, Any] = {
    "dense": lambda d: ((2, ROWS, d), np.s_[:, :, :]),
    "odd": lambda d: ((2, ROWS, d + 1), np.s_[:, :, 1:]),
    "wide": lambda d: ((2, ROWS, 2 * d), np.s_[:, :, :d]),
    "backwards": lambda d: ((2, 2 * ROWS, 3 * d), np.s_[:, ::-2, ::-3]),
}


def run(setting: Setting, plan: Plan, qkv: QuantizedQKV, dtype: str, where: str) -> Array:
    """Run the kernel into memory full of poison; the output, once nothing else is found to be written."""
    shape, part = WHERE[where](plan.problem.head_dim)
    memory = np.full(int(np.prod(shape)) * dtype_of(dtype).itemsize, POISON, np.uint8)
    view = memory.view(dtype_of(dtype)).reshape(shape)[part]
    strides = (0, *(stride // view.itemsize for stride in view.strides))
    first = view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    simulator = setting.simulator()
    out = simulator.memory.allocate("out", memory)
    assert plan.cuda is not None
    workspace = place_packing(simulator, plan, qkv)
    launch.attention(plan, plan.cuda, workspace, out + first, strides, 0, simulator.load, simulator.make_map)
    memory[...] = simulator.memory.read(out, memory.size)
    found: Array = view.copy()
    view.view(f"u{view.itemsize}")[...] = int.from_bytes(bytes([POISON]) * view.itemsize, "little")
    assert (memory == POISON).all(), "memory beside the output was written"
    return found


@pytest.mark.parametrize("head_dim", [64, 51])
@pytest.mark.parametrize(("setting", "name"), CASES)
def test_any_type_anywhere_is_float32_rounded_once(setting: Setting, name: str, head_dim: int) -> None:
    recipe = PRESETS[name]
    case = Case(heads=2, kv_heads=1, q_len=ROWS, kv_len=33, head_dim=head_dim, dtype="float32")
    qkv = quantize_arrays(*case.arrays(), recipe=recipe)
    exact = run(setting, setting.plan(recipe, describe(case)), qkv, "float32", "dense")
    assert np.isfinite(exact).all()
    for dtype in DTYPES:
        wanted = exact.astype(dtype_of(dtype))
        for where in WHERE if head_dim == 64 and dtype == "float16" else ("dense", "backwards"):
            plan = setting.plan(recipe, describe(Case(**{**case.__dict__, "dtype": dtype})))
            found = run(setting, plan, qkv, dtype, where)
            assert found.tobytes() == wanted.tobytes(), (dtype, where)
