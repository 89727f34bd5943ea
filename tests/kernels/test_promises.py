"""What calls promise beside their numbers: the same bits again and by every way, inputs unwritten, outputs in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels.harness import (
    assert_same_bits,
    every_kernel,
    gather,
    planned,
    run,
    spread,
    to_device,
    to_host,
    twin,
)
from noise_model import p_noise
from strategies import DTYPES, STRIDES, Case, restride
from tolerances import assert_within

from cupy_intfa import PRESETS, QuantizedQKV, attention, attention_quantized, explain, quantize_qkv
from cupy_intfa.metrics import compare
from cupy_intfa.quantize import quantize_arrays

pytestmark = pytest.mark.gpu

CASE = Case(
    family="channel",
    batch=2,
    heads=4,
    kv_heads=2,
    q_len=130,
    kv_len=200,
    head_dim=72,
    is_causal=True,
    causal_alignment="bottom_right",
)


@every_kernel
def test_a_hundred_runs_give_the_same_bits(name: str, preset: str) -> None:
    case = replace(CASE, heads=16, q_len=500, kv_len=700)
    qkv = quantize_arrays(*case.arrays(), recipe=PRESETS[preset])
    out, lse = run(name, qkv, case)
    for i in range(99):
        again, again_lse = run(name, qkv, case)
        assert_same_bits(again, out, f"run {i + 2}")
        assert_same_bits(again_lse, lse, f"run {i + 2}")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_way_gives_the_same_bits(preset: str, tmp_path: Path) -> None:
    """`attention_quantized` of what `quantize_qkv` gives is `attention`, wherever the codes were and who made them."""
    case = replace(CASE, dtype=DTYPES[tuple(PRESETS).index(preset) % 4])
    host = case.arrays()
    q, k, v = (to_device(x) for x in host)
    out, lse = attention(q, k, v, recipe=preset, return_lse=True, **case.mask)
    qkv = quantize_qkv(q, k, v, recipe=preset)
    qkv.save(tmp_path / "qkv.npz")
    ways = {
        "with the packing": qkv,
        "packed again": replace(qkv, packed=None),
        "on the host": qkv.to_host(),
        "from a file": QuantizedQKV.load(tmp_path / "qkv.npz"),
        "quantised by NumPy": quantize_qkv(*host, recipe=preset, backend="numpy"),
        "from NumPy arrays": quantize_qkv(*host, recipe=preset, backend="cuda"),
    }
    assert qkv.packed is not None
    for way, quantised in ways.items():
        other, other_lse = attention_quantized(quantised, return_lse=True, backend="cuda", **case.mask)
        assert isinstance(other, np.ndarray) == isinstance(quantised.q, np.ndarray), way
        assert_same_bits(to_host(other), to_host(out), way)
        assert_same_bits(to_host(other_lse), to_host(lse), way)
    travelled, travelled_lse = attention(*host, recipe=preset, return_lse=True, backend="cuda", **case.mask)
    assert_same_bits(travelled, to_host(out), "NumPy arrays")
    assert_same_bits(travelled_lse, to_host(lse), "NumPy arrays")


# Views of a device array of the same values: the kernels read what lies there, and copy nothing.
VIEWS: dict[str, Callable[[Any], Any]] = {
    "fortran": lambda x: x.T.copy().T,
    "negative": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "every_other": lambda x: x.repeat(2, axis=-1).repeat(3, axis=-2)[..., ::3, ::2],
    "heads_inside": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
}


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("view", VIEWS)
def test_strides_are_nothing_and_inputs_are_unwritten(view: str, layout: str) -> None:
    case = replace(CASE, dtype="float16")
    plain = [to_device(x) for x in case.arrays()]
    out = attention(*plain, **case.mask)
    turned = [x if layout == "bhsd" else x.swapaxes(1, 2) for x in plain]
    strided = [VIEWS[view](x) for x in turned]
    bases = [x.base if x.base is not None else x for x in strided]
    before = [x.get() for x in bases]
    other = attention(*strided, layout=layout, **case.mask)
    assert_same_bits(to_host(other if layout == "bhsd" else other.swapaxes(1, 2)), to_host(out))
    for x, old in zip(bases, before, strict=True):
        assert_same_bits(x.get(), old, "an input was written")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", STRIDES)
def test_numpy_arrays_travel_however_they_are_stored(how: str, dtype: str) -> None:
    case = replace(CASE, dtype=dtype)
    host = case.arrays()
    stored = [restride(x, how) for x in host]
    out = np.full(host[0].shape, 7, host[0].dtype)
    assert attention(*stored, out=out, backend="cuda", **case.mask) is out
    assert_same_bits(out, attention(*host, backend="cuda", **case.mask))


def test_a_batch_axis_may_be_missing() -> None:
    q, k, v = (to_device(x) for x in CASE.arrays())
    out, lse = attention(q, k, v, return_lse=True, **CASE.mask)
    alone, alone_lse = attention(q[1], k[1], v[1], return_lse=True, **CASE.mask)
    assert_same_bits(to_host(alone), to_host(out[1]))
    assert_same_bits(to_host(alone_lse), to_host(lse[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_an_output_with_gaps_is_filled(dtype: str, layout: str) -> None:
    case = replace(CASE, dtype=dtype)
    arrays = [to_device(x if layout == "bhsd" else x.swapaxes(1, 2)) for x in case.arrays()]
    wanted = attention(*arrays, layout=layout, **case.mask)
    memory, out = spread(wanted.shape, dtype)
    assert attention(*arrays, layout=layout, out=out, **case.mask) is out
    assert_same_bits(gather(memory.get(), wanted.shape, dtype), to_host(wanted))


def test_a_workspace_is_used_again_whatever_it_holds() -> None:
    import cupy as cp

    q, k, v = (to_device(x) for x in CASE.arrays())
    for preset in ("fast", "precise", "paper"):
        plan = explain(q, k, v, recipe=preset, **CASE.mask)
        assert plan.cuda is not None
        memory = cp.full(plan.cuda.workspace_bytes + 4096, 0xA5, np.uint8)
        workspace = memory[: plan.cuda.workspace_bytes]
        wanted = attention(q, k, v, recipe=preset, **CASE.mask)
        for values in (v, v[::-1], v):
            out = attention(q, k, values, recipe=preset, workspace=workspace, **CASE.mask)
        assert_same_bits(to_host(out), to_host(wanted), preset)
        qkv = quantize_qkv(q, k, v, recipe=preset)
        out = attention_quantized(qkv, workspace=workspace, **CASE.mask)
        assert_same_bits(to_host(out), to_host(wanted), preset)
        assert (memory[plan.cuda.workspace_bytes :] == 0xA5).all(), "memory behind the workspace was written"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("preset", ["paper", "fast", "precise", "half"])
def test_poison_passes_the_quantise_kernels(preset: str, bad: float) -> None:
    q, k, v = CASE.arrays()
    keywords: dict[str, Any] = {"recipe": preset, "return_lse": True, **CASE.mask}
    clean, clean_lse = (x.get() for x in attention(*map(to_device, (q, k, v)), **keywords))
    q[0, 1, 129, 71] = bad
    k[1, 0, 0, 0] = bad
    v[0, 1, 199, 71] = bad
    reads = np.zeros((2, 4, 130), np.bool_)
    reads[0, 1, 129] = reads[1, :2] = reads[0, 2:] = True
    out, lse = (x.get() for x in attention(*map(to_device, (q, k, v)), **keywords))
    assert np.isnan(out[reads]).all()
    assert np.isnan(lse[reads]).all()
    assert_same_bits(out[~reads], clean[~reads])
    assert_same_bits(lse[~reads], clean_lse[~reads])
    with pytest.raises(ValueError, match="holds 1 values that are not finite"):
        attention(*map(to_device, (q, k, v)), recipe=preset, check_finite=True, **CASE.mask)


def keys_of(qkv: QuantizedQKV, keys: slice) -> QuantizedQKV:
    """Keep whole blocks of 64 keys."""
    recipe, blocks = qkv.recipe, slice(keys.start // 64, keys.stop // 64)
    parts: dict[str, Any] = {"k": qkv.k[:, :, keys], "v": qkv.v[:, :, keys]}
    kept = {"token": keys, "group": blocks, "block": blocks, "block_channel": blocks}
    for name, granularity in (("k_scale", recipe.k_granularity), ("v_scale", recipe.v_granularity)):
        if granularity in kept:
            parts[name] = getattr(qkv, name)[:, :, kept[granularity]]
    if qkv.key_index is not None:
        parts["key_index"] = qkv.key_index[:, :, keys] - keys.start
    return replace(qkv, **parts)


@every_kernel
def test_parts_of_the_keys_merge_by_lse(name: str, preset: str) -> None:
    """Softmax over all keys is the mean of softmaxes over parts, weighted by exp(lse), on the same codes.

    With a reference per tile of as many keys the P of a part are those of the whole. Else a part has references of its
    own, no larger, and each of the two results has no more of P's rounding noise than the model gives it.
    """
    recipe, case = PRESETS[preset], Case(heads=2, q_len=256, kv_len=1024)
    qkv = quantize_arrays(*case.arrays(), recipe=recipe)
    whole, whole_lse = run(name, qkv, case)
    bounds = [twin(name, qkv, case)[2].lse]
    tile, tiles = planned(name, recipe, case).key_tile, set()
    outs, lses = [], []
    for keys in (slice(0, 320), slice(320, 384), slice(384, 1024)):
        some, part = keys_of(qkv, keys), replace(case, kv_len=keys.stop - keys.start)
        out, lse = run(name, some, part)
        bounds.append(twin(name, some, part)[2].lse)
        tiles.add(planned(name, recipe, part).key_tile)
        outs.append(out.astype(np.float64))
        lses.append(lse.astype(np.float64))
    lse = np.logaddexp.reduce(lses, axis=0)
    merged = sum(out * np.exp(part - lse)[..., None] for out, part in zip(outs, lses, strict=True))
    if recipe.row_sum == "exact":
        # The kernel's own arithmetic of the whole, and of the part where it is farthest off.
        assert_within(whole_lse, lse, bounds[0] + np.max(bounds[1:], axis=0) + 1e-5)
    else:  # each P is off by ½ at most, by chance: six sigma of 1024 of them, twice, over R·exp(lse - m)
        q, k, _ = qkv.dequantize()
        top = (q @ k.swapaxes(2, 3)).max(axis=-1) / 8
        assert_within(whole_lse, lse, 6 * np.sqrt(2 * 1024 / 4) / (recipe.p_top * np.exp(whole_lse - top)))
    same = recipe.p_reference == "tile" and tiles == {tile}
    noise = 1e-5 if same else 2 * np.sqrt(p_noise(recipe, 1024, 64, tile))
    assert compare(whole, merged).relative_rmse < noise
