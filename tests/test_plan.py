"""The plan: a pure table from (problem, recipe, device) to what runs, with a reason for every choice and refusal."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import DEVICES
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, presets

from cupy_intfa import PRESETS, Recipe, explain, get_recipe, kernels
from cupy_intfa.device import DeviceInfo
from cupy_intfa.kernel_table import KERNELS, NAMED_KERNELS, KernelChoice, padded_head_dim
from cupy_intfa.packing import HEAD_DIM_TILES, KEY_PAD, QUERY_PAD, make_packing
from cupy_intfa.plan import CudaPlan, Plan, make_plan
from cupy_intfa.problem import DTYPES, AttentionProblem, make_problem
from cupy_intfa.quantize.cuda import plan_quantize
from cupy_intfa.recipe import FLOAT8
from cupy_intfa.tiles import LONG_ROW

HOPPER = DEVICES["sm_90"]


def problem_of(case: Case) -> AttentionProblem:
    kv = (case.batch, case.kv_heads, case.kv_len, case.head_dim)
    return make_problem((case.batch, case.heads, case.q_len, case.head_dim), kv, kv, (case.dtype,) * 3, **case.keywords)


def on_gpu(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo = HOPPER) -> tuple[Plan, CudaPlan]:
    plan = make_plan(problem, recipe, "cuda", device)
    assert plan.backend == "cuda"
    assert plan.cuda
    return plan, plan.cuda


SMALL = problem_of(Case())


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("preset", PRESETS)
def test_architecture_decides_the_kernel(arch: str, preset: str) -> None:
    recipe, device = PRESETS[preset], DEVICES[arch]
    tensor_cores_from = (8, 9) if recipe.qk in FLOAT8 else (7, 5)
    if device.capability == (9, 0) and recipe.qk == "int8":
        assert on_gpu(SMALL, recipe, device)[1].source == "attention_sm90"
    elif device.capability >= tensor_cores_from:
        assert on_gpu(SMALL, recipe, device)[1].source == "attention_sm80"
    elif recipe.qk == "int8" and recipe.integer_pv:
        assert on_gpu(SMALL, recipe, device)[1].source == "attention_dp4a"
    else:
        with pytest.raises(NotImplementedError, match=f"{device.name} has {arch}"):
            make_plan(SMALL, recipe, "cuda", device)


@pytest.mark.parametrize("head_dim", [8, 32, 33, 100, 200, 256])
@pytest.mark.parametrize("preset", ["paper", "paper_half", "fast", "precise", "half"])
def test_hopper_runs_int8_by_wgmma(preset: str, head_dim: int) -> None:
    assert on_gpu(problem_of(Case(head_dim=head_dim)), PRESETS[preset])[1].source == "attention_sm90"


BLOCKS_OF_V = get_recipe("precise", v_granularity="block_channel")


@pytest.mark.parametrize(("head_dim", "number"), [(32, 80), (64, 90)])
def test_hopper_runs_a_scale_of_v_per_block_by_the_faster_kernel(head_dim: int, number: int) -> None:
    assert on_gpu(problem_of(Case(head_dim=head_dim)), BLOCKS_OF_V)[1].source == f"attention_sm{number}"


def test_naming_a_kernel_that_is_slower_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"attention_sm90 is slower than attention_sm80 for .* at D 32"):
        make_plan(problem_of(Case(head_dim=32)), BLOCKS_OF_V, "sm90", HOPPER)


@pytest.mark.parametrize(
    ("preset", "head_dim", "kv_len", "keys"),
    [
        ("fast", 64, 512, 64),
        ("fast", 64, 513, 128),
        ("fast", 64, 8192, 192),
        ("fast", 64, 65537, 128),
        ("precise", 128, 512, 64),
        ("precise", 128, 513, 128),
        ("precise", 64, 65537, 192),
        ("paper", 256, 300, 64),
    ],
)
def test_hopper_takes_tiles_by_the_length_of_rows(preset: str, head_dim: int, kv_len: int, keys: int) -> None:
    problem = problem_of(Case(head_dim=head_dim, kv_len=kv_len))
    assert on_gpu(problem, PRESETS[preset])[0].key_tile == keys


@pytest.mark.parametrize(
    ("key_block", "reference", "keys"), [(32, "tile", 32), (128, "tile", 128), (32, "running", 64)]
)
def test_the_emulator_takes_key_blocks_for_tiles_of_a_reference(key_block: int, reference: str, keys: int) -> None:
    recipe = get_recipe("paper", p_reference=reference, key_block=key_block)
    assert make_plan(SMALL, recipe, "numpy").key_tile == keys


def test_hopper_without_a_compiler_for_wgmma_takes_mma_sync_and_says_so() -> None:
    old = replace(HOPPER, nvrtc=(12, 8))
    assert on_gpu(problem_of(Case(head_dim=64)), PRESETS["fast"], old)[1].source == "attention_sm80"
    with pytest.raises(NotImplementedError, match=r"takes NVRTC 12\.9 or newer: found 12\.8"):
        make_plan(problem_of(Case(head_dim=64)), PRESETS["fast"], "sm90", old)


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("preset", PRESETS)
def test_naming_a_kernel_runs_it_or_says_why_not(arch: str, preset: str) -> None:
    recipe, device = PRESETS[preset], DEVICES[arch]
    integer = recipe.qk == "int8" and recipe.integer_pv
    has_mma = device.capability >= ((8, 9) if recipe.qk in FLOAT8 else (7, 5))
    for name, runs in (
        ("naive", True),
        ("dp4a", integer),
        ("sm80", has_mma),
        ("sm90", device.capability == (9, 0) and recipe.qk == "int8"),
    ):
        if runs:
            plan = make_plan(SMALL, recipe, name, device)
            assert (plan.backend, plan.kernel) == ("cuda", f"attention_{name}")
        else:
            with pytest.raises(NotImplementedError, match=f"backend='{name}': .*attention_{name}|8-bit floats"):
                make_plan(SMALL, recipe, name, device)


REFUSED: dict[str, tuple[Recipe, DeviceInfo | str, str]] = {
    "no GPU": (PRESETS["fast"], "ImportError: no module cupy", "there is no GPU (ImportError: no module cupy)"),
    "two bytes of P": (get_recipe("precise", pv="int8x2", p_levels=255), HOPPER, "pv='int8x2' is in the NumPy backend"),
    "V per token": (
        get_recipe("fast", v_granularity="token", row_sum="exact"),
        HOPPER,
        "v_granularity='token' is in the NumPy backend only: expected tensor, channel, block or block_channel",
    ),
    "key_block 128": (
        get_recipe("fast", key_block=128, key_window=0),
        HOPPER,
        "key_block=128: the CUDA kernels work in blocks of 64 keys",
    ),
    "key_window 512": (get_recipe("fast", key_window=512), HOPPER, "key_window=512: the CUDA kernels sort inside one"),
    "fp8 on Ampere": (PRESETS["fp8_e4m3"], DEVICES["sm_86"], "compute capability 8.9"),
    "fp8 PV on Turing": (Recipe(pv="float8_e5m2", p_levels=1), DEVICES["sm_75"], "compute capability 8.9"),
    "one float product": (
        Recipe(qk="float16", q_granularity="tensor", k_granularity="tensor"),
        HOPPER,
        "qk='float16' with pv='int8'",
    ),
    "too little shared memory": (PRESETS["fp16"], replace(HOPPER, shared_per_block=16384), "bytes of shared memory"),
    "too old": (PRESETS["fast"], replace(HOPPER, capability=(6, 0), name="made up"), "made up has sm_60"),
}


@pytest.mark.parametrize(("recipe", "device", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusal_says_why_and_auto_falls_back_with_that_reason(
    recipe: Recipe, device: DeviceInfo | str, reason: str
) -> None:
    with pytest.raises(NotImplementedError) as refused:
        make_plan(SMALL, recipe, "cuda", device)
    answer = re.fullmatch(r"backend='cuda': (?P<why>.*); use backend='numpy'.*", str(refused.value))
    assert answer
    assert reason in answer["why"]
    plan = make_plan(SMALL, recipe, "auto", device)
    assert (plan.backend, plan.kernel, plan.cuda) == ("numpy", "emulator", None)
    assert str(plan).splitlines()[-1] == f"  because backend='auto', and {answer['why']}"


def test_auto_takes_the_gpu_that_cuda_would_take() -> None:
    assert make_plan(SMALL, PRESETS["fast"], "auto", HOPPER) == make_plan(SMALL, PRESETS["fast"], "cuda", HOPPER)


def test_numpy_that_was_asked_for_looks_at_no_device() -> None:
    plan = make_plan(SMALL, PRESETS["fast"], "numpy", HOPPER)
    assert (plan.backend, plan.cuda, plan.reasons) == ("numpy", None, ("backend='numpy' was asked for",))


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend='gpu': expected one of \('auto', 'numpy', 'cuda', .*'naive'\)"):
        make_plan(SMALL, PRESETS["fast"], "gpu", HOPPER)


any_device = st.sampled_from(tuple(DEVICES.values()))


@given(cases(dtypes=DTYPES), presets, any_device, st.sampled_from(tuple(NAMED_KERNELS)))
def test_every_kernel_fits_the_packing_and_the_device(case: Case, preset: str, device: DeviceInfo, name: str) -> None:
    problem, recipe = problem_of(case), PRESETS[preset]
    choice = NAMED_KERNELS[name](problem, recipe, device)
    if isinstance(choice, str):
        return
    named = dict(define.split("=") for define in choice.defines)
    assert len(named) == len(choice.defines), "a macro is defined twice"
    assert int(named["D"]) == make_packing(problem, recipe).head_dim
    if choice.source != "attention_sm90":  # it counts the rows that are there
        assert QUERY_PAD % choice.rows == 0, "the last block reads behind the padded queries"
    assert KEY_PAD % choice.keys == 0, "the last tile reads behind the padded keys"
    assert 0 < choice.threads <= 1024
    assert choice.threads % 32 == 0
    assert 0 < choice.shared_bytes <= device.shared_per_block
    assert choice.reason


@given(cases(dtypes=DTYPES), presets, any_device, st.sampled_from(("cuda", *NAMED_KERNELS)))
def test_plan_is_the_first_row_that_fits(case: Case, preset: str, device: DeviceInfo, backend: str) -> None:
    problem, recipe = problem_of(case), PRESETS[preset]
    rows = KERNELS if backend == "cuda" else (NAMED_KERNELS[backend],)
    answers = [row(problem, recipe, device) for row in rows]
    first = next((answer for answer in answers if isinstance(answer, KernelChoice)), None)
    if first is None:
        with pytest.raises(
            NotImplementedError, match=re.escape(f"backend={backend!r}: {'; '.join(map(str, answers))};")
        ):
            make_plan(problem, recipe, backend, device)
        return
    plan = make_plan(problem, recipe, backend, device)
    cuda = plan.cuda
    assert cuda
    assert (plan.backend, plan.kernel, plan.key_tile, plan.reasons) == (
        "cuda",
        first.source,
        first.keys,
        (first.reason,),
    )
    assert (cuda.source, cuda.threads, cuda.shared_bytes) == (first.source, first.threads, first.shared_bytes)
    counts = cuda.defines[len(first.defines) :]
    assert cuda.defines[: len(first.defines)] == first.defines
    assert [count.split("=")[0] for count in counts] == ["SHARED_BYTES", "PARAMS_BYTES"]
    assert cuda.packing == make_packing(problem, recipe)
    blocks, rest = divmod(cuda.grid, case.batch * case.heads)
    assert rest == 0
    assert (blocks - 1) * first.rows < case.q_len <= blocks * first.rows


@given(cases(), presets)
def test_workspace_holds_the_packing_and_the_scratch_of_either_way_to_load(case: Case, preset: str) -> None:
    problem, recipe = problem_of(case), PRESETS[preset]
    cuda = make_plan(problem, recipe, "naive", HOPPER).cuda  # which runs all presets at every D
    assert cuda
    assert cuda.workspace_bytes == cuda.packing.nbytes + cuda.scratch_bytes
    for vector in (False, True):
        quantize = plan_quantize(problem, recipe, vector)
        assert quantize.packing == cuda.packing
        assert quantize.scratch_bytes <= cuda.scratch_bytes
        assert all(region.offset + region.nbytes <= cuda.scratch_bytes for region in quantize.scratch.values())


@pytest.mark.parametrize("kernel", NAMED_KERNELS)
@pytest.mark.parametrize(
    ("preset", "integer_o"), [("paper", True), ("fast", True), ("precise", False), ("half", False)]
)
def test_only_integer_sums_of_long_rows_are_flushed(kernel: str, preset: str, integer_o: bool) -> None:
    for kv_len in (LONG_ROW, LONG_ROW + 1):
        problem = problem_of(Case(batch=2, heads=3, q_len=3000, kv_len=kv_len, head_dim=40))
        if isinstance(NAMED_KERNELS[kernel](problem, PRESETS[preset], HOPPER), str):
            continue  # DP4A and a half-precision product
        cuda = make_plan(problem, PRESETS[preset], kernel, HOPPER).cuda
        assert cuda
        flushed = integer_o and kv_len > LONG_ROW and kernel != "naive"  # which sums in float32, always
        assert cuda.flush == flushed
        assert (f"LONG={int(flushed)}" in cuda.defines) == (kernel != "naive")
        if flushed:
            assert cuda.scratch_bytes >= 4 * 2 * 3 * 3072 * 64, "float32 sums of all padded rows and channels"


def test_head_dimension_is_padded_to_the_smallest_tile() -> None:
    for head_dim in range(1, 257):
        padded = padded_head_dim(head_dim)
        assert padded == min(tile for tile in HEAD_DIM_TILES if tile >= head_dim)


def test_plan_says_all_that_runs_and_why() -> None:
    case = Case(batch=2, heads=6, kv_heads=2, q_len=130, kv_len=200, head_dim=40, dtype="bfloat16", is_causal=True)
    plan, cuda = on_gpu(problem_of(replace(case, causal_alignment="bottom_right")), PRESETS["fast"])
    assert str(plan).splitlines() == [
        f"cuda: {plan.kernel}, key tile {plan.key_tile}, recipe fast",
        "  q (2, 6, 130, 40), k and v (2, 2, 200, 40), bfloat16, layout bhsd, mask: query i sees keys up to i+70, "
        "scale 0.158114",
        f"  {plan.operations / 1e9:.4g} Gop in both products",
        f"  on made up 9.0 (sm_90): {cuda.grid} blocks of {cuda.threads} threads, each {cuda.shared_bytes} bytes of "
        f"shared memory; workspace of {cuda.workspace_bytes} bytes",
        f"  compiled with {' '.join(cuda.defines)}",
        "  registers: not known yet, the first call on the GPU compiles the kernel",
        f"  because {plan.reasons[0]}",
    ]


def test_plan_says_what_a_loaded_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cuda = on_gpu(problem_of(Case()), PRESETS["fast"])
    key = (cuda.device.ordinal, cuda.source, cuda.defines)
    monkeypatch.setitem(kernels._loaded, key, kernels.Loaded(None, 128, 16))
    assert "  registers: 128 per thread, 16 bytes of spills" in str(plan).splitlines()


def test_equal_calls_give_equal_plans_and_a_plan_can_be_a_key() -> None:
    one, other = (on_gpu(problem_of(Case()), get_recipe("fast"), replace(HOPPER))[0] for _ in range(2))
    make_plan.cache_clear()
    assert one == on_gpu(problem_of(Case()), get_recipe("fast"), replace(HOPPER))[0]
    assert len({one.problem, other.problem}) == 1


def test_workspace_is_allocated_on_the_device_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def device(ordinal: int) -> AbstractContextManager[None]:
        asked.append(ordinal)
        return nullcontext()

    fake = SimpleNamespace(cuda=SimpleNamespace(Device=device), empty=lambda size, dtype: asked.append((size, dtype)))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    plan, cuda = on_gpu(SMALL, PRESETS["fast"], replace(HOPPER, ordinal=1))
    plan.workspace()
    assert asked == [1, (cuda.workspace_bytes, np.uint8)]


def test_numpy_plan_has_nothing_for_a_gpu() -> None:
    plan = make_plan(SMALL, PRESETS["fast"], "numpy")
    with pytest.raises(ValueError, match="the NumPy backend takes no workspace"):
        plan.workspace()
    with pytest.raises(ValueError, match="no numbers for a kernel"):
        _ = plan.numbers


def test_explain_without_a_gpu_prints_why(monkeypatch: pytest.MonkeyPatch) -> None:
    face = sys.modules["cupy_intfa.attention"]  # as an attribute, the package has the function of that name
    monkeypatch.setattr(face, "default_device", lambda: "ImportError: no module cupy")
    x = np.zeros((1, 1, 8, 4), np.float32)
    assert "because backend='auto', and there is no GPU (ImportError: no module cupy)" in str(explain(x, x, x))
