"""The public face: `simulate`, ``backend="simulate"``, the trace, the command line."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from strategies import Case, restride

from cupy_intfa import PRESETS, Trace, attention, attention_quantized, explain, quantize_qkv, simulate
from cupy_intfa.cli import main
from cupy_intfa.ptxsim import compiler
from cupy_intfa.ptxsim.fragments import layout_a, layout_d
from cupy_intfa.simulator import ARCHITECTURES, Simulator, simulated_device

CASE = Case(heads=2, kv_heads=1, q_len=20, kv_len=70, head_dim=32, is_causal=True, causal_alignment="bottom_right")


# Of `fast` on sm_90a, whose tile of 128 keys and polynomial move outputs by 4e-3 here; test_kernels.py has its bound.
HOPPER = 8e-3


def close(out: Any, reference: Any, tolerance: float = 2e-3) -> None:
    np.testing.assert_allclose(out.astype(np.float64), reference.astype(np.float64), atol=tolerance, rtol=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_a_kernel(arch: str) -> None:
    arrays = CASE.arrays()
    out, lse, trace = simulate(*arrays, arch=arch, return_lse=True, **CASE.mask)
    wanted, wanted_lse = attention(*arrays, backend="numpy", return_lse=True, **CASE.mask)
    close(out, wanted, HOPPER if arch == "sm_90a" else 2e-3)
    close(lse, wanted_lse, HOPPER if arch == "sm_90a" else 2e-3)
    assert trace.scores == 2 * sum(51 + i for i in range(20))
    assert [one.kernel for one in trace.before][-2:] == ["quantize_rows", "quantize_values"]
    assert trace.kernel == explain(*arrays, backend="simulate").kernel or arch != "sm_90a"


def test_the_backend_runs_the_pipeline() -> None:
    arrays = CASE.arrays()
    wanted = simulate(*arrays, **CASE.mask)[0]
    assert explain(*arrays, backend="simulate").backend == "simulate"
    out = np.empty_like(wanted)
    assert attention(*arrays, backend="simulate", out=out, **CASE.mask) is out
    np.testing.assert_array_equal(out, wanted)
    qkv = quantize_qkv(*arrays, backend="simulate")
    assert isinstance(qkv.q, np.ndarray)
    np.testing.assert_array_equal(qkv.k, quantize_qkv(*arrays, backend="numpy").k)
    np.testing.assert_array_equal(attention_quantized(qkv, backend="simulate", **CASE.mask), wanted)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_layout_dtype_and_strides(layout: str, dtype: Any) -> None:
    arrays = tuple(x.astype(dtype) for x in CASE.arrays())
    wanted = attention(*arrays, backend="numpy", **CASE.mask)
    laid = tuple(x if layout == "bhsd" else x.swapaxes(1, 2) for x in arrays)
    out = attention(*(restride(x, "negative") for x in laid), layout=layout, backend="simulate", **CASE.mask)
    assert out.dtype == dtype
    close(out if layout == "bhsd" else out.swapaxes(1, 2), wanted, HOPPER)


@pytest.mark.parametrize(("recipe", "kv_len"), [("paper", 70), ("fast", 2120)])
def test_a_tile_that_ends_behind_the_packing_reads_nothing_unwritten(recipe: str, kv_len: int) -> None:
    """Tiles of 96 and 192 keys on a packing of whole 128."""
    case = Case(q_len=8, kv_len=kv_len, head_dim=128)
    out, *_ = simulate(*case.arrays(), arch="sm_90a", recipe=recipe)
    close(out, attention(*case.arrays(), recipe=recipe, backend="numpy"), 2e-2)


def test_the_order_of_warps_changes_no_bit() -> None:
    arrays = CASE.arrays()
    results = [simulate(*arrays, arch="sm_80", seed=seed, **CASE.mask)[0] for seed in (None, 0, 1)]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_the_trace_counts() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, 64, 64)).astype(np.float16) for i in range(3))
    _, trace = simulate(q, k, v, arch="sm_80", recipe="paper")
    assert isinstance(trace, Trace)
    products = {name: n for name, n in trace.instructions.items() if name.startswith("mma")}
    # 4 warps; 64 keys: 8 column tiles x 2 depths for Q K^T; 8 channel tiles x 2 depths for P V, and 2 for the row sum.
    assert products["mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"] == 4 * 8 * 2
    assert products["mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"] == 4 * (8 * 2 + 2)
    assert trace.moved["global written"] == 64 * 64 * 2
    assert trace.per_score()["mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"] == 32 * 64 / 64**2
    text = str(trace)
    assert text.startswith("attention_sm80: 1 blocks of 128 threads")
    assert "lane instructions per score, of 4096" in text
    assert json.loads(json.dumps(trace.to_json()))["scores"] == 4096


def test_the_trace_shows_what_fragments_held() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 1, 64, 64)).astype(np.float16) for i in range(3))
    qkv = quantize_qkv(q, k, v, recipe="paper", backend="numpy")
    _, trace = simulate(q, k, v, arch="sm_80", recipe="paper")
    first = next(f for f in trace.fragments if ".s8.s8." in f.opcode)
    np.testing.assert_array_equal(first.a, qkv.q[0, 0, :16, :32])
    np.testing.assert_array_equal(first.b, qkv.k[0, 0, :8, :32].T)
    np.testing.assert_array_equal(first.d - first.c, first.a.astype(int) @ first.b.astype(int))
    assert first.line.callers[-1][0] == "attention_sm80.cu"
    held = first.held(5)
    a, d = layout_a(16, 32, 1), layout_d(16, 8)
    np.testing.assert_array_equal(held["a"], first.a[a.rows[5], a.columns[5]])
    np.testing.assert_array_equal(held["d"], first.d[d.rows[5], d.columns[5]])
    np.testing.assert_array_equal(held["b"], first.b[[4, 5, 6, 7, 20, 21, 22, 23], 1])


def test_the_command_line_prints_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--q-len", "16", "--kv-len", "64", "--head-dim", "32", "--arch", "sm_80"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "attention_sm80: 1 blocks" in printed
    assert "quantize_rows" in printed
    off = float(printed.rsplit("farthest from the emulator: ", 1)[1])
    assert off < 2e-3
    assert main([*arguments, "--json", "--kernel", "naive", "--seed", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["launches"][-1]["kernel"] == "attention_naive"
    assert found["off"] < 1e-4


def test_an_output_is_filled_and_returned() -> None:
    arrays = CASE.arrays()
    wanted, wanted_lse, _ = simulate(*arrays, arch="sm_80", return_lse=True, **CASE.mask)
    room = np.full((2, *wanted.shape), np.nan, wanted.dtype)
    out, lse, _ = simulate(*arrays, arch="sm_80", return_lse=True, out=room[1], **CASE.mask)
    assert np.shares_memory(out, room)
    np.testing.assert_array_equal(room[1], wanted)
    np.testing.assert_array_equal(lse, wanted_lse)
    assert np.isnan(room[0]).all()


def test_arguments_are_refused_as_by_attention_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> Any:
        pytest.fail("a kernel was loaded")

    monkeypatch.setattr(Simulator, "load", run)
    q, k, v = CASE.arrays()
    for error, message, given in (
        (ValueError, r"workspace= is memory of a GPU, .* leave it away", {"workspace": np.zeros(1, np.uint8)}),
        (ValueError, r"out has shape \(1, 2, 20, 8\): expected \(1, 2, 20, 32\)", {"out": q[..., :8].copy()}),
        (TypeError, "out has dtype float64: expected float32", {"out": q.astype(np.float64)}),
    ):
        with pytest.raises(error, match=message):
            simulate(q, k, v, **CASE.mask, **given)
    k[0, 0, 3, 5] = np.inf
    with pytest.raises(ValueError, match=r"k holds 1 values that are not finite .* = \(0, 0, 3, 5\)"):
        simulate(q, k, v, check_finite=True, **CASE.mask)


def test_what_cannot_be_simulated_is_refused() -> None:
    arrays = CASE.arrays()
    with pytest.raises(ValueError, match=r"arch='sm_61': expected one of sm_75, sm_80"):
        simulate(*arrays, arch="sm_61", **CASE.mask)
    with pytest.raises(NotImplementedError, match="multiplies int8 only"):
        simulate(*arrays, recipe=PRESETS["half"], backend="dp4a", **CASE.mask)
    with pytest.raises(ValueError, match="workspace= is for the CUDA backend"):
        attention(*arrays, backend="simulate", workspace=np.zeros(1, np.uint8), **CASE.mask)


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    monkeypatch.setitem(__import__("sys").modules, "cuda.pathfinder", None)
    compiler._library.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match=r"found none: pip install 'nvidia-cuda-nvrtc==13\.0\.\*'"):
            Simulator(simulated_device("sm_80")).load("attention_naive", ("D=32",))
    finally:
        compiler._library.cache_clear()
