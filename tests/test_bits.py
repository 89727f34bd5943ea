"""Codes of 4 and 2 bits in bytes: documented bytes, round trips, padding, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_arrays import i8, u8
from strategies import Array, seeds

from cupy_intfa.quantize.bits import ENCODINGS, pack_codes, unpack_codes


def every_code(bits: int, encoding: str) -> Array:
    low = 0 if encoding == "unsigned" else -(1 << (bits - 1))
    return np.arange(low, low + (1 << bits)).astype(np.uint8 if encoding == "unsigned" else np.int8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_are_the_sum_of_shifted_codes(bits: int, encoding: str) -> None:
    """Written as the definition: code i of a byte times 2^(bits · i), stored modulo 2^bits or plus 2^(bits - 1)."""
    codes = np.random.default_rng(bits).permutation(np.repeat(every_code(bits, encoding), 4))
    offset = 1 << (bits - 1) if encoding == "offset" else 0
    stored = [(int(code) + offset) % (1 << bits) for code in codes]
    per_byte = 8 // bits
    expected = [
        sum(code << (bits * i) for i, code in enumerate(stored[start : start + per_byte]))
        for start in range(0, len(stored), per_byte)
    ]
    packed = pack_codes(codes, bits, encoding)
    assert packed.dtype == np.uint8
    assert packed.tolist() == expected


def test_the_documented_bytes() -> None:
    assert pack_codes(i8([1, -2, 7]), 4).tolist() == [0xE1, 0x07]
    assert pack_codes(i8([1, -2, 7]), 4, "offset").tolist() == [0x69, 0x0F]
    assert pack_codes(u8([1, 14, 7]), 4, "unsigned").tolist() == [0xE1, 0x07]
    assert pack_codes(i8([1, -2, 0, -1]), 2).tolist() == [0b11_00_10_01]
    assert pack_codes(i8([1, -2, 0, -1]), 2, "offset").tolist() == [0b01_10_00_11]


@given(
    st.sampled_from((2, 4, 8)),
    st.sampled_from(ENCODINGS),
    st.sampled_from(((0,), (1,), (5,), (16,), (3, 7), (2, 3, 33), (4, 0), (0, 4))),
    seeds,
)
def test_codes_come_back(bits: int, encoding: str, shape: tuple[int, ...], seed: int) -> None:
    codes = np.random.default_rng(seed).choice(every_code(bits, encoding), shape)
    packed = pack_codes(codes, bits, encoding)
    assert packed.shape == (*shape[:-1], -(-shape[-1] * bits // 8))
    back = unpack_codes(packed, bits, shape[-1], encoding)
    assert back.dtype == codes.dtype
    assert back.shape == codes.shape
    assert (back == codes).all()


@given(st.sampled_from((2, 4)), st.sampled_from(ENCODINGS), seeds)
def test_strided_codes_are_packed_in_their_own_order(bits: int, encoding: str, seed: int) -> None:
    codes = np.random.default_rng(seed).choice(every_code(bits, encoding), (12, 10))
    for view in (codes.T, codes[:, ::2], codes[::-1]):
        assert (pack_codes(view, bits, encoding) == pack_codes(np.ascontiguousarray(view), bits, encoding)).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_the_encodings_differ_in_the_upper_bit_alone(bits: int) -> None:
    codes = every_code(bits, "offset")
    flips = sum(1 << (bits * i + bits - 1) for i in range(8 // bits))
    assert (pack_codes(codes, bits) ^ pack_codes(codes, bits, "offset") == flips).all()


def test_unused_bits_are_zero_when_written_and_ignored_when_read() -> None:
    assert pack_codes(i8([3]), 2, "offset").tolist() == [1]  # 3 & 0b11 = -1, stored as 1
    for rest in (0x00, 0xF0):
        assert unpack_codes(u8([rest | 7]), 4, 1).tolist() == [7]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 8, 4 or 2 bits, got 3"):
        pack_codes(i8([1]), 3)
    with pytest.raises(ValueError, match="expected an encoding among twos_complement, offset, unsigned, got 'gray'"):
        unpack_codes(u8([1]), 4, 2, "gray")
    with pytest.raises(TypeError, match="expected codes of dtype int8 or uint8, got int32"):
        pack_codes(np.array([1], np.int32), 4)
    with pytest.raises(TypeError, match="expected packed codes of dtype uint8, got int8"):
        unpack_codes(i8([1]), 4, 2)
    with pytest.raises(ValueError, match="5 codes of 4 bits take 3 bytes, got 2"):
        unpack_codes(u8([1, 2]), 4, 5)
    with pytest.raises(ValueError, match="expected an array of one axis or more, got a scalar"):
        pack_codes(np.array(1, np.int8), 4)
