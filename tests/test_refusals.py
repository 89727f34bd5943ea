"""Bad input: the error's type and the telling part of its text, from every public function, before anything runs."""

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cupy_intfa import QuantizedQKV, attention, attention_quantized, explain, quantize, quantize_qkv
from cupy_intfa.reference import emulator

Face = Callable[..., Any]
FACES: dict[str, Face] = {"attention": attention, "quantize_qkv": quantize_qkv, "explain": explain}


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def arrays(
    q: tuple[int, ...] = (2, 4, 8, 16), k: tuple[int, ...] = (2, 2, 8, 16), v: tuple[int, ...] | None = None
) -> Any:
    return array(*q), array(*k), array(*(k if v is None else v))


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if an element is quantised or computed with: a refusal comes before."""

    def ran(*_: Any, **__: Any) -> None:
        pytest.fail("something ran before the refusal")

    monkeypatch.setattr(quantize.qkv, "load_float32", ran)
    monkeypatch.setattr(emulator, "attention", ran)


def refuses(face: Face, error: type[Exception], message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        face(*args, **kwargs)
    assert caught.type is error, "a subclass would be an error of NumPy's, not ours"


SHAPES = [
    ("rank 2", ((8, 16), (8, 16)), "q has shape (8, 16): expected 4 axes (bhsd) or 3 without the batch"),
    ("rank 5", ((1, 1, 1, 8, 16),) * 2, "q has shape (1, 1, 1, 8, 16): expected 4 axes"),
    ("ranks differ", ((1, 4, 8, 16), (4, 8, 16)), "q has 4 axes and k has 3: expected as many"),
    ("Sq = 0", ((1, 4, 0, 16), (1, 4, 8, 16)), "q has shape (1, 4, 0, 16): every axis must be at least 1 long"),
    ("Skv = 0", ((1, 4, 8, 16), (1, 4, 0, 16)), "k has shape (1, 4, 0, 16): every axis must be at least 1 long"),
    ("B = 0", ((0, 4, 8, 16), (0, 4, 8, 16)), "q has shape (0, 4, 8, 16): every axis must be at least 1 long"),
    ("D = 0", ((1, 4, 8, 0), (1, 4, 8, 0)), "every axis must be at least 1 long"),
    ("k ≠ v", ((1, 4, 8, 16), (1, 4, 8, 16), (1, 4, 9, 16)), "k has shape (1, 4, 8, 16) and v has (1, 4, 9, 16)"),
    ("batches", ((2, 4, 8, 16), (3, 4, 8, 16)), "q is (2, 4, 8, 16) and k is (3, 4, 8, 16)"),
    ("head dimensions", ((2, 4, 8, 16), (2, 4, 8, 32)), "one head dimension"),
    (
        "heads",
        ((1, 4, 8, 16), (1, 3, 8, 16)),
        "q has 4 heads and k has 3: expected a multiple (is layout='bhsd' right?)",
    ),
    ("fewer heads than kv heads", ((1, 2, 8, 16), (1, 4, 8, 16)), "q has 2 heads and k has 4: expected a multiple"),
    ("D > 256", ((1, 1, 8, 257), (1, 1, 8, 257)), "head dimension is 257: expected at most 256"),
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("shapes", "message"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_shapes(face: str, shapes: Any, message: str) -> None:
    refuses(FACES[face], ValueError, message, *arrays(*shapes))


@pytest.mark.parametrize("face", FACES)
def test_layout(face: str) -> None:
    refuses(FACES[face], ValueError, "layout='bsdh': expected one of ('bhsd', 'bshd')", *arrays(), layout="bsdh")
    # In the other layout these arrays have 8 and 8 heads of 4 and 2 tokens: legal for q, k, v of equal H and S alone.
    q, k, v = arrays((2, 6, 8, 16), (2, 6, 5, 16))
    refuses(FACES[face], ValueError, "q has 8 heads and k has 5: expected a multiple", q, k, v, layout="bshd")


@pytest.mark.parametrize("face", FACES)
def test_int8_names_the_function_that_takes_it(face: str) -> None:
    x = array(1, 1, 4, 8, dtype=np.int8)
    refuses(FACES[face], TypeError, "q is int8, which has lost its scale: quantise with quantize_qkv and call", x, x, x)
    f = array(1, 1, 4, 8)
    refuses(FACES[face], TypeError, "v is int8", f, f, x)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.int32, "int32"),
        (np.uint8, "uint8"),
        (np.bool_, "bool"),
        (np.complex64, "complex64"),
        (np.object_, "object"),
        (np.longdouble, np.dtype(np.longdouble).name),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
    ],
)
def test_dtype(face: str, dtype: Any, name: str) -> None:
    x = array(1, 1, 4, 8, dtype=dtype)
    wanted = f"q has dtype {name}: expected one of float16, bfloat16, float32, float64"
    refuses(FACES[face], TypeError, wanted, x, x, x)


@pytest.mark.parametrize("face", FACES)
def test_one_dtype_for_all(face: str) -> None:
    x, y = array(1, 1, 4, 8), array(1, 1, 4, 8, dtype=np.float16)
    message = "q has dtype float32 and k has float16: expected one dtype for q, k and v"
    refuses(FACES[face], TypeError, message, x, y, y)
    refuses(FACES[face], TypeError, "q has dtype float32 and v has float16", x, x, y)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("position", "name"), [(0, "q"), (1, "k"), (2, "v")])
@pytest.mark.parametrize(
    ("value", "kind"), [([[1.0]], "list"), (1.0, "float"), (None, "NoneType"), (memoryview(b"ab"), "memoryview")]
)
def test_not_an_array(face: str, position: int, name: str, value: Any, kind: str) -> None:
    given = list(arrays())
    given[position] = value
    refuses(FACES[face], TypeError, f"{name}: got a {kind}: expected an array of numpy, cupy, torch or jax", *given)


@pytest.mark.parametrize("face", ["attention", "explain"])
@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), float("-inf"), np.float32(-0.5)])
def test_scale_must_be_finite_and_positive(face: str, scale: float) -> None:
    message = f"scale={float(scale)}: expected a finite number above 0 (the integer maximum needs it)"
    refuses(FACES[face], ValueError, message, *arrays(), scale=scale)


@pytest.mark.parametrize("face", ["attention", "explain"])
@pytest.mark.parametrize(("scale", "kind"), [("1", "str"), (True, "bool"), (1j, "complex"), (np.ones(2), "ndarray")])
def test_scale_must_be_a_number(face: str, scale: Any, kind: str) -> None:
    refuses(FACES[face], TypeError, f"scale is a {kind}: expected a real number or None", *arrays(), scale=scale)


@pytest.mark.parametrize("face", ["attention", "explain"])
def test_mask(face: str) -> None:
    q, k, v = arrays((1, 1, 4, 8), (1, 1, 6, 8))
    ambiguous = "is_causal with 4 queries and 6 keys is ambiguous: pass causal_alignment='top_left'"
    refuses(FACES[face], ValueError, ambiguous, q, k, v, is_causal=True)
    refuses(FACES[face], ValueError, "or 'bottom_right' (the last query sees all keys", q, k, v, is_causal=True)
    unknown = "causal_alignment='top_right': expected one of ('top_left', 'bottom_right') or None"
    refuses(FACES[face], ValueError, unknown, q, k, v, is_causal=True, causal_alignment="top_right")
    refuses(FACES[face], ValueError, unknown, q, k, v, causal_alignment="top_right")
    refuses(FACES[face], TypeError, "is_causal is a int: expected True or False", q, k, v, is_causal=1)
    refuses(FACES[face], TypeError, "is_causal is a NoneType: expected True or False", q, k, v, is_causal=None)


@pytest.mark.parametrize("face", ["attention", "explain"])
def test_refusal_does_not_depend_on_what_came_before(face: str) -> None:
    """Plans are remembered, and 1 == True == 1.0: a legal call must not let its equal through."""
    for legal in ({"is_causal": True}, {"is_causal": False}, {"scale": 1.0}):
        explain(*arrays(), **legal)
    refuses(FACES[face], TypeError, "is_causal is a int: expected True or False", *arrays(), is_causal=1)
    refuses(FACES[face], TypeError, "is_causal is a int: expected True or False", *arrays(), is_causal=0)
    refuses(FACES[face], TypeError, "scale is a bool: expected a real number", *arrays(), scale=True)


@pytest.mark.parametrize("face", FACES)
def test_recipe(face: str) -> None:
    message = "recipe 'fastest' is unknown: expected paper, paper_half, fast"
    refuses(FACES[face], ValueError, message, *arrays(), recipe="fastest")
    refuses(FACES[face], TypeError, "recipe is a int: expected the name of a preset or a Recipe", *arrays(), recipe=8)


@pytest.mark.parametrize("face", FACES)
def test_backend(face: str) -> None:
    message = "backend='gpu': expected one of ('auto', 'numpy', 'cuda', 'simulate', 'sm90', 'sm80', 'dp4a', 'naive')"
    refuses(FACES[face], ValueError, message, *arrays(), backend="gpu")


@pytest.mark.parametrize("face", FACES)
def test_unknown_keyword(face: str) -> None:
    """No ``**kwargs`` swallows a typing error."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'causal'"):
        FACES[face](*arrays(), causal=True)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (array(2, 4, 8, 15), ValueError, "out has shape (2, 4, 8, 15): expected (2, 4, 8, 16)"),
        (array(2, 8, 4, 16), ValueError, "out has shape (2, 8, 4, 16): expected (2, 4, 8, 16)"),
        (array(1, 2, 4, 8, 16), ValueError, "out has shape (1, 2, 4, 8, 16): expected (2, 4, 8, 16)"),
        (array(2, 4, 8, 16, dtype=np.float16), TypeError, "out has dtype float16: expected float32"),
        ([[0.0]], TypeError, "got a list: expected an array of numpy, cupy, torch or jax"),
    ],
)
def test_out(out: Any, error: type[Exception], message: str) -> None:
    refuses(attention, error, message, *arrays(), out=out)


def test_read_only_out() -> None:
    out = array(2, 4, 8, 16)
    out.flags.writeable = False
    refuses(attention, ValueError, "out is read-only: expected an array that can be written", *arrays(), out=out)
    # A broadcast array is one element seen many times.
    out = np.broadcast_to(array(1), (2, 4, 8, 16))
    refuses(attention, ValueError, "out is read-only", *arrays(), out=out)


@pytest.mark.parametrize("face", ["attention", "quantize_qkv"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_check_finite_says_where(face: str, bad: float, name: str) -> None:
    given = dict(zip("qkv", arrays(), strict=True))
    given[name][1, 1, 5, 7] = bad
    given[name][1, 1, 6, 0] = bad
    message = f"{name} holds 2 values that are not finite in float32, the first at (batch, head, token, channel) = "
    refuses(FACES[face], ValueError, message + "(1, 1, 5, 7)", *given.values(), check_finite=True)


def test_check_finite_sees_what_float32_cannot_hold() -> None:
    q = np.ones((1, 1, 4, 8))
    k = q.copy()
    k[0, 0, 2, 3] = 1e39
    refuses(attention, ValueError, "k holds 1 values that are not finite in float32", q, k, q, check_finite=True)


def test_check_finite_counts_in_head_token_order_for_every_layout() -> None:
    q = np.ones((1, 5, 2, 8), np.float32)
    q[0, 4, 1, 3] = np.nan
    refuses(
        attention, ValueError, "(batch, head, token, channel) = (0, 1, 4, 3)", q, q, q, check_finite=True, layout="bshd"
    )


@pytest.fixture(scope="module")
def codes() -> QuantizedQKV:
    """Quantised inputs, made before anything is forbidden to run."""
    return quantize_qkv(*arrays((2, 4, 8, 16), (2, 2, 6, 16)))


class TestAttentionQuantized:
    """The face that takes codes: it refuses everything that `attention` refuses of its own keywords."""

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"is_causal": True}, ValueError, "is_causal with 8 queries and 6 keys is ambiguous"),
            ({"causal_alignment": "left"}, ValueError, "causal_alignment='left': expected one of"),
            ({"scale": 0.0}, ValueError, "scale=0.0: expected a finite number above 0"),
            ({"scale": "1"}, TypeError, "scale is a str"),
            ({"backend": "tpu"}, ValueError, "backend='tpu': expected one of"),
            ({"out_dtype": "int8"}, TypeError, "out_dtype=int8: expected one of float16, bfloat16, float32, float64"),
            ({"out_dtype": np.int32}, TypeError, "out_dtype=int32: expected one of"),
            ({"out_dtype": "half"}, TypeError, "out_dtype=half: expected one of"),
            ({"out": array(2, 4, 8, 15)}, ValueError, "out has shape (2, 4, 8, 15): expected (2, 4, 8, 16)"),
            ({"out": array(2, 4, 8, 16), "out_dtype": "float16"}, TypeError, "out has dtype float32: expected float16"),
        ],
    )
    def test_keywords(
        self, codes: QuantizedQKV, keywords: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        refuses(attention_quantized, error, message, codes, **keywords)

    def test_codes_alone(self) -> None:
        message = "qkv is a ndarray: expected a QuantizedQKV, made by quantize_qkv"
        refuses(attention_quantized, TypeError, message, array(1, 1, 4, 8, dtype=np.int8))
