"""Every shipped kernel, run without a GPU: attention against the emulator, the quantise kernels against NumPy."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.harness import TILES, describe
from kernels.test_attention import KINDS, Kind, recipes_of
from kernels.test_quantize import Inputs, inputs, packable
from ptxsim.simulated import Setting, check_attention, check_quantise
from strategies import DTYPES, Case, cases, dtype_of, restride, strides

from cupy_intfa import PRESETS, Recipe, attention, simulate
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.ptxsim import Options, compile_ptx
from cupy_intfa.ptxsim.parse import parse
from cupy_intfa.quantize import quantize_arrays
from cupy_intfa.simulate import attend_simulated, place_packing

# Where a kernel's text differs: sm_75 has no cp.async and small products, sm_80 no 8-bit floats and no try_wait.
ARCHS = {"sm90": ("sm_90a",), "sm80": ("sm_75", "sm_80", "sm_90a"), "dp4a": ("sm_75",), "naive": ("sm_80",)}
assert ARCHS.keys() == NAMED_KERNELS.keys()
SETTINGS = [Setting(name, arch, small=name == "sm90") for name in NAMED_KERNELS for arch in ARCHS[name]]

# Classes of recipes go round the head dimensions that a kernel runs them at, from another start for each kernel.
BUILDS = [
    pytest.param(setting, kind, tiles[(i + start) % len(tiles)], id=f"{setting.name}-{setting.arch}-{kind}")
    for start, setting in enumerate(SETTINGS)
    for i, kind in enumerate(KINDS)
    if (tiles := [tile for tile in TILES if setting.runs(kind.simplest, tile)])
]
LENGTHS = (1, 17, 63, 65, 130)
few = settings(max_examples=max(1, settings().max_examples // 60))  # a second each, of hundreds of parameters


@pytest.mark.parametrize(("setting", "kind", "tile"), BUILDS)
@few
@given(st.data())
def test_a_kernel_is_its_twin(setting: Setting, kind: Kind, tile: int, data: st.DataObject) -> None:
    recipe = data.draw(recipes_of(kind))
    case = data.draw(small_cases(tile, setting.name))
    check_attention(setting, recipe, case, data.draw(st.sampled_from(("bhsd", "bshd"))))


@st.composite
def small_cases(draw: st.DrawFn, tile: int, name: str) -> Case:
    """Draw a problem of few rows: tails, masks, group-query heads; a block of attention_naive is one row."""
    lengths = LENGTHS if tile <= 128 else LENGTHS[:3]
    case = draw(cases(dtypes=DTYPES, lengths=lengths, head_dims=TILES[tile]))
    rows = min(case.q_len, 5) if name == "naive" else case.q_len
    alignment = case.causal_alignment or ("top_left" if case.is_causal else None)
    return Case(**{**case.__dict__, "batch": 1, "q_len": rows, "causal_alignment": alignment})


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.name}-{s.arch}")
def test_rows_of_several_blocks_and_tiles(setting: Setting) -> None:
    """What small problems leave out: three blocks of rows, four tiles and more, in step and in a drawn order."""
    rows = 3 if setting.name == "naive" else 140
    mask: dict[str, Any] = {"is_causal": True, "causal_alignment": "bottom_right"}
    check_attention(setting, PRESETS["fast"], Case(heads=2, kv_heads=1, q_len=rows, kv_len=330, **mask))
    one = Case(q_len=min(rows, 64), kv_len=192)
    check_attention(replace(setting, options=Options(seed=1)), PRESETS["precise"], one)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.name}-{s.arch}")
def test_a_block_of_rows_that_see_no_key(setting: Setting, head_dim: int) -> None:
    """It has nothing to wait for: what it has begun to copy would still be under way at its end."""
    rows = 3 if setting.name == "naive" else 65
    mask: dict[str, Any] = {"is_causal": True, "causal_alignment": "bottom_right"}
    check_attention(setting, PRESETS["fast"], Case(q_len=rows, kv_len=1, head_dim=head_dim, **mask))


@pytest.mark.parametrize(
    ("recipe", "head_dim", "length", "mask", "tiles"),
    [  # tiles that the 64 rows of each warpgroup see, of those that the whole item sees
        ("fast", 128, 520, True, ((1, 1, 2), (2, 3, 3), (4, 4, 5))),  # of 128 keys
        ("paper", 128, 256, True, ((1, 2, 3), (4, 0, 0))),  # of 64 keys, from the first to the last
        ("fast", 128, 70, False, ((2, 2, 0),)),
        ("precise", 64, 300, True, ((1, 2, 3), (4, 5, 0))),
        ("half", 64, 300, True, ((1, 1, 2), (2, 3, 0))),  # products of one tile under the softmax of another
        ("fast", 256, 130, True, ((2, 2), (3, 3))),  # two warpgroups go along with the item
    ],
)
def test_warpgroups_leave_out_what_only_others_see(
    recipe: str, head_dim: int, length: int, mask: bool, tiles: tuple[tuple[int, ...], ...]
) -> None:
    case = Case(heads=1, kv_heads=1, q_len=length, kv_len=length, head_dim=head_dim, is_causal=mask)
    plan = Setting("sm90", "sm_90a").plan(PRESETS[recipe], describe(case))
    out, trace = simulate(*case.arrays(), arch="sm_90a", recipe=recipe, is_causal=mask)
    wanted = attention(*case.arrays(), recipe=recipe, is_causal=mask, backend="numpy")
    np.testing.assert_allclose(out, wanted, atol=2e-2)  # test_a_kernel_is_its_twin is strict
    products = sum(count for name, count in trace.instructions.items() if name.startswith("wgmma.mma_async"))
    each = 4 * (head_dim // 32 + plan.key_tile // (16 if recipe == "half" else 32))  # of four warps
    assert products == each * sum(map(sum, tiles))


@pytest.mark.parametrize("head_dim", [32, 64])
def test_the_large_tiles_of_many_keys(head_dim: int) -> None:
    """192 keys, where float16 no longer adds up P = 255 exactly in one sum: rows that weigh all keys alike tell."""
    setting, recipe = Setting("sm90", "sm_90a"), PRESETS["fast"]
    case = Case(heads=1, kv_heads=1, q_len=5, kv_len=8200, head_dim=head_dim, dtype="float32")
    assert setting.plan(recipe, describe(case)).key_tile == 192
    check_attention(setting, recipe, case)
    _, k, v = case.arrays()
    _, lse, _ = simulate(np.zeros((1, 1, 5, head_dim), np.float32), k, v, arch="sm_90a", return_lse=True)
    np.testing.assert_allclose(lse, np.log(case.kv_len), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMED_KERNELS if name != "naive"])
def test_non_finite_input_reaches_its_rows(name: str) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 40, 64)).astype(np.float32) for i in range(3))
    q[0, 0, 3, 5], k[0, 1, 7, 0] = np.nan, np.inf
    out, lse, _ = simulate(q, k, v, arch="sm_90a" if name == "sm90" else "sm_80", backend=name, return_lse=True)
    wrong = np.isnan(out).all(axis=-1)
    assert wrong[0, 0].nonzero()[0].tolist() == [3]
    assert wrong[0, 1].all()
    assert (np.isnan(lse) == wrong).all()
    assert np.isfinite(out[0, 0][~wrong[0, 0]]).all()


SMALL = st.sampled_from((1, 3, 64, 65, 130))
fewer = settings(max_examples=max(6, settings().max_examples // 5))


@fewer
@given(inputs(), packable, SMALL, SMALL, strides)
def test_any_packing_is_numpys(drawn: Inputs, recipe: Recipe, q_len: int, kv_len: int, how: str) -> None:
    small = Inputs(**{**drawn.__dict__, "batch": 1, "q_len": q_len, "kv_len": kv_len})
    arrays = small.arrays()
    if how not in ("misaligned", "big_endian"):  # neither reaches a kernel: arrays on a GPU are neither
        arrays = tuple(restride(x, how) for x in arrays)
    check_quantise(Setting("naive", "sm_80"), recipe, small.problem(), arrays)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_packed_as_by_numpy(preset: str, dtype: str) -> None:
    arch = "sm_75" if dtype == "float16" else "sm_90a"
    drawn = Inputs(heads=2, kv_heads=1, q_len=70, kv_len=130, head_dim=64, dtype=dtype)
    check_quantise(Setting("naive", arch), PRESETS[preset], drawn.problem(), drawn.arrays())


@pytest.mark.parametrize(("name", "arch", "seconds"), [("sm80", "sm_80", 3), ("sm90", "sm_90a", 5)])
def test_one_block_takes_seconds(name: str, arch: str, seconds: float) -> None:
    """64 queries, 256 keys, D 64, compiled first: 0.5 and 2.4 s of a processor where this was written."""
    setting, case = Setting(name, arch), Case(q_len=64, kv_len=256, head_dim=64)
    qkv = quantize_arrays(*case.arrays(), recipe=PRESETS["fast"])
    compile_ptx.cache_clear()
    parse.cache_clear()
    start = time.process_time()
    plan, simulator = setting.plan(PRESETS["fast"], describe(case)), setting.simulator()
    attend_simulated(simulator, plan, place_packing(simulator, plan, qkv), True, dtype_of("float32"))
    assert time.process_time() - start < seconds
    (trace,) = simulator.traces
    assert (trace.kernel, trace.blocks) == (f"attention_{name}", 1)
