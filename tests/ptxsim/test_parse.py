"""What the parser makes of PTX."""

from __future__ import annotations

import pytest

from cupy_intfa.kernels import compile_options, source_names, source_text
from cupy_intfa.ptxsim.compiler import compile_ptx
from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.operands import Address, Immediate, Register, Symbol, Vector, parse_operand
from cupy_intfa.ptxsim.parse import Line, Variable, parse

PTX = """
.version 9.0
.target sm_90
.address_size 64
.global .align 4 .f32 kHalf = 0f3F000000;
.const .align 2 .b8 table[4] = {1, 2, 0x3, 255};
.extern .shared .align 128 .b8 bytes[];
.visible .entry some(
    .param .u64 some_param_0,
    .param .align 8 .b8 some_param_1[208],
    .param .f32 some_param_2
)
.maxntid 128
{
    .reg .pred %p<2>;
    .reg .b32 %r<5>;
    // demoted variable
    .shared .align 16 .b8 tile[64];
    .loc 1 10 5
    mov.u32 %r1, %tid.x; // a comment; with a semicolon
    .loc 2 20 3, function_name $L__info_string0, inlined_at 1 11 5
    {.reg .pred p; again: setp.ne.b32 p, %r1, 0; @!p bra again;}
    .loc 3 30 1, function_name $L__info_string0, inlined_at 2 20 3
    {.reg .pred p; again: setp.ne.b32 p, %r1, 0; @p bra again; mov.b32 %r2, {%r3, %r4};}
$L__BB0_1:
    @%p1 bra $L__BB0_1;
    ret;
}
.file 1 "/somewhere/kernels_cu/one.cu"
.file 2 "/somewhere/kernels_cu/intfa/two.cuh"
.file 3 "/elsewhere/three.cuh"
"""


def test_a_kernel() -> None:
    entry = parse(PTX, "some")
    assert [v.name for v in entry.parameters] == ["some_param_0", "some_param_1", "some_param_2"]
    assert [(v.align, v.size) for v in entry.parameters] == [(8, 8), (8, 208), (4, 4)]
    assert entry.shared == (Variable("tile", 16, 64),)
    assert entry.dynamic == Variable("bytes", 128, 0)
    assert [v.content for v in entry.constants] == [b"\x00\x00\x00\x3f", b"\x01\x02\x03\xff"]
    assert entry.registers["%r4"] == 32
    assert entry.registers["%p1"] == 1
    opcodes = [ins.opcode for ins in entry.code]
    assert opcodes == ["mov.u32", "setp.ne.b32", "bra", "setp.ne.b32", "bra", "mov.b32", "bra", "ret", "ret"]


def test_inline_assembly_has_names_of_its_own() -> None:
    entry = parse(PTX, "some")
    first, second = entry.code[2], entry.code[4]
    assert first.negated
    assert not second.negated
    assert first.guard != second.guard
    assert {entry.labels[first.arguments], entry.labels[second.arguments]} == {1, 3}
    assert entry.labels["$L__BB0_1"] == 6


def test_lines_and_from_where_they_were_reached() -> None:
    lines = [ins.line for ins in parse(PTX, "some").code]
    assert lines[0] == Line("one.cu", 10)
    assert lines[1] == Line("intfa/two.cuh", 20, (("one.cu", 11),))
    assert str(lines[3]) == "three.cuh:30 < intfa/two.cuh:20 < one.cu:11"


@pytest.mark.parametrize(
    ("text", "operand"),
    [
        ("%r1", Register("%r1")),
        ("_", Register("_")),
        ("-5", Immediate(-5)),
        ("0x1FU", Immediate(31)),
        ("0f3F800000", Immediate(0x3F800000, 32)),
        ("0d3FF0000000000000", Immediate(0x3FF0000000000000, 64)),
        ("some_param_0", Symbol("some_param_0")),
        ("{%r1, _, 7}", Vector((Register("%r1"), Register("_"), Immediate(7)))),
        ("%r1|%p2", Vector((Register("%r1"), Register("%p2")))),
        ("[%rd1]", Address(Register("%rd1"))),
        ("[%rd1 + -8]", Address(Register("%rd1"), -8)),
        ("[tile+16]", Address(Symbol("tile"), 16)),
        ("[%rd1, {%r1, %r2}]", Address(Register("%rd1"), 0, (Register("%r1"), Register("%r2")))),
    ],
)
def test_operands(text: str, operand: object) -> None:
    assert parse_operand(text) == operand


def test_what_cannot_be_read_is_quoted() -> None:
    with pytest.raises(PtxError, match="cannot read 'MOV'"):
        parse(PTX.replace("ret;", "MOV;"), "some")


@pytest.mark.parametrize("name", [n.removesuffix(".cu") for n in source_names() if n.startswith("attention_naive")])
def test_lines_of_a_shipped_kernel_are_lines_of_its_source(name: str) -> None:
    text = source_text(name)
    entry = parse(compile_ptx(text, "sm_80", compile_options(())), name)
    source = text.split("\n", 2)[2].split("\n")
    (barrier, *_) = (ins for ins in entry.code if ins.opcode == "bar.sync")
    assert barrier.line.file == f"{name}.cu"
    assert "__syncthreads();" in source[barrier.line.number - 1]
