"""Instructions of one lane against Python's integers and fractions, which know nothing of NumPy's rounding."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptxsim.small import Array, run_ptx

from cupy_intfa.ptxsim import PtxError

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=max(3, settings().max_examples // 10))  # of 128 elements each
MAX = float(np.finfo(np.float32).max)


def bits(seed: int, count: int = 128, width: int = 32) -> Array:
    """Draw words, of which many are special: small, large, floats that are not finite or subnormal."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(f"u{width // 8}")
    words = rng.integers(0, 1 << width, count, dtype=dtype)
    special = [0, 1, 2, 255, (1 << width) - 1, 1 << (width - 1), (1 << (width - 1)) - 1]
    if width == 32:
        special += [0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x007FFFFF, 0x00800000, 0x80000000]
    where = rng.random(count) < 0.3
    words[where] = rng.choice(np.array(special, dtype), int(where.sum()))
    return words


def near(seed: int, count: int = 128) -> tuple[Array, Array]:
    """Draw pairs of floats whose sums and products are hard to round: close exponents, short mantissas."""
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.integers(-(2**24), 2**24, count).astype(np.float64), rng.integers(-40, 20, count))
    y = np.ldexp(rng.integers(-(2**24), 2**24, count).astype(np.float64), rng.integers(-40, 20, count))
    return x.astype(np.float32), y.astype(np.float32)


def rounded(exact: Fraction, mode: str) -> float:
    """Round a fraction to float32, normal numbers only: to nearest even, towards zero, down or up."""
    if exact == 0:
        return 0.0
    exponent = -200
    while abs(exact) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    scaled = exact / Fraction(2) ** max(exponent, -149)
    ways: dict[str, Callable[[Fraction], int]] = {"rn": round, "rz": int, "rm": math.floor, "rp": math.ceil}
    whole = ways[mode](scaled)
    return float(whole * Fraction(2) ** max(exponent, -149))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(("opcode", "function"), [("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)])
@few
@given(seeds)
def test_float_operations_round_as_fractions_do(
    opcode: str, mode: str, function: Callable[[Fraction, Fraction], Fraction], seed: int
) -> None:
    x, y = near(seed)
    (got,) = run_ptx(f"{opcode}.{mode}.f32 %o0, %i0, %i1;", x, y, results=("f4",))
    wanted = [rounded(function(Fraction(float(a)), Fraction(float(b))), mode) for a, b in zip(x, y, strict=True)]
    np.testing.assert_array_equal(got, np.array(wanted, np.float32))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@few
@given(seeds)
def test_fma_rounds_once(mode: str, seed: int) -> None:
    x, y = near(seed)
    z = (-x.astype(np.float64) * y * (1 + np.random.default_rng(seed).integers(-2, 3, len(x)) * 2.0**-24)).astype("f4")
    (got,) = run_ptx(f"fma.{mode}.f32 %o0, %i0, %i1, %i2;", x, y, z, results=("f4",))
    wanted = [
        rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)), mode)
        for a, b, c in zip(x, y, z, strict=True)
    ]
    np.testing.assert_array_equal(got, np.array(wanted, np.float32))


def test_fma_where_two_roundings_would_differ() -> None:
    """1 + 2⁻²⁴ + 2⁻⁷⁰: in float64 the last term is lost, and the tie goes to 1."""
    one, small = np.array([1.0], np.float32), np.array([2.0**-35], np.float32)
    tie = np.array([1.0 + 2.0**-23], np.float32)
    (got,) = run_ptx("fma.rn.f32 %o0, %i0, %i1, %i2;", small, small, one, results=("f4",))
    assert got[0] == 1.0
    half = np.array([2.0**-24], np.float32)
    (up,) = run_ptx(
        "fma.rn.f32 %o0, %i0, %i1, %i2;", half, np.array([1.0 + 2.0**-23], np.float32), one, results=("f4",)
    )
    assert up[0] == tie[0]  # 1 + 2⁻²⁴ + 2⁻⁴⁷ lies above the tie


@few
@given(seeds)
def test_flushing_makes_subnormals_zeros_of_their_sign(seed: int) -> None:
    x, y = bits(seed).view(np.float32), bits(seed + 1).view(np.float32)
    (got,) = run_ptx("mul.ftz.f32 %o0, %i0, %i1;", x, y, results=("f4",))

    def flushed(a: float) -> float:
        return float(np.copysign(0, a)) if abs(a) < 2.0**-126 else a

    with np.errstate(all="ignore"):
        wanted = [flushed(float(np.float32(flushed(float(a)) * flushed(float(b))))) for a, b in zip(x, y, strict=True)]
    np.testing.assert_array_equal(got, np.array(wanted, np.float32))
    finite = ~np.isnan(got)
    np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(np.array(wanted)[finite]))


def signed(x: int, width: int = 32) -> int:
    return x - (1 << width) if x >> (width - 1) else x


@few
@given(seeds)
def test_integers_wrap(seed: int) -> None:
    x, y, z = (bits(seed + i) for i in range(3))
    body = """
    add.s32 %o0, %i0, %i1; sub.u32 %o1, %i0, %i1; mul.lo.s32 %o2, %i0, %i1; mul.hi.u32 %o3, %i0, %i1;
    mul.hi.s32 %o4, %i0, %i1; mad.lo.s32 %o5, %i0, %i1, %i2; mul.wide.s32 %o6, %i0, %i1;
    mad.wide.u32 %o7, %i0, %i1, %o6;
    """
    got = run_ptx(body, x, y, z, results=("u4",) * 6 + ("u8", "u8"))
    for i in range(len(x)):
        a, b, c = int(x[i]), int(y[i]), int(z[i])
        wide = signed(a) * signed(b)
        wanted = (a + b, a - b, a * b, a * b >> 32, signed(a) * signed(b) >> 32, a * b + c, wide, a * b + wide)
        for j, (value, width) in enumerate(zip(wanted, [32] * 6 + [64] * 2, strict=True)):
            assert int(got[j][i]) == value % (1 << width), (j, a, b, c)


@few
@given(seeds)
def test_division_truncates(seed: int) -> None:
    x, y = bits(seed), bits(seed + 1)
    y[y == 0] = 3
    got = run_ptx(
        "div.s32 %o0, %i0, %i1; rem.s32 %o1, %i0, %i1; div.u32 %o2, %i0, %i1; rem.u32 %o3, %i0, %i1;",
        x,
        y,
        results=("u4",) * 4,
    )
    for i in range(len(x)):
        a, b = int(x[i]), int(y[i])
        sa, sb = signed(a), signed(b)
        quotient = abs(sa) // abs(sb) * (1 if (sa < 0) == (sb < 0) else -1)
        wanted = (quotient, sa - quotient * sb, a // b, a % b)
        assert [int(g[i]) for g in got] == [w % 2**32 for w in wanted]


@few
@given(seeds)
def test_shifts_clamp_their_amount(seed: int) -> None:
    x, y = bits(seed), np.random.default_rng(seed).integers(0, 70, 128, dtype=np.uint32)
    got = run_ptx(
        "shl.b32 %o0, %i0, %i1; shr.u32 %o1, %i0, %i1; shr.s32 %o2, %i0, %i1; shf.l.wrap.b32 %o3, %i0, %i1, 5;",
        x,
        y,
        results=("u4",) * 4,
    )
    for i in range(len(x)):
        a, n = int(x[i]), int(y[i])
        wanted = (a << n if n < 32 else 0, a >> n, signed(a) >> n, (((n << 32) | a) << 5) >> 32)
        assert [int(g[i]) for g in got] == [w % 2**32 for w in wanted]


@few
@given(seeds)
def test_prmt_picks_bytes_and_signs(seed: int) -> None:
    x, y, selector = bits(seed), bits(seed + 1), bits(seed + 2)
    (got,) = run_ptx("prmt.b32 %o0, %i0, %i1, %i2;", x, y, selector, results=("u4",))
    for i in range(len(x)):
        source = int(x[i]).to_bytes(4, "little") + int(y[i]).to_bytes(4, "little")
        wanted = 0
        for place in range(4):
            pick = int(selector[i]) >> 4 * place & 15
            byte = source[pick & 7]
            wanted |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * place
        assert int(got[i]) == wanted


@few
@given(seeds)
def test_bit_fields(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = bits(seed), bits(seed + 1)
    start, length = (rng.integers(0, 33, 128, dtype=np.uint32) for _ in range(2))
    got = run_ptx(
        "bfi.b32 %o0, %i0, %i1, %i2, %i3; bfe.u32 %o1, %i0, %i2, %i3; bfe.s32 %o2, %i0, %i2, %i3; popc.b32 %o3, %i0;"
        "clz.b32 %o4, %i0; brev.b32 %o5, %i0; lop3.b32 %o6, %i0, %i1, %i2, 0xE8;",
        x,
        y,
        start,
        length,
        results=("u4",) * 7,
    )
    for i in range(len(x)):
        a, b, at, n = int(x[i]), int(y[i]), int(start[i]), int(length[i])
        mask = ((1 << n) - 1) << at & 0xFFFFFFFF
        field = a >> at & (1 << n) - 1
        sign = 0 if n == 0 else signed(a) >> min(at + n - 1, 31) & 1
        wanted = (
            (b & ~mask) | (a << at & mask),
            field,
            field | (sign * (-1 << n) if at + n <= 32 else sign * (-1 << max(32 - at, 0))),
            a.bit_count(),
            32 - a.bit_length(),
            int(f"{a:032b}"[::-1], 2),
            (a & b) | (a & at) | (b & at),
        )
        assert [int(g[i]) for g in got] == [w % 2**32 for w in wanted], (a, b, at, n)


@pytest.mark.parametrize(("kinds", "first", "second"), [("s32.s32", "i1", "i1"), ("u32.s32", "u1", "i1")])
@few
@given(seeds)
def test_dp4a(kinds: str, first: str, second: str, seed: int) -> None:
    x, y, z = (bits(seed + i) for i in range(3))
    (got,) = run_ptx(f"dp4a.{kinds} %o0, %i0, %i1, %i2;", x, y, z, results=("i4",))
    a, b = x.view(first).reshape(-1, 4).astype(int), y.view(second).reshape(-1, 4).astype(int)
    np.testing.assert_array_equal(got, ((a * b).sum(axis=1) + z.astype(np.int64)).astype(np.uint32).view(np.int32))


@few
@given(seeds)
def test_comparisons_with_nan(seed: int) -> None:
    x, y = bits(seed).view(np.float32), bits(seed + 1).view(np.float32)
    names = ("lt", "le", "eq", "ne", "ltu", "geu", "equ", "neu", "num", "nan")
    body = "".join(f"setp.{name}.f32 %p, %i0, %i1; selp.u32 %o{i}, 1, 0, %p;" for i, name in enumerate(names))
    got = run_ptx(body, x, y, results=("u4",) * len(names), registers=".reg .pred %p;")
    for i in range(len(x)):
        a, b = float(x[i]), float(y[i])
        nan = a != a or b != b
        ordered = (a < b, a <= b, a == b, not nan and a != b)
        wanted = (*ordered, nan or a < b, nan or a >= b, nan or a == b, nan or a != b, not nan, nan)
        assert [int(g[i]) for g in got] == [int(w) for w in wanted], (a, b)


@few
@given(seeds)
def test_maxima_drop_nan_and_take_three(seed: int) -> None:
    x, y, z = (bits(seed + i) for i in range(3))
    got = run_ptx(
        "max.f32 %o0, %i0, %i1; max.NaN.f32 %o1, %i0, %i1; max.s32 %o2, %i0, %i1, %i2; min.u32 %o3, %i0, %i1;",
        x,
        y,
        z,
        results=("f4", "f4", "i4", "u4"),
    )
    fx, fy = x.view(np.float32), y.view(np.float32)
    np.testing.assert_array_equal(got[0], np.fmax(fx, fy))
    np.testing.assert_array_equal(np.isnan(got[1]), np.isnan(fx) | np.isnan(fy))
    np.testing.assert_array_equal(got[2], np.max([v.view(np.int32) for v in (x, y, z)], axis=0))
    np.testing.assert_array_equal(got[3], np.minimum(x, y))


@few
@given(seeds)
def test_conversions_to_integers_saturate(seed: int) -> None:
    x = bits(seed).view(np.float32)
    got = run_ptx(
        "cvt.rni.s32.f32 %o0, %i0; cvt.rzi.u32.f32 %o1, %i0; cvt.rmi.s64.f32 %o2, %i0;", x, results=("i4", "u4", "i8")
    )
    for i, a in enumerate(map(float, x)):
        if a != a:
            wanted = (0, 0, 0)
        else:
            big = a if abs(a) != float("inf") else np.copysign(2.0**80, a)
            wanted = (round(big), int(big), int(np.floor(big)))
        limits = ((-(2**31), 2**31 - 1), (0, 2**32 - 1), (-(2**63), 2**63 - 1))
        clipped = [min(max(int(w), low), high) for w, (low, high) in zip(wanted, limits, strict=True)]
        assert [int(g[i]) for g in got] == clipped, a


@few
@given(seeds)
def test_conversions_to_narrow_floats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = ((rng.standard_normal(256) * 10.0 ** rng.integers(-8, 6, 256)).astype(np.float32) for _ in range(2))
    body = """cvt.rn.f16x2.f32 %o0, %i1, %i0; cvt.rn.bf16x2.f32 %o1, %i1, %i0;
    cvt.rn.satfinite.e4m3x2.f32 %o2, %i1, %i0;
    cvt.rn.f16.f32 %o3, %i0; cvt.f32.f16 %o4, %o3; cvt.rn.bf16.f32 %o5, %i0;"""
    got = run_ptx(body, x, y, results=("u4", "u4", "u2", "f2", "f4", "u2"))
    both = np.stack([x, y], axis=1)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got[0].view(np.float16).reshape(-1, 2), both.astype(np.float16))
        np.testing.assert_array_equal(got[3], x.astype(np.float16))
        np.testing.assert_array_equal(got[4], x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(got[1].view(ml_dtypes.bfloat16).reshape(-1, 2), both.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(got[5].view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))
    clipped = np.clip(both, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(got[2].view(np.uint8).reshape(-1, 2), clipped.view(np.uint8))


@few
@given(seeds)
def test_integer_conversions_extend_and_cut(seed: int) -> None:
    x = bits(seed)
    body = """cvt.s64.s32 %o0, %i0; cvt.u64.u32 %o1, %i0; cvt.u16.u32 %h, %i0; cvt.s32.s16 %o2, %h; cvt.s32.s8 %o3, %i0;
    cvt.rn.f32.s32 %o4, %i0; cvt.rn.f32.u32 %o5, %i0; cvt.sat.s8.s32 %o6, %i0;"""
    got = run_ptx(body, x, results=("i8", "u8", "i4", "i4", "f4", "f4", "i4"), registers=".reg .b16 %h;")
    s = x.view(np.int32)
    np.testing.assert_array_equal(got[0], s.astype(np.int64))
    np.testing.assert_array_equal(got[1], x.astype(np.uint64))
    np.testing.assert_array_equal(got[2], x.astype(np.uint16).view(np.int16).astype(np.int32))
    np.testing.assert_array_equal(got[3], x.astype(np.uint8).view(np.int8).astype(np.int32))
    for i in range(len(x)):
        assert float(got[4][i]) == rounded(Fraction(int(s[i])), "rn")
        assert float(got[5][i]) == rounded(Fraction(int(x[i])), "rn")
    np.testing.assert_array_equal(got[6], np.clip(s, -128, 127))


@few
@given(seeds)
def test_packed_halves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, z = ((rng.standard_normal(512) * 8).astype(np.float16) for _ in range(3))
    got = run_ptx(
        "add.rn.f16x2 %o0, %i0, %i1; fma.rn.f16x2 %o1, %i0, %i1, %i2; mul.rn.f16x2 %o2, %i0, %i1;"
        "max.f16x2 %o3, %i0, %i1;",
        *(v.view(np.uint32) for v in (x, y, z)),
        results=("u4",) * 4,
    )
    exact = [x.astype(np.float64) + y, x.astype(np.float64) * y + z, x.astype(np.float64) * y]  # all exact in float64
    for g, wanted in zip(got, exact, strict=False):
        np.testing.assert_array_equal(g.view(np.float16), wanted.astype(np.float16))
    np.testing.assert_array_equal(got[3].view(np.float16), np.maximum(x, y))


def test_approximations_are_the_nearest_floats() -> None:
    x = np.linspace(-20, 20, 256, dtype=np.float32)
    got = run_ptx("ex2.approx.ftz.f32 %o0, %i0; rcp.rn.f32 %o1, %i0;", x, results=("f4", "f4"))
    np.testing.assert_array_equal(got[0], np.exp2(x.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(got[1], (1 / x.astype(np.float64)).astype(np.float32))


def test_moves_pack_and_unpack() -> None:
    x, y = bits(0), bits(1)
    got = run_ptx(
        "mov.b64 %o0, {%i0, %i1}; mov.b64 {%o1, %o2}, %o0; mov.b32 {%l, %h}, %i0; mov.b32 %o3, {%h, %l};",
        x,
        y,
        results=("u8", "u4", "u4", "u4"),
        registers=".reg .b16 %l, %h;",
    )
    np.testing.assert_array_equal(got[0], y.astype(np.uint64) << np.uint64(32) | x)
    np.testing.assert_array_equal(got[1], x)
    np.testing.assert_array_equal(got[2], y)
    np.testing.assert_array_equal(got[3], x << np.uint32(16) | x >> np.uint32(16))


def test_guards_leave_other_lanes_alone() -> None:
    x = np.arange(64, dtype=np.uint32)
    (got,) = run_ptx(
        "mov.u32 %o0, 7; setp.lt.u32 %p, %i0, 40; @%p mov.u32 %o0, %i0; @!%p add.u32 %o0, %o0, 1;",
        x,
        results=("u4",),
        registers=".reg .pred %p;",
    )
    assert got.tolist() == [*range(40), *[8] * 24]


@pytest.mark.parametrize(
    "body", ["tex.2d.v4.f32.s32 %o0, [%i0];", "frobnicate.b32 %o0, %i0;", "cvt.rn.tf32.f32 %o0, %i0;"]
)
def test_what_is_not_modelled_is_named(body: str) -> None:
    with pytest.raises(PtxError, match=rf"not modelled: {body.split()[0]}"):
        run_ptx(body, np.zeros(1, np.uint32), results=("u4",))
