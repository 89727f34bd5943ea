"""Arrays of other libraries on the GPU: in and out without a copy, on their own stream, without waiting."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from kernels.harness import assert_same_bits, blocked, to_device
from strategies import DTYPES, Array, Case, dtype_of

from cupy_intfa import Plan, attention, attention_quantized, explain, quantize_qkv
from cupy_intfa.arrays import give_back, take_in

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes three quarters of the GPU at its start

pytestmark = pytest.mark.gpu

CASE = Case(heads=4, kv_heads=2, q_len=100, kv_len=170, head_dim=64, is_causal=True, causal_alignment="top_left")


@dataclass(frozen=True)
class Library:
    """How a library makes an array on the GPU, gives it back to the host, and tells its address and dtype."""

    name: str
    dtypes: tuple[str, ...]
    make: Callable[[Array], Any]
    host: Callable[[Any], Array]
    address: Callable[[Any], int]
    wait: Callable[[], object]


def _cupy() -> Library:
    import cupy

    return Library("cupy", DTYPES, to_device, lambda x: x.get(), lambda x: x.data.ptr, cupy.cuda.Device().synchronize)


def _torch() -> Library:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def make(x: Array) -> Any:
        if x.dtype.name == "bfloat16":
            return torch.tensor(x.view(np.int16)).view(torch.bfloat16).cuda()
        return torch.tensor(x).cuda()

    def host(x: Any) -> Array:
        if x.dtype == torch.bfloat16:
            return np.asarray(x.view(torch.int16).cpu()).view(dtype_of("bfloat16"))
        return np.asarray(x.cpu())

    return Library("torch", DTYPES, make, host, lambda x: x.data_ptr(), torch.cuda.synchronize)


def _jax() -> Library:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    dtypes = ("float16", "bfloat16", "float32")  # float64 is switched off by default
    return Library(
        "jax",
        dtypes,
        lambda x: jax.device_put(x, jax.devices("gpu")[0]).block_until_ready(),
        np.asarray,
        lambda x: x.unsafe_buffer_pointer(),
        lambda: None,
    )


@pytest.fixture(params=[_cupy, _torch, _jax], ids=["cupy", "torch", "jax"])
def library(request: pytest.FixtureRequest) -> Library:
    made: Library = request.param()
    return made


def test_in_and_out(library: Library) -> None:
    for dtype in library.dtypes:
        host = replace(CASE, dtype=dtype).arrays()
        q, k, v = (library.make(x) for x in host)
        out, lse = attention(q, k, v, return_lse=True, **CASE.mask)
        wanted, wanted_lse = attention(*host, return_lse=True, backend="cuda", **CASE.mask)
        assert type(out) is type(lse) is type(q)
        assert (out.dtype, out.device, lse.device) == (q.dtype, q.device, q.device)
        assert_same_bits(library.host(out), wanted, dtype)
        assert_same_bits(library.host(lse), wanted_lse, dtype)


def test_quantised_arrays_of_any_library(library: Library) -> None:
    q, k, v = (library.make(x) for x in CASE.arrays())
    out = attention_quantized(quantize_qkv(q, k, v), **CASE.mask)
    assert_same_bits(out.get(), library.host(attention(q, k, v, **CASE.mask)))


def test_layout_and_strides(library: Library) -> None:
    host = CASE.arrays()
    wanted = attention(*host, backend="cuda", **CASE.mask)
    swapped = [library.make(np.ascontiguousarray(x.swapaxes(1, 2))) for x in host]
    out = attention(*swapped, layout="bshd", **CASE.mask)
    assert_same_bits(library.host(out).swapaxes(1, 2), wanted)
    if library.name != "jax":  # whose arrays have no strides
        viewed = [x.swapaxes(1, 2) for x in swapped]
        assert_same_bits(library.host(attention(*viewed, **CASE.mask)), wanted)


def test_explain(library: Library) -> None:
    plan = explain(*(library.make(x) for x in CASE.arrays()), **CASE.mask)
    assert isinstance(plan, Plan)
    assert plan.cuda is not None
    assert (plan.backend, plan.kernel) == ("cuda", plan.cuda.source)
    assert plan.cuda.device.name in str(plan)


def test_nothing_is_copied(library: Library) -> None:
    for dtype in library.dtypes:
        x = library.make(replace(CASE, dtype=dtype).arrays()[0])
        operands = take_in(q=x)
        assert operands.arrays[0].data.ptr == library.address(x), f"{dtype}, in"
        assert library.address(give_back(operands.arrays[0], operands)) == library.address(x), f"{dtype}, out"


def test_nothing_waits(library: Library) -> None:
    """CuPy's current stream is what CuPy and JAX arrays run on; torch has its own."""
    import cupy as cp

    q, k, v = (library.make(x) for x in CASE.arrays())
    wanted = library.host(attention(q, k, v, **CASE.mask))
    stream = cp.cuda.Stream(non_blocking=True)
    library.wait()
    cp.cuda.Device().synchronize()
    if library.name == "torch":
        import torch

        with blocked(stream) as busy, torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            out = attention(q, k, v, **CASE.mask)
            assert busy(), "the call waited for the stream"
    else:
        with blocked(stream) as busy, stream:
            out = attention(q, k, v, **CASE.mask)
            assert busy(), "the call waited for the stream"
    assert_same_bits(library.host(out), wanted)


class TestTorch:
    """What torch alone has: streams of its own, gradients, tensors to write into, its own graphs."""

    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch", reason="torch is not installed")

    def tensors(self, torch: Any, dtype: str = "float16") -> list[Any]:
        return [torch.tensor(x).cuda() for x in replace(CASE, dtype=dtype).arrays()]

    def test_runs_on_the_current_stream(self, torch: Any) -> None:
        """The queries are filled by the stream that the call is made on, after a wait; nothing orders but it."""
        import cupy as cp

        q, k, v = self.tensors(torch)
        wanted = attention(q, k, v, **CASE.mask).cpu()
        later = torch.zeros_like(q).zero_()
        wanted_twice = 2 * attention(q, k, v, **CASE.mask)  # torch loads its kernels here, which waits for the GPU
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with blocked(cp.cuda.Stream.from_external(stream)) as busy, torch.cuda.stream(stream):
            later.copy_(q)
            out, lse = attention(later, k, v, return_lse=True, **CASE.mask)
            later.zero_()
            doubled = 2 * out
            assert busy(), "a call waited for the stream"
        stream.synchronize()
        assert torch.equal(out.cpu(), wanted)
        assert torch.equal(doubled, wanted_twice)
        assert bool(torch.isfinite(lse).all())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_out_is_filled(self, torch: Any, dtype: str) -> None:
        kind = getattr(torch, dtype)
        q, k, v = (x.to(kind) for x in self.tensors(torch, "float32"))
        wanted = attention(q, k, v, **CASE.mask)
        wide = torch.full((*q.shape[:-1], 2 * q.shape[-1]), 7.0, dtype=kind, device="cuda")
        out = wide[..., ::2]
        assert attention(q, k, v, out=out, **CASE.mask) is out
        assert torch.equal(out, wanted)
        assert bool((wide[..., 1::2] == 7).all())

    def test_a_gradient_is_refused(self, torch: Any) -> None:
        q, k, v = self.tensors(torch)
        with pytest.raises(TypeError, match=r"q requires a gradient .* pass q\.detach\(\)"):
            attention(q.requires_grad_(), k, v, **CASE.mask)
        assert attention(q.detach(), k, v, **CASE.mask).requires_grad is False

    def test_a_graph_replays(self, torch: Any) -> None:
        q, k, v = self.tensors(torch)
        out, workspace = torch.empty_like(q), explain(q, k, v, **CASE.mask).workspace()
        wanted = [attention(x, k, v, **CASE.mask) for x in (q, -q)]
        given = q.clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            attention(given, k, v, out=out, workspace=workspace, **CASE.mask)
        for x, expected in ((q, wanted[0]), (-q, wanted[1])):
            given.copy_(x)
            graph.replay()
            assert torch.equal(out, expected)

    def test_a_capture_without_a_workspace_is_refused(self, torch: Any) -> None:
        q, k, v = self.tensors(torch)
        out = attention(q, k, v, **CASE.mask)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out.zero_()
            with pytest.raises(ValueError, match="a CUDA graph is being captured"):
                attention(q, k, v, out=out, **CASE.mask)


def test_jax_arrays_cannot_be_written() -> None:
    jax = _jax()
    q, k, v = (jax.make(x) for x in CASE.arrays())
    with pytest.raises(TypeError, match="out is a JAX array, which cannot be filled"):
        attention(q, k, v, out=q, **CASE.mask)


def test_libraries_are_not_mixed(library: Library) -> None:
    q, k, v = CASE.arrays()
    with pytest.raises(TypeError, match=f"q is a numpy array and k a {library.name} array: expected one library"):
        attention(q, library.make(k), v, **CASE.mask)
