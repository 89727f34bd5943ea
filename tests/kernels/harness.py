"""Run a chosen row of the kernel table, whatever the plan would take, and hold it against its twin, the emulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from devices import DEVICES
from kernels.bounds import Bound, kernel_bound
from strategies import Array, Case, dtype_of
from tolerances import assert_within, output_rounding

from cupy_intfa import QuantizedQKV, Recipe, attention_quantized, plan
from cupy_intfa.device import DeviceInfo, default_device
from cupy_intfa.kernel_table import KERNELS, KernelChoice, no_packing
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.reference import emulator

Row = Callable[[AttentionProblem, Recipe, DeviceInfo], KernelChoice | str]

ROWS: dict[str, Row] = {row.__name__.strip("_"): row for row in KERNELS}
TILES: dict[int, tuple[int, ...]] = {  # padded head dimension → some that are padded to it
    32: (1, 2, 7, 8, 16, 31, 32),
    64: (33, 40, 64),
    96: (65, 80, 96),
    128: (97, 127, 128),
    192: (129, 160, 192),
    256: (193, 255, 256),
}


@contextmanager
def only(row: Row) -> Iterator[None]:
    """Leave one row in the table."""
    with mock.patch.object(plan, "KERNELS", (row,)):
        plan.make_plan.cache_clear()
        try:
            yield
        finally:
            plan.make_plan.cache_clear()


def describe(case: Case) -> AttentionProblem:
    """Describe the problem of a case."""
    kv = (case.batch, case.kv_heads, case.kv_len, case.head_dim)
    return make_problem((case.batch, case.heads, case.q_len, case.head_dim), kv, kv, (case.dtype,) * 3, **case.keywords)


def choice(row: Row, recipe: Recipe, case: Case, device: DeviceInfo) -> KernelChoice | str:
    """Ask a row what it would run, or why it cannot."""
    return no_packing(recipe) or row(describe(case), recipe, device)


def runs(name: str, recipe: Recipe, head_dim: int = 64) -> bool:
    """Tell whether a row runs a recipe where the hardware has everything: what there is to test."""
    return isinstance(choice(ROWS[name], recipe, Case(head_dim=head_dim), DEVICES["sm_90"]), KernelChoice)


def gpu() -> DeviceInfo:
    """Give this machine's GPU."""
    device = default_device()
    assert isinstance(device, DeviceInfo), device
    return device


def chosen(row: Row, recipe: Recipe, case: Case) -> KernelChoice | None:
    """Give what a row runs on this GPU; None where the GPU lacks it, after seeing that the refusal says why."""
    found = choice(row, recipe, case, gpu())
    if isinstance(found, KernelChoice):
        return found
    with only(row), pytest.raises(NotImplementedError, match=re.escape(found)):
        plan.make_plan(describe(case), recipe, "cuda", gpu())
    return None


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


def run(
    row: Row, qkv: QuantizedQKV, case: Case, dtype: str = "float32", where: str = "host"
) -> tuple[Array, Array]:
    """Run a kernel on quantised arrays; output (B, Hq, Sq, D) and lse on the host.

    ``where`` is ``host`` (NumPy arrays travel), ``device`` (CuPy arrays) or ``spread`` (into a strided output).
    """
    keywords = {**case.keywords, "return_lse": True, "out_dtype": dtype, "backend": "cuda"}
    with only(row):
        if where == "host":
            out, lse = attention_quantized(qkv, **keywords)
        elif where == "device":
            out, lse = (x.get() for x in attention_quantized(on_device(qkv), **keywords))
        else:
            out, lse = _run_spread(on_device(qkv), case, keywords)
    assert out.dtype == dtype_of(dtype)
    assert lse.dtype == np.float32
    return (out if qkv.layout == "bhsd" else out.swapaxes(1, 2)), lse


def _run_spread(qkv: QuantizedQKV, case: Case, keywords: dict[str, Any]) -> tuple[Array, Array]:
    dtype = keywords["out_dtype"]
    inner = (case.heads, case.q_len) if qkv.layout == "bhsd" else (case.q_len, case.heads)
    shape = (case.batch, *inner, case.head_dim)
    memory, view = spread(shape, dtype)
    out, lse = attention_quantized(qkv, out=view, **keywords)
    assert out is view
    filled = memory.get()
    result: Array = spread_view(filled, shape, dtype).copy()
    spread_view(filled.view(), shape, dtype).view(f"u{result.itemsize}")[...] = int("5A" * result.itemsize, 16)
    assert (filled == 0x5A).all(), "memory between the elements of the output was written"
    return result, lse.get()


def twin(choice: KernelChoice, qkv: QuantizedQKV, case: Case) -> tuple[Array, Array, Bound]:
    """Run the emulator with a kernel's tile; output, lse and the bound of their distance from the kernel's."""
    keywords: dict[str, Any] = {
        "scale": case.softmax_scale,
        "key_tile": choice.keys,
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
