"""Arrays of other libraries: recognised without an import, taken in and given back without a copy."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from strategies import Array, Case

import cupy_intfa
from cupy_intfa.arrays import kind_of, take_in

CASE = Case(batch=2, heads=4, kv_heads=2, q_len=33, kv_len=70, head_dim=24, is_causal=True, causal_alignment="top_left")
NUMPY: dict[str, Any] = {**CASE.mask, "backend": "numpy"}


def expected(dtype: Any) -> tuple[Array, Array]:
    arrays = (x.astype(dtype) for x in CASE.arrays())
    out, lse = cupy_intfa.attention(*arrays, return_lse=True, **NUMPY)
    return out, lse


@pytest.fixture
def torch() -> ModuleType:
    module: ModuleType = pytest.importorskip("torch", reason="torch is not installed")
    return module


@pytest.fixture
def jax() -> ModuleType:
    module: ModuleType = pytest.importorskip("jax", reason="JAX is not installed")
    return module


class TestNumpy:
    """NumPy arrays are taken as they are."""

    def test_arrays_are_not_copied(self) -> None:
        x, y = np.zeros((2, 3)), np.zeros((2, 3))[::-1]
        operands = take_in(q=x, k=y)
        assert operands.arrays[0] is x
        assert operands.arrays[1] is y
        assert (operands.kind, operands.device) == ("numpy", None)

    def test_a_subclass_is_an_array(self) -> None:
        assert kind_of(np.zeros(3).view(np.recarray)) == "numpy"

    @pytest.mark.parametrize("value", [1.0, None, "abc", [1.0], (1.0,), object(), b"abc", np.float32(1), range(3)])
    def test_anything_else_is_refused(self, value: object) -> None:
        with pytest.raises(TypeError, match=r"^got a \w+: expected an array of numpy, cupy, torch or jax$"):
            kind_of(value)

    def test_something_that_looks_like_an_array_is_refused(self) -> None:
        class Lookalike:
            shape, ndim, dtype = (1, 1, 4, 8), 4, np.dtype(np.float32)

            def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
                return np.zeros(self.shape, np.float32)

        with pytest.raises(TypeError, match="q: got a Lookalike: expected an array of"):
            cupy_intfa.attention(Lookalike(), Lookalike(), Lookalike())


class TestMixed:
    """Arrays of two libraries or two devices, with stand-ins for libraries that may not be installed."""

    @staticmethod
    def stand_in(monkeypatch: pytest.MonkeyPatch, library: str, class_name: str, **attributes: Any) -> type:
        """Make a class that is recognised as the array of a library which is imported."""
        made = type(class_name, (), attributes)
        monkeypatch.setitem(sys.modules, library, SimpleNamespace(**{class_name: made}))
        return made

    @pytest.mark.parametrize(("library", "class_name"), [("torch", "Tensor"), ("cupy", "ndarray")])
    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_two_libraries_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, library: str, class_name: str, position: int
    ) -> None:
        given: list[Any] = list(CASE.arrays())
        given[position] = self.stand_in(monkeypatch, library, class_name)()
        first, other = (library, "numpy") if position == 0 else ("numpy", library)
        name = "qkv"[position] if position else "k"
        message = f"^q is a {first} array and {name} a {other} array: expected one library$"
        for face in (cupy_intfa.attention, cupy_intfa.quantize_qkv, cupy_intfa.explain):
            with pytest.raises(TypeError, match=message):
                face(*given)

    def test_out_of_another_library_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        out = self.stand_in(monkeypatch, "torch", "Tensor")()
        with pytest.raises(TypeError, match=r"^out is a torch array: expected numpy, like q$"):
            cupy_intfa.attention(*CASE.arrays(), out=out, **NUMPY)

    def test_two_devices_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self.stand_in(monkeypatch, "cupy", "ndarray")
        q, k, v = made(), made(), made()
        for x, device in ((q, 0), (k, 0), (v, 1)):
            x.device = SimpleNamespace(id=device)
        with pytest.raises(ValueError, match=r"^q is on CUDA device 0 and v on CUDA device 1: expected one device$"):
            take_in(q=q, k=k, v=v)
        assert take_in(q=q, k=k).device == 0


class TestTorch:
    """Tensors on the CPU go the NumPy way."""

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_in_and_out(self, torch: ModuleType, name: str) -> None:
        q, k, v = (torch.tensor(x).to(getattr(torch, name)) for x in CASE.arrays())
        out, lse = cupy_intfa.attention(q, k, v, return_lse=True, **NUMPY)
        assert isinstance(out, torch.Tensor)
        assert (out.dtype, tuple(out.shape)) == (getattr(torch, name), (2, 4, 33, 24))
        assert (lse.dtype, tuple(lse.shape)) == (torch.float32, (2, 4, 33))
        wanted, wanted_lse = expected("bfloat16" if name == "bfloat16" else name)
        assert out.to(torch.float64).numpy().tobytes() == wanted.astype(np.float64).tobytes()
        assert lse.numpy().tobytes() == wanted_lse.tobytes()

    def test_strided_tensors(self, torch: ModuleType) -> None:
        tensors = [torch.tensor(x).permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3) for x in CASE.arrays()]
        out = cupy_intfa.attention(*tensors, **NUMPY)
        assert out.numpy().tobytes() == expected(np.float32)[0].tobytes()

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
    def test_out_is_filled_and_returned(self, torch: ModuleType, name: str) -> None:
        tensors = [torch.tensor(x).to(getattr(torch, name)) for x in CASE.arrays()]
        out = torch.full_like(tensors[0], float("nan"))
        assert cupy_intfa.attention(*tensors, out=out, **NUMPY) is out
        assert out.to(torch.float64).numpy().tobytes() == expected(name)[0].astype(np.float64).tobytes()

    def test_a_result_is_not_read_only(self, torch: ModuleType) -> None:
        out = cupy_intfa.attention(*(torch.tensor(x) for x in CASE.arrays()), **NUMPY)
        out += 1
        assert out.numpy().tobytes() == (expected(np.float32)[0] + np.float32(1)).tobytes()

    def test_a_gradient_is_refused(self, torch: ModuleType) -> None:
        q, k, v = (torch.tensor(x) for x in CASE.arrays())
        with pytest.raises(TypeError, match=r"k requires a gradient and there is no backward pass: pass k\.detach\(\)"):
            cupy_intfa.attention(q, k.requires_grad_(), v, **NUMPY)
        out = torch.zeros_like(q).requires_grad_()
        with pytest.raises(TypeError, match="out requires a gradient"):
            cupy_intfa.attention(q, k.detach(), v, out=out, **NUMPY)

    def test_mixed_with_numpy_is_refused(self, torch: ModuleType) -> None:
        q, k, v = CASE.arrays()
        with pytest.raises(TypeError, match="q is a torch array and k a numpy array: expected one library"):
            cupy_intfa.attention(torch.tensor(q), k, v, **NUMPY)
        with pytest.raises(TypeError, match="out is a torch array: expected numpy, like q"):
            cupy_intfa.attention(q, k, v, out=torch.tensor(q), **NUMPY)

    def test_int8_and_other_dtypes_are_refused(self, torch: ModuleType) -> None:
        x = torch.ones((1, 1, 4, 8), dtype=torch.int8)
        with pytest.raises(TypeError, match="q is int8, which has lost its scale"):
            cupy_intfa.attention(x, x, x, **NUMPY)


class TestJax:
    """JAX arrays on the CPU go the NumPy way."""

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
    def test_in_and_out(self, jax: ModuleType, name: str) -> None:
        q, k, v = (jax.numpy.asarray(x.astype(name)) for x in CASE.arrays())
        out, lse = cupy_intfa.attention(q, k, v, return_lse=True, **NUMPY)
        assert isinstance(out, jax.Array)
        assert (out.dtype, out.shape) == (name, (2, 4, 33, 24))
        assert (lse.dtype, lse.shape) == ("float32", (2, 4, 33))
        wanted, wanted_lse = expected(name)
        assert np.asarray(out).tobytes() == wanted.tobytes()
        assert np.asarray(lse).tobytes() == wanted_lse.tobytes()

    def test_out_is_refused(self, jax: ModuleType) -> None:
        x = jax.numpy.ones((1, 1, 4, 8))
        with pytest.raises(TypeError, match="out is a JAX array, which cannot be filled: leave out= away"):
            cupy_intfa.attention(x, x, x, out=x, backend="numpy")

    def test_mixed_with_numpy_is_refused(self, jax: ModuleType) -> None:
        q, k, v = CASE.arrays()
        with pytest.raises(TypeError, match="q is a numpy array and v a jax array: expected one library"):
            cupy_intfa.attention(q, k, jax.numpy.asarray(v), **NUMPY)


def test_recognising_imports_nothing() -> None:
    code = (
        "import sys, numpy as np; from cupy_intfa.arrays import kind_of;"
        "kind_of(np.zeros(1));"
        "print(sorted({'cupy', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
