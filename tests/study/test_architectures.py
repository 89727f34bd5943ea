"""What is counted in machine code, the bounds that follow, and the model: against code and numbers made by hand."""

import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import nvrtc
import pytest

from cupy_intfa.bench.report import load_reports
from cupy_intfa.kernels import architecture, compile_options, source_text
from cupy_intfa.ptxsim.compiler import CompileError
from cupy_intfa.study import architectures, machine_code, rate_model
from cupy_intfa.study.chips import Chip, chips, read_chips_file, say_what_is_unchecked
from cupy_intfa.study.counting import Build, find_plan, macros, rows_of_block
from cupy_intfa.study.machine_code import compile_machine_code
from cupy_intfa.study.opcodes import CLASSES, classify, is_slow, matrix_unit, multiplications
from cupy_intfa.study.rate_model import add_measured, add_model, compute_bounds, efficiencies, nearest_bound
from cupy_intfa.study.report import RESULTS, load_study
from cupy_intfa.study.study import one, pick
from cupy_intfa.study.turns import main_loop, read_blocks, shortest_turn

FAST = Build("sm_80", "fast", 64)


def listing(text: str) -> str:
    """Write instructions as nvdisasm does; what ends in a colon is a label."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(f"{x}" if x.endswith(":") else f"        /*{16 * i:04x}*/   {x} ;" for i, x in enumerate(lines))


# A loop over work around the loop over tiles, as attention_sm90 has; in it a wait, a mask, and a rescale kept far away.
LOOPS = listing(
    """
    S2R R0, SR_CTAID.X
    .L_x_0:
    LDG.E R1, [R2.64]
    .L_x_1:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R4
    @!P0 BRA `(.L_x_1)
    IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4
    @P1 BRA `(.L_x_3)
    .L_x_2:
    MUFU.EX2 R5, R5
    @P2 BRA `(.L_x_4)
    FADD R6, R6, 1
    FADD R6, R6, 1
    .L_x_4:
    IMMA.16832.U8.S8 R4, R8.ROW, R12.COL, R4
    @P3 BRA `(.L_x_1)
    STG.E [R2.64], R1
    @P4 BRA `(.L_x_0)
    EXIT
    .L_x_3:
    FMUL R7, R7, R8
    FMUL R7, R7, R8
    BRA `(.L_x_2)
    """
)


def test_turn_passes_the_products_and_nothing_that_it_need_not() -> None:
    assert shortest_turn(read_blocks(LOOPS)) == Counter(
        {
            "SYNCS.PHASECHK.TRANS64.TRYWAIT": 1,
            "BRA": 4,  # the wait, not to the rescale, over the mask, and back
            "IMMA.16832.S8.S8": 1,
            "MUFU.EX2": 1,
            "IMMA.16832.U8.S8": 1,
        }
    )


def test_main_loop_is_the_innermost_one_with_products() -> None:
    blocks = read_blocks(LOOPS)
    head, members = main_loop(blocks)
    assert blocks[head].opcodes[0] == "SYNCS.PHASECHK.TRANS64.TRYWAIT"
    inside = [opcode for i in members for opcode in blocks[i].opcodes]
    assert "FMUL" in inside
    assert not {"LDG.E", "STG.E", "EXIT", "S2R"} & set(inside)
    assert sum(block.matrices for block in blocks) == 2


def test_a_way_past_a_product_is_not_taken() -> None:
    shortcut = LOOPS.replace("@P2 BRA `(.L_x_4)", "@P2 BRA `(.L_x_1)")  # no row of the warp sees the tile
    found = shortest_turn(read_blocks(shortcut))
    assert (found["IMMA.16832.U8.S8"], found["FADD"], found["MUFU.EX2"]) == (1, 2, 1)


def test_code_without_products_is_refused() -> None:
    with pytest.raises(ValueError, match="no loop has matrix instructions"):
        main_loop(read_blocks(LOOPS.replace("IMMA", "IMAD")))


@pytest.mark.parametrize(
    ("opcode", "unit", "products", "group", "slow"),
    [
        ("IMMA.8816.S8.S8", "IMMA", 1024, "tensor", False),
        ("HMMA.16816.F32", "HMMA", 2048, "tensor", False),
        ("HGMMA.64x128x16.F32", "HGMMA", 32768, "tensor", False),
        ("QMMA.16832.F32.E4M3.E4M3", "QMMA", 4096, "tensor", False),
        ("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", "IMMA", 4096, "tensor", False),
        ("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32", "QMMA", 4096, "tensor", False),
        ("wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8", "IGMMA", 32768, "tensor", False),
        ("wgmma.wait_group.sync.aligned", None, 0, "control", False),
        ("dp4a.s32.s32", "dp4a", 128, "tensor", False),
        ("MUFU.EX2", None, 0, "exponential", True),
        ("ex2.approx.ftz.f32", None, 0, "exponential", True),
        ("I2F", None, 0, "convert", True),
        ("I2FP.F32.S32", None, 0, "convert", False),
        ("F2F.F16.F32", None, 0, "convert", True),
        ("F2FP.F16.F32.PACK_AB", None, 0, "convert", False),
        ("cvt.rn.f16x2.f32", None, 0, "convert", False),
        ("HFMA2.MMA", None, 0, "float", False),
        ("fma.rn.f16x2", None, 0, "float", False),
        ("VIMNMX3", None, 0, "integer", False),
        ("IDP.4A.U8.U8", None, 0, "integer", False),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", None, 0, "memory", False),
        ("ULDC.64", None, 0, "memory", False),
        ("WARPGROUP.ARRIVE", None, 0, "control", False),
    ],
)
def test_instructions_are_what_their_names_say(
    opcode: str, unit: str | None, products: int, group: str, slow: bool
) -> None:
    assert (matrix_unit(opcode), multiplications(opcode), classify(opcode), is_slow(opcode)) == (
        unit,
        products,
        group,
        slow,
    )


def test_a_product_of_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"HMMA\.12345: a matrix instruction of unknown shape"):
        multiplications("HMMA.12345")


# What the compiler says


@pytest.mark.parametrize("build", [FAST, Build("sm_61", "fast", 64)])
def test_registers_and_spills_are_those_of_the_log(build: Build) -> None:
    plan = find_plan(build)
    assert plan is not None
    assert plan.cuda is not None
    source, options = source_text(plan.kernel), compile_options(plan.cuda.defines)
    compiled = compile_machine_code(source, build.arch, options)
    expected = nvrtc.resources(
        nvrtc.compile_kernel(source, build.arch, options, cuda=machine_code.compiles_for(build.arch))
    )
    assert (compiled.registers, compiled.spilled) == (expected.registers, expected.spilled)
    assert rows_of_block(plan.cuda) * plan.cuda.grid == 4 * 32 * 16384
    assert macros(plan.cuda)["D"] == 64


def test_what_is_wrong_or_missing_is_said() -> None:
    with pytest.raises(CompileError, match=r"sm_80, CUDA 13: NVRTC's error 6\n.*undefined"):
        compile_machine_code("__global__ void f() { g(); }", "sm_80", ())
    with pytest.raises(FileNotFoundError, match="no-such-wheel is not installed: pip install no-such-wheel"):
        machine_code._installed("no-such-wheel", "libnvrtc.so")
    assert find_plan(Build("sm_75", "fp8_e4m3", 64)) is None
    row = architectures.measure_build(Build("sm_75", "fp8_e4m3", 64))
    assert row["kernel"] == "none"
    assert row["instructions"] is row["issue_tops"] is row["nearest"] is None


def test_blocks_are_limited_by_the_scarcest() -> None:
    a100 = chips()["sm_80"]
    assert a100.blocks(threads=128, registers=123, shared_bytes=20736) == 4  # 65536 / (128 · 128)
    assert a100.blocks(threads=128, registers=40, shared_bytes=83000) == 1  # 164 KB / (83000 + 1024)
    assert a100.blocks(threads=1024, registers=24, shared_bytes=1024) == 2  # 2048 threads
    assert chips()["sm_75"].blocks(threads=128, registers=64, shared_bytes=32768) == 2  # 64 KB, nothing reserved


@pytest.mark.parametrize("chip", [chip for chip in chips().values() if chip.arch != "sm_90a"], ids=lambda c: c.arch)
def test_published_rates_fit_clock_and_multiprocessors(chip: Chip) -> None:
    for name, tops in chip.tops.items():
        products = 1e3 * tops / 2 / chip.multiprocessors / chip.clock_ghz  # of a clock and multiprocessor
        assert products == pytest.approx(2 ** round(math.log2(products)), rel=0.01), name
    assert chip.shared_per_block <= chip.shared_per_multiprocessor
    assert architecture("attention_sm80", chip.device.arch) == chip.arch


def test_every_number_of_a_chip_names_its_text_or_is_said_to_have_none() -> None:
    texts = read_chips_file()["texts"]
    named = {text for chip in chips().values() for text in chip.checked.values()}
    assert named == set(texts)
    numbers = {field.name for field in fields(Chip)} - {"arch", "chip", "capability", "checked", "note"}
    for chip in chips().values():
        assert set(chip.checked) | set(chip.unchecked) == numbers
        assert not set(chip.checked) & set(chip.unchecked)
        for name in chip.unchecked:
            assert f"{chip.chip} {name}" in say_what_is_unchecked()
            assert chip.note  # what it is derived from
    assert say_what_is_unchecked() in architectures.STUDY.limits


# What is counted


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in architectures.STUDY.measure(architectures.STUDY.sizes["quick"], "numpy")]


def test_counts_are_of_the_whole_main_loop(rows: list[dict[str, Any]]) -> None:
    assert [(row["arch"], row["kernel"]) for row in rows] == [
        ("sm_61", "attention_dp4a"),
        ("sm_80", "attention_sm80"),
        ("sm_90a", "attention_sm90"),
        ("sm_90a", "attention_sm80"),
        ("sm_90a", "attention_dp4a"),
    ]
    for row in rows:
        assert sum(row[name] for name in CLASSES) == pytest.approx(row["instructions"], rel=1e-12)
        assert row["counted"] == ("PTX, traced" if row["kernel"] == "attention_dp4a" else "machine code")
        if row["kernel"] == "attention_dp4a":
            assert row["tensor"] == 64 / 2  # 2 D products by fours
        # Both products; attention_sm80 has the row sum as another product, of one row of eight.
        whole = chips()[row["arch"]].tops[{"dp4a": "dp4a", "sm80": "IMMA", "sm90": "IGMMA"}[row["kernel"][-4:]]]
        assert 0.93 * whole < row["tensor_tops"] <= whole * (1 + 1e-12)
        assert (row["tensor_tops"] == pytest.approx(whole, rel=1e-12)) == (row["kernel"] != "attention_sm80")
    exponentials = {row["kernel"]: row["exponential"] for row in rows}
    # One for each score; the polynomial takes every third group; the traced one also brings sums to larger maxima.
    assert exponentials["attention_sm80"] == 1.0
    assert exponentials["attention_sm90"] == pytest.approx(2 / 3)
    assert 1.0 < exponentials["attention_dp4a"] < 1.25


def test_without_a_disassembler_the_trace_stands_in(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "is_readable", lambda arch: False)
    traced = architectures.measure_build(FAST)
    (read,) = pick(rows, arch="sm_80")
    assert traced["counted"] == "PTX, traced"
    assert traced["tensor"] == read["tensor"]
    assert traced["tensor_tops"] == pytest.approx(read["tensor_tops"])
    assert 1.0 < traced["instructions"] / read["instructions"] < 2.0  # PTX does not fuse, and has 64-bit addresses


# The model


def test_bounds_are_what_one_unit_allows() -> None:
    found = compute_bounds(chips()["sm_80"], 64, {"IMMA.16832.S8.S8": 1.0, "MUFU.EX2": 0.5, "I2FP.F32.S32": 8.5})
    assert found["tensor_tops"] == pytest.approx(624)  # 4096 / 32 products are those of D 64
    assert found["exponential_tops"] == pytest.approx(4 * 64 * 108 * 1.41e-3 * 16 / 0.5)
    assert found["issue_tops"] == pytest.approx(4 * 64 * 108 * 1.41e-3 * 128 / 10.0)
    assert nearest_bound(found) == ("issue", found["issue_tops"])
    both = compute_bounds(chips()["sm_80"], 64, {"IMMA.16832.S8.S8": 0.5, "HMMA.16816.F32": 1.0, "MUFU.EX2": 1.0})
    assert both["tensor_tops"] == pytest.approx(1 / (0.5 / 624 + 0.5 / 312))
    unknown = compute_bounds(chips()["sm_100"], 64, {"IMMA.16832.S8.S8": 1.0, "MUFU.EX2": 1.0})
    assert unknown["tensor_tops"] is None
    assert nearest_bound(unknown) is None


def made_up(arch: str, kernel: str, recipe: str, bound: float, measured: float | None = None) -> dict[str, Any]:
    """Make a row whose nearest bound is a number."""
    bounds = dict.fromkeys(rate_model.BOUNDS, 2 * bound) | {"issue_tops": bound}
    names = {"arch": arch, "kernel": kernel, "recipe": recipe, "head_dim": 64, "backend": "cuda"}
    return {**names, **bounds, "measured_tops": measured}


def test_model_learns_from_the_other_rows() -> None:
    measured = [
        made_up("sm_90a", "attention_sm80", "paper", 100.0, 40.0),
        made_up("sm_90a", "attention_sm80", "fast", 200.0, 100.0),
        made_up("sm_90a", "attention_sm80", "half", 100.0, 60.0),
    ]
    elsewhere = [made_up("sm_80", "attention_sm80", "fast", 50.0), made_up("sm_61", "attention_dp4a", "fast", 50.0)]
    hopper = [made_up("sm_90a", "attention_sm90", "precise", 1000.0, 300.0)]
    found = add_model([*measured, *elsewhere, *hopper])
    assert efficiencies(found, "attention_sm80") == {("paper", 64): 0.4, ("fast", 64): 0.5, ("half", 64): 0.6}
    assert [row["model_tops"] for row in found] == [
        pytest.approx(55.0),  # the middle of 0.5 and 0.6
        pytest.approx(100.0),
        pytest.approx(45.0),
        pytest.approx(25.0),
        None,
        pytest.approx(500.0),
    ]
    said = list(architectures._say_what_the_model_is_worth(found))
    assert any("0.73 to 1.33 for the 3 rows of `attention_sm80`" in text for text in said)
    assert any("0.60 to 0.60 for the 1 rows of `attention_sm90`" in text for text in said)


def test_measured_rates_are_those_of_the_kernel_that_ran() -> None:
    (report,) = (one for one in load_reports(RESULTS) if one.suite == "prefill")
    until = read_chips_file()["measured"]["until"]
    rows = [made_up("sm_90a", kernel, "fast", 1000.0) for kernel in ("attention_sm90", "attention_sm80")]
    rows[1]["backend"] = "sm80"
    (kernel,) = (
        result.entries["fast"].forms["kernel"].tops
        for result in report.results
        if result.case == rate_model.measured_case(64)
    )
    before = add_measured(rows, [replace(report, date=until)])
    assert [row["measured_tops"] for row in before] == [None, 450.0]
    later = add_measured(rows, [replace(report, date="2030-01-01T00:00:00+00:00")])
    assert [row["measured_tops"] for row in later] == [kernel, 450.0]
    assert "2030-01-01" in str(later[0]["measured_on"])
    other = add_measured(rows, [replace(report, date="2030-01-01T00:00:00+00:00", gpu="NVIDIA L4")])
    assert other[0]["measured_tops"] is None
    on_another_chip = add_measured([{**row, "arch": "sm_80"} for row in rows], [report])
    assert [row["measured_tops"] for row in on_another_chip] == [None, None]


def test_result_has_the_rates_that_were_measured_last() -> None:
    stored = load_study("architectures").rows
    bare = [{k: x for k, x in row.items() if k not in ("measured_tops", "measured_on", "model_tops")} for row in stored]
    again = add_model(add_measured(bare, load_reports(RESULTS)))
    assert again == list(stored), "python -m cupy_intfa study architectures"


def test_result_knows_every_kernel_of_the_plan_as_it_is() -> None:
    stored = load_study("architectures").rows
    for build in architectures.list_builds(architectures.Settings()):
        plan = find_plan(build)
        where = {"arch": build.arch, "recipe": build.recipe, "head_dim": build.head_dim, "backend": build.backend}
        assert one(stored, "kernel", **where) == (plan.kernel if plan else "none")
        if plan and plan.cuda:
            assert one(stored, "shared_bytes", **where) == plan.cuda.shared_bytes, (
                "python -m cupy_intfa study architectures"
            )
            assert one(stored, "tile", **where).split(" × ")[0] == str(rows_of_block(plan.cuda))
