"""Quantised inputs on disk: every bit comes back, and a file of something else is refused."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, recipes

from cupy_intfa import PRESETS, QuantizedQKV, Recipe, attention_quantized, quantize_qkv
from cupy_intfa.quantize import quantize_arrays


def assert_same(a: QuantizedQKV, b: QuantizedQKV) -> None:
    for field in fields(QuantizedQKV):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (y.dtype, y.shape) == (x.dtype, x.shape), field.name
            assert y.tobytes() == x.tobytes(), field.name
        else:
            assert type(y) is type(x), field.name
            assert y == x, field.name


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("dtype", "layout", "batched"), [("float16", "bhsd", True), ("bfloat16", "bshd", False)])
def test_preset_comes_back_bit_for_bit(name: str, dtype: str, layout: str, batched: bool, tmp_path: Path) -> None:
    arrays = Case(heads=2, q_len=70, kv_len=70, head_dim=9, dtype=dtype).arrays()
    q, k, v = arrays if batched else (x[0] for x in arrays)
    qkv = quantize_qkv(q, k, v, recipe=name, layout=layout)
    qkv.save(tmp_path / "codes.npz")
    loaded = QuantizedQKV.load(tmp_path / "codes.npz")
    assert_same(qkv, loaded)
    assert attention_quantized(loaded).tobytes() == attention_quantized(qkv).tobytes()


@given(case=cases(lengths=(1, 8, 65), head_dims=(1, 8)), recipe=recipes(), seed=st.integers(0, 9))
def test_recipe_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, case: Case, recipe: Recipe, seed: int
) -> None:
    q, k, v = case.arrays()
    q[..., 0, 0] = np.nan if seed == 0 else q[..., 0, 0]
    qkv = quantize_arrays(q, k, v, recipe=recipe)
    file = tmp_path_factory.mktemp("codes") / "codes.npz"
    qkv.save(file)
    assert_same(qkv, QuantizedQKV.load(file))


def test_file_needs_no_pickle_and_may_be_named_by_a_string(tmp_path: Path) -> None:
    x = np.ones((1, 1, 2, 4), np.float32)
    quantize_arrays(x, x, x, recipe=PRESETS["fp8_e4m3"]).save(str(tmp_path / "codes"))
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as stored:
        assert {stored[name].dtype.kind for name in stored.files} <= set("iufU")


def test_another_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", q=np.ones(3))
    with pytest.raises(ValueError, match=r"other\.npz holds no QuantizedQKV: expected a file written by Quant"):
        QuantizedQKV.load(tmp_path / "other.npz")


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    x = np.ones((1, 1, 2, 4), np.float32)
    quantize_arrays(x, x, x, recipe=Recipe()).save(tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as stored:
        content = dict(stored)
    header = json.loads(str(content.pop("header"))) | {"version": 2}
    np.savez(tmp_path / "later.npz", header=np.array(json.dumps(header)), **content)
    with pytest.raises(ValueError, match=r"later\.npz has version 2: expected 1"):
        QuantizedQKV.load(tmp_path / "later.npz")


@pytest.mark.parametrize("content", [b"", b"no zip archive", b"\x93NUMPY", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.npz holds no QuantizedQKV: expected a file written by Quant"):
        QuantizedQKV.load(tmp_path / "broken.npz")


def test_a_plain_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"array\.npy holds no QuantizedQKV"):
        QuantizedQKV.load(tmp_path / "array.npy")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        QuantizedQKV.load(tmp_path / "nowhere.npz")
