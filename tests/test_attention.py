"""The public functions on NumPy arrays: kinds of input, layouts, outputs, plans."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, STRIDES, Array, Case, cases, dtype_of, recipes, restride, strides

import cupy_intfa
from cupy_intfa import PRESETS, Plan, QuantizedQKV, Recipe, get_recipe
from cupy_intfa.reference import emulator

# A machine with a GPU would run there: these are the tests of the NumPy backend.
attention = partial(cupy_intfa.attention, backend="numpy")
attention_quantized = partial(cupy_intfa.attention_quantized, backend="numpy")
explain = partial(cupy_intfa.explain, backend="numpy")
quantize_qkv = partial(cupy_intfa.quantize_qkv, backend="numpy")

SHORT = (1, 8, 65, 129)
Layout = st.sampled_from(("bhsd", "bshd"))
CASE = Case(batch=2, heads=4, kv_heads=2, q_len=33, kv_len=70, head_dim=24)


def in_layout(x: Array, layout: str, batched: bool = True) -> Array:
    """Give arrays made as (B, H, S, D) in a caller's layout; without a batch, the first entry."""
    x = x if layout == "bhsd" else x.swapaxes(1, 2)
    return x if batched else x[0]


class TestInputs:
    """What may come in, and what comes out for it."""

    @pytest.mark.parametrize("name", PRESETS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_result_is_the_float32_result_rounded_once(self, dtype: str, name: str) -> None:
        arrays = [x.astype(dtype_of(dtype)) for x in CASE.arrays()]
        out, lse = attention(*arrays, recipe=name, return_lse=True)
        wide, wide_lse = attention(*(x.astype(np.float32) for x in arrays), recipe=name, return_lse=True)
        assert out.dtype == dtype_of(dtype)
        assert out.tobytes() == wide.astype(dtype_of(dtype)).tobytes()
        assert lse.dtype == np.float32, "lse is float32 for every dtype"
        assert lse.tobytes() == wide_lse.tobytes()

    @given(cases(lengths=SHORT, dtypes=DTYPES), recipes(), Layout, st.booleans())
    def test_layout_and_batch_are_only_views(self, case: Case, recipe: Recipe, layout: str, batched: bool) -> None:
        arrays = case.arrays()
        keywords = case.keywords | {"recipe": recipe, "return_lse": True}
        out, lse = attention(*arrays, **keywords)
        viewed = (in_layout(x, layout, batched) for x in arrays)
        out_viewed, lse_viewed = attention(*viewed, layout=layout, **keywords)
        assert out_viewed.shape == in_layout(out, layout, batched).shape
        assert out_viewed.tobytes() == in_layout(out, layout, batched).tobytes()
        assert out_viewed.flags.c_contiguous
        assert lse_viewed.tobytes() == (lse if batched else lse[0]).tobytes(), "lse is (B, Hq, Sq) in both layouts"
        assert lse_viewed.shape == (lse if batched else lse[0]).shape

    @given(cases(lengths=SHORT, head_dims=(1, 16, 33), dtypes=DTYPES), st.lists(strides, min_size=3, max_size=3))
    def test_storage_does_not_matter_and_nothing_is_written(self, case: Case, how: list[str]) -> None:
        arrays = case.arrays()
        stored = [restride(x, way) for x, way in zip(arrays, how, strict=True)]  # read-only
        plain, strided = (attention(*given, **case.keywords) for given in (arrays, stored))
        assert strided.tobytes() == plain.tobytes()
        assert strided.dtype == plain.dtype
        for x, given_array in zip(case.arrays(), stored, strict=True):
            assert (x == given_array).all()

    def test_one_array_may_be_all_three(self) -> None:
        x = CASE.arrays()[1]
        assert attention(x, x, x).tobytes() == attention(x, x.copy(), x.copy()).tobytes()

    def test_broadcast_arrays_are_arrays(self) -> None:
        q, k, v = CASE.arrays()
        k, v = (np.broadcast_to(x[:1], x.shape) for x in (k, v))
        assert attention(q, k, v).tobytes() == attention(q, k.copy(), v.copy()).tobytes()

    @given(cases(lengths=SHORT), recipes())
    def test_query_heads_share_key_heads_as_if_repeated(self, case: Case, recipe: Recipe) -> None:
        q, k, v = case.arrays()
        repeated = (np.repeat(x, case.heads // case.kv_heads, axis=1) for x in (k, v))
        keywords = case.keywords | {"recipe": recipe}
        assert attention(q, *repeated, **keywords).tobytes() == attention(q, k, v, **keywords).tobytes()


class TestQuantizedOnce:
    """Quantise now, attend later: the same bits."""

    @given(cases(lengths=SHORT, dtypes=DTYPES), recipes(), Layout, st.booleans())
    def test_is_attention_bit_for_bit(self, case: Case, recipe: Recipe, layout: str, batched: bool) -> None:
        arrays = [in_layout(x, layout, batched) for x in case.arrays()]
        at_once = attention(*arrays, recipe=recipe, layout=layout, return_lse=True, **case.keywords)
        qkv = quantize_qkv(*arrays, recipe=recipe, layout=layout)
        later = attention_quantized(qkv, return_lse=True, **case.keywords)
        for a, b in zip(at_once, later, strict=True):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())

    @pytest.mark.parametrize("name", PRESETS)
    def test_can_be_used_again_with_another_mask_and_scale(self, name: str) -> None:
        qkv = quantize_qkv(*CASE.arrays(), recipe=name)
        for keywords in ({}, {"is_causal": True, "causal_alignment": "bottom_right"}, {"scale": 0.7}):
            expected = attention(*CASE.arrays(), recipe=name, **keywords)
            assert attention_quantized(qkv, **keywords).tobytes() == expected.tobytes()

    def test_knows_what_it_was_made_from(self) -> None:
        q, k, v = (x.astype(np.float16)[0].swapaxes(0, 1) for x in CASE.arrays())
        qkv = quantize_qkv(q, k, v, recipe="precise", layout="bshd")
        assert isinstance(qkv, QuantizedQKV)
        assert (qkv.recipe, qkv.dtype, qkv.layout, qkv.batched) == (PRESETS["precise"], "float16", "bshd", False)
        assert qkv.q.shape == (1, 4, 33, 24), "codes are (B, H, S, D) in every layout"
        assert qkv.k.shape == qkv.v.shape == (1, 2, 70, 24)

    @pytest.mark.parametrize("name", DTYPES)
    @pytest.mark.parametrize("as_type", [False, True])
    def test_another_output_dtype(self, name: str, as_type: bool) -> None:
        qkv = quantize_qkv(*CASE.arrays(), recipe="fast")
        out = attention_quantized(qkv, out_dtype=dtype_of(name) if as_type else name)
        assert out.dtype == dtype_of(name)
        assert out.tobytes() == attention_quantized(qkv).astype(dtype_of(name)).tobytes()


class TestOutputs:
    """lse and out=."""

    def test_lse_comes_only_when_asked_for(self) -> None:
        out = attention(*CASE.arrays())
        assert isinstance(out, np.ndarray)
        both = attention(*CASE.arrays(), return_lse=True)
        assert isinstance(both, tuple)
        assert both[0].tobytes() == out.tobytes()
        assert both[1].shape == (2, 4, 33)

    @pytest.mark.parametrize("how", STRIDES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_out_is_filled_and_returned(self, dtype: str, how: str) -> None:
        arrays = [x.astype(dtype_of(dtype)) for x in CASE.arrays()]
        expected = attention(*arrays)
        if how == "big_endian" and dtype == "bfloat16":
            how = "contiguous"
        out = STRIDES[how](np.full_like(expected, np.nan))
        assert attention(*arrays, out=out) is out
        assert (out == expected).all()
        again, lse = attention_quantized(quantize_qkv(*arrays), out=out, return_lse=True)
        assert again is out
        assert lse.shape == (2, 4, 33)

    @pytest.mark.parametrize(("layout", "batched"), [("bshd", True), ("bhsd", False), ("bshd", False)])
    def test_out_has_the_callers_layout(self, layout: str, batched: bool) -> None:
        arrays = [in_layout(x, layout, batched) for x in CASE.arrays()]
        out = np.empty(arrays[0].shape, np.float32)
        attention(*arrays, layout=layout, out=out)
        assert out.tobytes() == attention(*arrays, layout=layout).tobytes()

    def test_out_may_be_an_input(self) -> None:
        q, k, v = CASE.arrays()
        expected = attention(q, k, v)
        assert attention(q, k, v, out=q) is q
        assert q.tobytes() == expected.tobytes()

    def test_results_are_fresh_and_writable(self) -> None:
        first, second = (attention(*CASE.arrays()) for _ in range(2))
        first[...] = 0
        assert second.any()


class TestPlans:
    """`explain`, and where things run."""

    def test_says_what_runs_and_why(self) -> None:
        q, k, v = CASE.arrays()
        plan = explain(q, k, v, recipe="precise", is_causal=True, causal_alignment="bottom_right", scale=0.5)
        assert isinstance(plan, Plan)
        assert (plan.backend, plan.kernel, plan.recipe) == ("numpy", "emulator", PRESETS["precise"])
        assert plan.operations == 4 * 2 * 4 * plan.problem.visible_pairs * 24
        text = str(plan)
        for part in (
            "numpy: emulator, key tile",
            "recipe precise",
            "q (2, 4, 33, 24), k and v (2, 2, 70, 24), float32, layout bhsd",
            "mask: query i sees keys up to i+37",
            "scale 0.5",
            "because backend='numpy' was asked for",
        ):
            assert part in text

    def test_says_what_a_changed_recipe_is(self) -> None:
        assert "recipe paper+p_levels=255" in str(explain(*CASE.arrays(), recipe=get_recipe("paper", p_levels=255)))
        assert "mask: none" in str(explain(*CASE.arrays()))

    def test_launches_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ran(*_: Any, **__: Any) -> None:
            pytest.fail("explain ran the emulator")

        monkeypatch.setattr(emulator, "attention", ran)
        monkeypatch.setattr("cupy_intfa.quantize.qkv.load_float32", ran)
        explain(*CASE.arrays())

    def test_emulator_uses_the_tile_of_the_plan(self) -> None:
        q, k, v = Case(kv_len=400).arrays()
        qkv = quantize_qkv(q, k, v, recipe="paper")
        tile = explain(q, k, v, recipe="paper").key_tile
        out, _ = emulator.attention(qkv, scale=0.125, key_tile=tile)
        other, _ = emulator.attention(qkv, scale=0.125, key_tile=2 * tile)
        assert attention(q, k, v, recipe="paper").tobytes() == out.tobytes()
        assert out.tobytes() != other.tobytes(), "the tile is part of the running reference's numerics"

    def test_default_recipe_is_fast(self) -> None:
        assert explain(*CASE.arrays()).recipe == PRESETS["fast"]
        fast = attention(*CASE.arrays(), recipe="fast")
        assert attention(*CASE.arrays()).tobytes() == fast.tobytes()
        assert attention_quantized(quantize_qkv(*CASE.arrays())).tobytes() == fast.tobytes()

    @pytest.mark.parametrize("face", ["attention", "quantize_qkv", "explain"])
    def test_cuda_refuses_what_no_kernel_runs(self, face: str) -> None:
        """P in two bytes is the emulator's alone, with a GPU and without."""
        recipe = get_recipe("fast", pv="int8x2")
        with pytest.raises(NotImplementedError, match="backend='cuda'"):
            getattr(cupy_intfa, face)(*CASE.arrays(), recipe=recipe, backend="cuda")

    def test_auto_runs_everything(self) -> None:
        recipe = get_recipe("fast", pv="int8x2")
        auto = cupy_intfa.attention(*CASE.arrays(), recipe=recipe)
        assert auto.tobytes() == attention(*CASE.arrays(), recipe=recipe).tobytes()
        assert cupy_intfa.explain(*CASE.arrays(), recipe=recipe).backend == "numpy"
