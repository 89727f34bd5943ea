"""Run a chosen row of the kernel table, whatever the plan would take, and hold it against its twin, the emulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from kernels.bounds import Bound, kernel_bound
from strategies import Array, Case, dtype_of
from tolerances import assert_within, output_rounding

from cupy_intfa import PRESETS, QuantizedQKV, Recipe, plan
from cupy_intfa.arrays import take_in
from cupy_intfa.backends import attend_on_cuda
from cupy_intfa.device import DeviceInfo, default_device
from cupy_intfa.kernel_table import KERNELS, KernelChoice, no_packing
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.reference import emulator

Row = Callable[[AttentionProblem, Recipe, DeviceInfo], KernelChoice | str]

ROWS: dict[str, Row] = {row.__name__.strip("_"): row for row in KERNELS}
_found = default_device()
DEVICE = _found if isinstance(_found, DeviceInfo) else DEVICES["sm_90"]  # with no GPU: what a Hopper would have to run
TILES: dict[int, tuple[int, ...]] = {  # padded head dimension → some that are padded to it
    32: (1, 2, 7, 8, 16, 31, 32),
    64: (33, 40, 64),
    96: (65, 80, 96),
    128: (97, 127, 128),
    192: (129, 160, 192),
    256: (193, 255, 256),
}


def describe(case: Case, layout: str = "bhsd") -> AttentionProblem:
    """Describe the problem of a case."""
    q, kv = (
        (case.batch, *((heads, length) if layout == "bhsd" else (length, heads)), case.head_dim)
        for heads, length in ((case.heads, case.q_len), (case.kv_heads, case.kv_len))
    )
    return make_problem(q, kv, kv, (case.dtype,) * 3, **case.keywords, layout=layout)


def choice(name: str, recipe: Recipe, case: Case) -> KernelChoice | str:
    """Ask a row of the table what it would run here, or why it cannot."""
    return no_packing(recipe) or ROWS[name](describe(case), recipe, DEVICE)


def runs(name: str, recipe: Recipe) -> bool:
    """Tell whether a row runs a recipe here: what there is to test."""
    return isinstance(choice(name, recipe, Case()), KernelChoice)


ROW_PRESETS = [
    pytest.param(row, preset, id=f"{row}-{preset}") for row in ROWS for preset in PRESETS if runs(row, PRESETS[preset])
]
every_kernel = pytest.mark.parametrize(("name", "preset"), ROW_PRESETS)


def case_of(q: Array, k: Array, **options: Any) -> Case:
    """Describe arrays of layout bhsd that no family made."""
    (batch, heads, q_len, head_dim), (kv_heads, kv_len) = q.shape, k.shape[1:3]
    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": q_len, "kv_len": kv_len}
    return Case(**sizes, head_dim=head_dim, dtype=q.dtype.name, **options)


def on_device(qkv: QuantizedQKV) -> QuantizedQKV:
    """Copy to CuPy arrays, without the packing; CuPy has no 8-bit floats, there they are bytes."""
    import cupy as cp

    arrays = {f.name: getattr(qkv, f.name) for f in fields(qkv) if isinstance(getattr(qkv, f.name), np.ndarray)}
    raw = {name: x.view(np.uint8) if x.dtype.name.startswith("float8") else x for name, x in arrays.items()}
    return replace(qkv, packed=None, **{name: cp.asarray(x) for name, x in raw.items()})


def spread(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Make an output on the device with gaps between its elements and negative strides: (memory, view)."""
    import cupy as cp

    wide = (*shape[:-2], 2 * shape[-2], 3 * shape[-1])
    memory = cp.full(int(np.prod(wide)) * dtype_of(dtype).itemsize, 0x5A, np.uint8)
    return memory, spread_view(memory, shape, dtype)


def spread_view(memory: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """See what `spread` gives in its memory, on the device or on the host."""
    wide = (*shape[:-2], 2 * shape[-2], 3 * shape[-1])
    return memory.view(dtype_of(dtype)).reshape(wide)[..., ::-2, ::-3]


def run(name: str, qkv: QuantizedQKV, case: Case, where: str = "host") -> tuple[Array, Array]:
    """Run a kernel of the table on quantised arrays; output (B, Hq, Sq, D) of the case's dtype, and lse, on the host.

    ``where`` is ``host`` (NumPy arrays travel), ``device`` (CuPy arrays) or ``spread`` (into an output with gaps).
    """
    tiles = choice(name, qkv.recipe, case)
    assert isinstance(tiles, KernelChoice), tiles
    chosen = plan._cuda_plan(describe(case, qkv.layout), qkv.recipe, DEVICE, tiles)
    assert chosen.cuda is not None
    source = qkv if where == "host" else on_device(qkv)
    memory, target = spread(chosen.problem.out_shape, case.dtype) if where == "spread" else (None, None)
    out, lse = attend_on_cuda(chosen, chosen.cuda, source, take_in(q=source.q), target, True, None)
    assert lse is not None
    if where == "spread":
        out = gather(memory.get(), chosen.problem.out_shape, case.dtype)
    elif where == "device":
        out = out.get()
    lse = lse if isinstance(lse, np.ndarray) else lse.get()
    assert (out.dtype, lse.dtype) == (dtype_of(case.dtype), np.float32)
    return (out if qkv.layout == "bhsd" else out.swapaxes(1, 2)), lse


def gather(memory: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Take the output out of the memory of `spread`, and see that nothing was written between its elements."""
    view = spread_view(memory, shape, dtype)
    out: Array = view.copy()
    view.view(f"u{view.itemsize}")[...] = int("5A" * view.itemsize, 16)
    assert (memory == 0x5A).all(), "memory between the elements of the output was written"
    return out


def twin(name: str, qkv: QuantizedQKV, case: Case) -> tuple[Array, Array, Bound]:
    """Run the emulator with a kernel's tile; output, lse and the bound of their distance from the kernel's."""
    tiles = choice(name, qkv.recipe, case)
    assert isinstance(tiles, KernelChoice), tiles
    keywords: dict[str, Any] = {
        "scale": case.softmax_scale,
        "key_tile": tiles.keys,
        "causal_offset": case.causal_offset,
    }
    return *emulator.attention(qkv, **keywords), kernel_bound(qkv, **keywords)


def assert_twins(
    actual: tuple[Array, Array], expected: tuple[Array, Array, Bound], dtype: str, what: str
) -> None:
    """Assert that a kernel's output and lse are its twin's, within the bound and the rounding to a dtype."""
    out, lse, bound = expected
    rounding = output_rounding(np.abs(np.nan_to_num(out)) + np.nan_to_num(bound.out), dtype)
    assert_within(actual[0], out, bound.out + rounding, f"out, {what}")
    assert_within(actual[1], lse, bound.lse, f"lse, {what}")


def assert_same_bits(actual: Array, expected: Array, what: str = "") -> None:
    """Assert equality to the last bit, NaN and the sign of 0 included."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    bits = f"u{expected.itemsize}"
    different = np.ascontiguousarray(actual).view(bits) != np.ascontiguousarray(expected).view(bits)
    assert not different.any(), f"{what}: {different.sum()} of {different.size} differ, the first at {np.argwhere(different)[0]}"
