"""Work is ordered by the caller's stream and waits for nothing: streams, CUDA graphs, threads, the second GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels.harness import assert_same_bits, blocked, to_device, to_host
from strategies import Case

from cupy_intfa import PRESETS, attention, attention_quantized, explain, kernels, quantize_qkv
from cupy_intfa.quantize import quantize_arrays

pytestmark = pytest.mark.gpu

CASE = Case(heads=4, kv_heads=2, q_len=200, kv_len=300, head_dim=64)


@pytest.mark.parametrize("quantised", [False, True], ids=["from float16", "quantised"])
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_waits_and_the_stream_orders(preset: str, quantised: bool) -> None:
    import cupy as cp

    q, k, v = (to_device(x) for x in replace(CASE, dtype="float16").arrays())
    wanted, wanted_lse = attention(q, k, v, recipe=preset, return_lse=True)
    qkv = quantize_qkv(q, k, v, recipe=preset)
    attention_quantized(qkv)
    later, values = cp.zeros_like(q), v.copy()
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with blocked(stream) as busy, stream:
        later[...] = q  # what the stream has yet to do when the call is made
        if quantised:
            out, lse = attention_quantized(qkv, return_lse=True)
        else:
            out, lse = attention(later, k, v, recipe=preset, return_lse=True)
            v[...] = 0  # ... and what it does after
        explain(later, k, v, recipe=preset)
        assert busy(), "the call waited for the stream"
    v[...] = values
    assert_same_bits(to_host(out), to_host(wanted))
    assert_same_bits(to_host(lse), to_host(wanted_lse))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_graph_replays_on_changed_inputs(preset: str) -> None:
    import cupy as cp

    first, second = ([to_device(x) for x in replace(CASE, seed=seed, dtype="float16").arrays()] for seed in (1, 2))
    inputs = [x.copy() for x in first]
    workspace = explain(*inputs, recipe=preset).workspace()
    out = cp.empty_like(inputs[0])
    wanted = [to_host(attention(*arrays, recipe=preset)) for arrays in (first, second)]
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        attention(*inputs, recipe=preset, out=out, workspace=workspace)
        graph = stream.end_capture()
        for arrays, expected in ((first, wanted[0]), (second, wanted[1]), (first, wanted[0])):
            for x, new in zip(inputs, arrays, strict=True):
                x[...] = new
            out.fill(0)
            for _ in range(2):
                graph.launch()
            assert_same_bits(to_host(out), expected)


def test_a_graph_of_quantised_attention_replays() -> None:
    import cupy as cp

    q, k, v = (to_device(x) for x in CASE.arrays())
    qkv = quantize_qkv(q, k, v)
    workspace = explain(q, k, v).workspace()
    out, wanted = cp.empty_like(q), to_host(attention_quantized(qkv))
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        attention_quantized(qkv, out=out, workspace=workspace)
        graph = stream.end_capture()
        workspace.fill(0)
        graph.launch()
        assert_same_bits(to_host(out), wanted)


def test_a_capture_without_a_workspace_is_refused() -> None:
    import cupy as cp

    q, k, v = (to_device(x) for x in CASE.arrays())
    out = attention(q, k, v)
    qkv = quantize_qkv(q, k, v)
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: attention(q, k, v, out=out),
        lambda: attention_quantized(qkv, out=out),
        lambda: quantize_qkv(q, k, v),
    )
    with stream:
        stream.begin_capture()
        for call in calls:
            with pytest.raises(ValueError, match="a CUDA graph is being captured"):
                call()
        stream.end_capture()


def test_threads_compile_a_kernel_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight threads, each with a stream of its own, ask first for a kernel that nobody has compiled."""
    import cupy as cp

    compiled: list[str] = []
    compile_kernel = kernels._compile

    def counted(name: str, *rest: Any) -> Any:
        compiled.append(name)
        return compile_kernel(name, *rest)

    qkv = quantize_arrays(*CASE.arrays(), recipe=PRESETS["fast"])
    wanted = attention_quantized(qkv, backend="cuda")
    monkeypatch.setattr(kernels, "_compile", counted)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    start = threading.Barrier(8)

    def call(_: int) -> np.ndarray[Any, Any]:
        with cp.cuda.Stream(non_blocking=True):
            start.wait()
            out: np.ndarray[Any, Any] = attention_quantized(qkv, backend="cuda")
            return out

    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(call, range(8)))
    assert len(compiled) == 1, compiled
    for out in outs:
        assert_same_bits(out, wanted)


def gpus() -> int:
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # no CuPy, no driver: the tests below then fail or skip for that
        return 2


second_gpu = pytest.mark.skipif(gpus() < 2, reason="a machine with one GPU: the second is not there to be tested")


@second_gpu
def test_arrays_of_the_second_gpu_stay_there() -> None:
    import cupy as cp

    wanted = to_host(attention(*(to_device(x) for x in CASE.arrays())))
    with cp.cuda.Device(1):
        q, k, v = (to_device(x) for x in CASE.arrays())
    with cp.cuda.Device(0):
        out = attention(q, k, v)
        quantised = attention_quantized(quantize_qkv(q, k, v))
        into = attention(q, k, v, out=out.copy(), workspace=explain(q, k, v).workspace())
        assert cp.cuda.Device().id == 0, "the caller's current device has changed"
    for x in (out, quantised, into):
        assert x.device.id == 1
        with x.device:
            assert_same_bits(to_host(x), wanted)


@second_gpu
def test_numpy_arrays_travel_to_the_current_gpu() -> None:
    import cupy as cp

    arrays = CASE.arrays()
    for device in (1, 0, 1):
        with cp.cuda.Device(device):
            plan = explain(*arrays, backend="cuda")
            assert plan.cuda is not None
            assert plan.cuda.device.ordinal == device
            assert_same_bits(attention(*arrays, backend="cuda"), attention(*map(to_device, arrays)).get())


@second_gpu
def test_two_gpus_are_not_mixed() -> None:
    import cupy as cp

    q, k, v = (to_device(x) for x in CASE.arrays())
    with cp.cuda.Device(1):
        other, workspace = to_device(CASE.arrays()[1]), explain(*map(to_device, CASE.arrays())).workspace()
    with pytest.raises(ValueError, match="q is on CUDA device 0 and k on CUDA device 1"):
        attention(q, other, v)
    with pytest.raises(ValueError, match=r"bytes on device 1: expected at least .* on device 0"):
        attention(q, k, v, workspace=workspace)
