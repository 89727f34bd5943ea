"""The public face as a whole: its names, and what importing it does not do."""

import inspect
import subprocess
import sys

import pytest

import cupy_intfa


def test_names_are_exactly_these() -> None:
    assert sorted(cupy_intfa.__all__) == [
        "Encoder",
        "GemmPlan",
        "PRESETS",
        "Plan",
        "QuantizedLinear",
        "QuantizedQKV",
        "Recipe",
        "SimulationError",
        "Trace",
        "attention",
        "attention_quantized",
        "explain",
        "explain_int8_matmul",
        "get_recipe",
        "int8_matmul",
        "quantize_qkv",
        "read_bert",
        "simulate",
    ]


KEYWORDS = {
    "is_causal": False,
    "causal_alignment": None,
    "scale": None,
    "layout": "bhsd",
    "recipe": "fast",
    "return_lse": False,
    "out": None,
    "workspace": None,
    "check_finite": False,
    "backend": "auto",
    "out_dtype": None,
}


@pytest.mark.parametrize(
    ("name", "positional", "keywords"),
    [
        ("attention", ["q", "k", "v"], set(KEYWORDS) - {"out_dtype"}),
        ("quantize_qkv", ["q", "k", "v"], {"recipe", "layout", "check_finite", "backend"}),
        ("attention_quantized", ["qkv"], set(KEYWORDS) - {"layout", "recipe", "check_finite"}),
        ("explain", ["q", "k", "v"], {"is_causal", "causal_alignment", "scale", "layout", "recipe", "backend"}),
    ],
)
def test_signatures(name: str, positional: list[str], keywords: set[str]) -> None:
    """Arrays by position, everything else by keyword alone and with one default everywhere."""
    parameters = inspect.signature(getattr(cupy_intfa, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert found == {keyword: KEYWORDS[keyword] for keyword in keywords}
    assert len(parameters) == len(positional) + len(keywords), "no *args, no **kwargs"


def test_importing_and_running_on_numpy_imports_no_other_array_library() -> None:
    code = (
        "import sys, numpy as np, cupy_intfa;"
        "others = lambda: sorted({'cupy', 'cupyx', 'torch', 'jax', 'matplotlib'} & set(sys.modules));"
        "print(others());"
        "x = np.ones((1, 1, 4, 8), np.float32); cupy_intfa.attention(x, x, x, backend='numpy'); print(others())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"]


def test_importing_does_not_need_them() -> None:
    """Where an import of any of them fails, NumPy arrays work."""
    code = (
        "import sys;"
        "sys.modules.update(dict.fromkeys(('cupy', 'torch', 'jax')));"  # None there makes `import cupy` raise
        "import numpy as np, cupy_intfa;"
        "x = np.ones((1, 1, 4, 8), np.float32); print(cupy_intfa.attention(x, x, x).sum())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(32, rel=1e-6)
