"""Run one kernel of the ladder on quantised arrays, and hold it against its twin, the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from kernels.bounds import Bound, arithmetic_of, kernel_bound
from strategies import Array, Case, dtype_of
from tolerances import assert_within, output_rounding

from cupy_intfa import PRESETS, Plan, QuantizedQKV, Recipe, attention_quantized
from cupy_intfa.device import DeviceInfo, default_device
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.reference import emulator

ROWS = tuple(NAMED_KERNELS)  # the ladder
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


def planned(name: str, recipe: Recipe, case: Case) -> Plan:
    """Plan a case for one kernel of the ladder; NotImplementedError for what it does not run on this GPU."""
    return make_plan(describe(case), recipe, name, DEVICE)


def runs(name: str, recipe: Recipe, head_dim: int = 64) -> bool:
    """Tell whether a kernel runs a recipe on this GPU: what there is to test."""
    try:
        return planned(name, recipe, Case(head_dim=head_dim)).backend == "cuda"
    except NotImplementedError:
        return False


ROW_PRESETS = [
    pytest.param(row, preset, id=f"{row}-{preset}") for row in ROWS for preset in PRESETS if runs(row, PRESETS[preset])
]
every_kernel = pytest.mark.parametrize(("name", "preset"), ROW_PRESETS)


def case_of(q: Array, k: Array, **options: Any) -> Case:
    """Describe arrays of layout bhsd that no family made."""
    (batch, heads, q_len, head_dim), (kv_heads, kv_len) = q.shape, k.shape[1:3]
    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": q_len, "kv_len": kv_len}
    return Case(**sizes, head_dim=head_dim, dtype=q.dtype.name, **options)


def to_device(x: Array) -> Any:
    """Copy a host array to the device, bfloat16 too."""
    import cupy as cp

    return cp.asarray(np.ascontiguousarray(x).reshape(-1).view(np.uint8)).view(x.dtype).reshape(x.shape)


def to_host(x: Any) -> Array:
    """Copy an array of NumPy or CuPy to the host."""
    host: Array = x if isinstance(x, np.ndarray) else x.get()
    return host


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
    """Run a kernel of the ladder on quantised arrays; output (B, Hq, Sq, D) of the case's dtype, and lse, on the host.

    ``where`` is ``host`` (NumPy arrays travel), ``device`` (CuPy arrays) or ``spread`` (into an output with gaps).
    """
    source = qkv if where == "host" else on_device(qkv)
    keywords = {**case.keywords, "return_lse": True, "out_dtype": case.dtype, "backend": name}
    if where == "spread":
        shape = describe(case, qkv.layout).out_shape
        memory, target = spread(shape, case.dtype)
        out, lse = attention_quantized(source, out=target, **keywords)
        assert out is target
        out = gather(memory.get(), shape, case.dtype)
    else:
        out, lse = (to_host(x) for x in attention_quantized(source, **keywords))
    assert out.dtype == dtype_of(case.dtype)
    return (out if qkv.layout == "bhsd" else out.swapaxes(1, 2)), to_host(lse)


def gather(memory: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Take the output out of the memory of `spread`, and see that nothing was written between its elements."""
    view = spread_view(memory, shape, dtype)
    out: Array = view.copy()
    view.view(f"u{view.itemsize}")[...] = int("5A" * view.itemsize, 16)
    assert (memory == 0x5A).all(), "memory between the elements of the output was written"
    return out


def twin(name: str, qkv: QuantizedQKV, case: Case) -> tuple[Array, Array, Bound]:
    """Run the emulator with a kernel's tile; output, lse and the bound of their distance from the kernel's."""
    plan = planned(name, qkv.recipe, case)
    keywords: dict[str, Any] = {
        "scale": case.softmax_scale,
        "key_tile": plan.key_tile,
        "causal_offset": case.causal_offset,
    }
    return *emulator.attention(qkv, **keywords), kernel_bound(qkv, **keywords, arithmetic=arithmetic_of(plan))


def assert_twins(actual: tuple[Array, Array], expected: tuple[Array, Array, Bound], dtype: str, what: str) -> None:
    """Assert that a kernel's output and lse are its twin's, within the bound and the rounding to a dtype."""
    out, lse, bound = expected
    rounding = output_rounding(np.abs(np.nan_to_num(out)) + np.nan_to_num(bound.out), dtype)
    assert_within(actual[0], out, bound.out + rounding, f"out, {what}")
    assert_within(actual[1], lse, bound.lse, f"lse, {what}")


def assert_same_bits(actual: Array, expected: Array, what: str = "") -> None:
    """Assert equality to the last bit, NaN and the sign of 0 included."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    bits = f"u{expected.itemsize}"
    where = np.argwhere(np.ascontiguousarray(actual).view(bits) != np.ascontiguousarray(expected).view(bits))
    assert not len(where), f"{what}: {len(where)} of {expected.size} differ, the first at {where[0]}"


WAIT = r"""
extern "C" __global__ void wait(volatile const int* go, long long most) {
    long long start = clock64();
    while (!*go && clock64() - start < most) {}
}
"""


@contextmanager
def blocked(stream: Any) -> Iterator[Callable[[], bool]]:
    """Keep a CuPy stream busy until the block is left, or for some seconds; yields the question whether it still is.

    Who waits for the stream inside the block comes back late, and finds it idle.
    """
    import cupy as cp

    host = cp.cuda.alloc_pinned_memory(4)
    go = np.frombuffer(host, np.int32, 1)
    go[0] = 0
    wait = cp.RawKernel(WAIT, "wait")
    with stream:
        wait((1,), (1,), (np.uint64(host.ptr), np.int64(10**10)))  # 5 s at 2 GHz
        passed = stream.record()
    try:
        yield lambda: not passed.done
    finally:
        go[0] = 1
        stream.synchronize()
