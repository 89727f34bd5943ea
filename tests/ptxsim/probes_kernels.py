"""What is asked of a GPU and of the simulator, for `ptxsim.confirm`: the shipped kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from kernels.bounds import arithmetic_of, kernel_bound
from kernels.harness import describe, run
from kernels.test_gemm import on_gpu as copy_to_gpu
from kernels.test_quantize import Inputs, expected, on_device, quantised
from ptxsim.integers import Question, ask_products, ask_scores
from ptxsim.probes import Answer, Probe
from ptxsim.simulated import Setting
from ptxsim.simulated_toolbox import Product, convert, draw_codes, draw_values, recode
from ptxsim.small import Array
from strategies import Case, dtype_of
from tolerances import output_rounding

from cupy_intfa import PRESETS
from cupy_intfa.gemm_ladder import Tile
from cupy_intfa.gemm_launch import Addresses, launch_gemm
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.quantize import QuantizedQKV, quantize_arrays
from cupy_intfa.quantize.bits import ENCODINGS, pack_codes, unpack_codes
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.simulate import attend_simulated, place_packing, quantise_simulated
from cupy_intfa.simulator import Simulator, simulated_device

_ARCH = "sm_90a"


def _quantise_probe(preset: str, dtype: str) -> Probe:
    drawn, recipe = Inputs(heads=2, kv_heads=1, q_len=70, kv_len=130, head_dim=64, dtype=dtype), PRESETS[preset]

    def as_bytes(views: dict[str, Array]) -> Answer:
        return {name: np.ascontiguousarray(x).reshape(-1).view(np.uint8) for name, x in views.items()}

    def on_gpu() -> Answer:
        return as_bytes(quantised(drawn.problem(), recipe, tuple(map(on_device, drawn.arrays()))))

    def simulated() -> Answer:
        setting = Setting("naive", _ARCH)
        plan, simulator = setting.plan(recipe, drawn.problem()), setting.simulator()
        assert plan.cuda
        workspace = quantise_simulated(simulator, plan, drawn.arrays())
        views = plan.cuda.packing.views(simulator.memory.read(workspace, plan.cuda.packing.nbytes))
        assert views.keys() == expected(drawn.problem(), recipe, drawn.arrays()).keys()
        return as_bytes(views)

    return Probe(f"quantise {preset} {dtype}", on_gpu, simulated)


def attend(setting: Setting, codes: QuantizedQKV, case: Case) -> tuple[Array, Array]:
    """Run attention in the simulator: output and log-sum-exp."""
    plan, simulator = setting.plan(codes.recipe, describe(case)), setting.simulator()
    workspace = place_packing(simulator, plan, codes)
    out, lse = attend_simulated(simulator, plan, workspace, True, dtype_of(case.dtype))
    assert lse is not None
    return out, lse


def _attention_probe(name: str, preset: str, case: Case, *, zeros: bool = False) -> Probe:
    """Attention on the same codes; where all queries are zero no exponential is of anything but one number."""
    recipe, setting = PRESETS[preset], Setting(name, _ARCH)

    def codes() -> QuantizedQKV:
        q, k, v = case.arrays()
        return quantize_arrays(0 * q if zeros else q, k, v, recipe=recipe)

    def on_gpu() -> Answer:
        return dict(zip(("out", "lse"), run(name, codes(), case, "device"), strict=True))

    def simulated() -> Answer:
        return dict(zip(("out", "lse"), attend(setting, codes(), case), strict=True))

    def limit() -> Answer:
        plan = setting.plan(recipe, describe(case))
        options: dict[str, Any] = {
            "scale": case.softmax_scale,
            "key_tile": plan.key_tile,
            "causal_offset": case.causal_offset,
        }
        bound = kernel_bound(codes(), **options, arithmetic=arithmetic_of(plan))
        rounding = output_rounding(np.ones(bound.out.shape), case.dtype)
        return {"out": 2 * (bound.out + rounding), "lse": 2 * bound.lse}  # either may be as far from the emulator

    label = f"attention_{name} {preset} D{case.head_dim}" + (", queries of zero" if zeros else "")
    return Probe(label, on_gpu, simulated, limit)


def _integer_probe(name: str, preset: str, question: Question) -> Probe:
    """Integers that a kernel has on the way; `ptxsim.integers` says how its outputs tell them."""

    def on_gpu() -> Answer:
        return question.read(*run(name, question.codes, question.case, "device"))

    def simulated() -> Answer:
        return question.read(*attend(Setting(name, _ARCH), question.codes, question.case))

    return Probe(f"integers of attention_{name} {preset}, {', '.join(question.exact)}", on_gpu, simulated)


def _gemm_probe(product: Product) -> Probe:
    def on_gpu() -> Answer:
        import cupy as cp

        plan, ends = product.plan(), product.ends()
        arrays = {name: copy_to_gpu(x) for name, x in zip("ab", product.operands(), strict=True)}
        arrays |= {name: cp.asarray(x) for name, x in ends.items()}
        copies = zip("ab", plan.copies, strict=True)
        arrays |= {f"packed_{name}": cp.empty(copy.nbytes, np.uint8) for name, copy in copies if copy}
        arrays["out"] = cp.empty(plan.problem.shape[:2], product.out)
        steps = {f"step_{x}": int(f"scale_{x}" in ends) for x in "ab"}
        launch_gemm(plan, Addresses(**{name: x.data.ptr for name, x in arrays.items()}, **steps))
        return {"out": arrays["out"].get()}

    m, n, k = product.shape
    name = f"gemm_{product.rung} {m} x {n} x {k}, {product.out}" + (", large tile" if product.tile else "")
    return Probe(name, on_gpu, lambda: {"out": product.simulated()})


def _code_probe(bits: int, encoding: str, rows: int, length: int) -> Probe:
    codes = draw_codes(rows, length)

    def on_gpu() -> Answer:
        import cupy as cp

        packed = pack_codes(cp.asarray(codes), bits, encoding)
        back = unpack_codes(packed, bits, length, encoding)
        return {"packed": packed.get().ravel(), "codes": back.get().view(np.uint8).ravel()}

    def simulated() -> Answer:
        found = recode(Simulator(simulated_device(_ARCH)), codes, bits, encoding)
        return dict(zip(("packed", "codes"), found, strict=True))

    return Probe(f"formats_pack and formats_unpack {bits} bits {encoding} {rows} x {length}", on_gpu, simulated)


def _codebook_probe(dtype: str, count: int) -> Probe:
    x = draw_values(count, dtype)

    def on_gpu() -> Answer:
        import cupy as cp

        found = quantize_blockwise(cp.asarray(x))
        arrays = (found.values, found.scale, found.dequantize(dtype))
        return {name: array.get().ravel() for name, array in zip(("codes", "scale", "x"), arrays, strict=True)}

    def simulated() -> Answer:
        found = convert(Simulator(simulated_device(_ARCH)), x)
        return dict(zip(("codes", "scale", "x"), found, strict=True))

    return Probe(f"formats_encode and formats_decode {dtype} {count}", on_gpu, simulated)


def _attention_probes() -> Iterator[Probe]:
    mask: dict[str, Any] = {"is_causal": True, "causal_alignment": "bottom_right"}
    case = Case(heads=2, kv_heads=1, q_len=70, kv_len=200, head_dim=64, **mask)
    for name in NAMED_KERNELS:
        setting, is_slow = Setting(name, _ARCH), name == "naive"
        rows = replace(case, q_len=3) if is_slow else case
        for preset, recipe in PRESETS.items():
            if setting.runs(recipe, 64):
                yield _attention_probe(name, preset, rows)
                yield _attention_probe(name, preset, rows, zeros=True)
        yield _attention_probe(name, "fast", replace(rows, head_dim=128))
        q_len, keys = (3, range(0, 120, 29)) if is_slow else (130, range(0, 128, 9))
        for preset in ("paper", "fast", "precise", "half"):
            if setting.runs(PRESETS[preset], 64):
                yield _integer_probe(name, preset, ask_scores(PRESETS[preset], tuple(keys), q_len, 128))
                if PRESETS[preset].pv == "int8":
                    yield _integer_probe(name, preset, ask_products(PRESETS[preset], q_len, 120))


# Of gemm_sm80 a tile for few rows, one for few tiles, and the one for many; every rung with copies of its operands.
_LARGE = Tile(m=256, n=128, k=128, warps_m=4, warps_n=2, ring=4)
_PRODUCTS = (
    ("naive", (17, 19, 33), None),
    ("dp4a", (129, 130, 200), None),
    ("wmma", (129, 130, 200), None),
    ("sm80", (3, 33, 1040), None),
    ("sm80", (70, 66, 656), None),
    ("sm80", (130, 260, 208), _LARGE),
    ("sm90", (130, 300, 650), None),
)
_ENDS = (("int32", ("row", "column")), ("float16", ("odd", "row")), ("float32", ("gaps", "reversed")))


def kernel_probes() -> Iterator[Probe]:
    """List the kernels: quantise kernels, attention and the integers inside, GEMM, formats."""
    for preset in ("paper", "fast", "precise", "half", "fp8_e4m3"):
        yield _quantise_probe(preset, "float16")
    yield _quantise_probe("fast", "float32")
    for rung, shape, tile in _PRODUCTS:
        for out, layouts in (
            ("int32", ("row", "column")),
            ("float16", ("odd", "row")),
            ("float32", ("gaps", "reversed")),
        ):
            yield _gemm_probe(Product(rung, _ARCH, shape, out, tile, layouts=layouts))
    for bits in (4, 2):
        for encoding in ENCODINGS:
            yield _code_probe(bits, encoding, 3, 5)
            yield _code_probe(bits, encoding, 5, 48)
    for dtype in ("float16", "float32"):
        yield _codebook_probe(dtype, 8263)
    yield from _attention_probes()
