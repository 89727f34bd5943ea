"""QuantizedTensor: what is stored and counted, dequantised, saved and loaded, and refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_arrays import f32

from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.quantize.formats import CODEBOOKS, INTEGERS
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.tensor import QuantizedTensor

X = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
MADE: dict[str, Callable[[], QuantizedTensor]] = {
    **{f"symmetric-{name}": partial(quantize_symmetric, np.abs(X), name, "row") for name in INTEGERS},
    "zero_point": lambda: quantize_asymmetric(X, "uint4", Granularity("group", 8)),
    "minimum": lambda: quantize_asymmetric(X, "int2", Granularity("block", (2, 8)), form="minimum"),
    **{f"blockwise-{name}": partial(quantize_blockwise, np.abs(X), name) for name in CODEBOOKS},
    "double": lambda: quantize_blockwise(X, double=True),
}


def assert_same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert (a.shape, a.format, a.granularity) == (b.shape, b.format, b.granularity)
    one, other = a._arrays(), b._arrays()
    assert list(one) == list(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes()


@pytest.mark.parametrize("name", MADE)
def test_it_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    quantized = MADE[name]()
    quantized.save(tmp_path / "codes.npz")
    loaded = QuantizedTensor.load(tmp_path / "codes.npz")
    assert_same(quantized, loaded)
    assert loaded.dequantize().tobytes() == quantized.dequantize().tobytes()


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("symmetric-int8", 8 + 32 / 33),
        ("symmetric-int4", 8 * 17 / 33 + 32 / 33),  # 33 codes in 17 bytes
        ("symmetric-uint2", 8 * 9 / 33 + 32 / 33),
        ("zero_point", 8 * 17 / 33 + 5 * 64 / 33),  # 5 groups a row: a scale and a zero point of 32 bits
        ("blockwise-nf4", (8 * 83 + 3 * 32) / 165),  # 165 codes in 83 bytes, 3 blocks
        ("blockwise-float8_e5m2", 8 + 3 * 32 / 165),
        ("double", (8 * 83 + 3 * 8 + 32 + 32) / 165),
    ],
)
def test_bits_count_everything(name: str, bits: float) -> None:
    quantized = MADE[name]()
    assert quantized.bits_per_element == pytest.approx(bits, rel=1e-12)
    assert quantized.nbytes * 8 == pytest.approx(bits * 165)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dequantised_to_another_dtype_it_is_the_rounded_float32(dtype: str) -> None:
    quantized = quantize_symmetric(X)
    back = quantized.dequantize(dtype)
    assert back.dtype.name == dtype
    assert (back == quantized.dequantize().astype(back.dtype)).all()
    assert np.isinf(quantize_symmetric(f32([1e38])).dequantize("float16")).all()


@given(st.sampled_from(sorted(INTEGERS)), st.integers(0, 99))
def test_it_stands_for_what_the_formula_says(format: str, seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-1, 2, (4, 9)).astype(np.float32)
    quantized = quantize_asymmetric(x, format, "row")
    assert quantized.zero_point is not None
    expected = (quantized.codes().astype(float) - quantized.zero_point) * quantized.scales()
    assert quantized.dequantize() == pytest.approx(expected, rel=2**-24)
    quantized = quantize_asymmetric(x, format, "row", form="minimum")
    steps = quantized.codes().astype(float) - INTEGERS[format].low
    assert quantized.dequantize() == pytest.approx(steps * quantized.scales() + quantized.minimum, abs=2**-22)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a dtype among float32, float16, bfloat16, got 'int8'"):
        quantize_symmetric(X).dequantize("int8")


def test_another_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"no archive", b"PK\x03\x04 cut short"):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.npz holds no QuantizedTensor: expected a file written by"):
            QuantizedTensor.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", header=np.array(json.dumps({"version": 1, "recipe": {}})))
    with pytest.raises(ValueError, match="holds no QuantizedTensor"):
        QuantizedTensor.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", values=X)
    with pytest.raises(ValueError, match="holds no QuantizedTensor"):
        QuantizedTensor.load(tmp_path / "other.npz")


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    quantize_symmetric(X).save(tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as stored:
        content = dict(stored)
    header = json.loads(str(content.pop("header"))) | {"version": 2}
    np.savez(tmp_path / "later.npz", header=np.array(json.dumps(header)), **content)
    with pytest.raises(ValueError, match=r"later\.npz has version 2: expected 1"):
        QuantizedTensor.load(tmp_path / "later.npz")
