"""Planted bugs in the kernels of the 4-bit and 2-bit formats, as those of `ptxsim.mutations`."""

from __future__ import annotations

from ptxsim.mutations import Mutation

_PACK, _UNPACK, _ENCODE, _DECODE = (f"formats_{name}.cu" for name in ("pack", "unpack", "encode", "decode"))
_FLOAT = "intfa/formats_float.cuh"

MUTATIONS = (
    # formats_pack
    Mutation("a piece too many", _PACK, "if (piece >= pieces)", "if (piece > pieces)", "bounds", "formats-codes"),
    Mutation(
        "the other encoding", _PACK, "kEncoding == kOffset", "kEncoding == kTwosComplement", "twin", "formats-codes"
    ),
    Mutation(
        "bytes exchanged", _PACK, "__byte_perm(a, b, 0x6420)", "__byte_perm(a, b, 0x4620)", "twin", "formats-codes"
    ),
    Mutation(
        "codes of the next row",
        _PACK,
        "if (first + k < length)",
        "if (first + k <= length)",
        "twin|bounds",
        "formats-codes",
    ),
    Mutation(
        "upper bits are kept",
        _PACK,
        "word ^ four_times(kFlip)) & four_times(kCodeMask)",
        "word ^ four_times(kFlip))",
        "twin",
        "formats-codes",
    ),
    # formats_unpack
    Mutation("a piece too many", _UNPACK, "kThreads >= pieces", "kThreads > pieces", "bounds", "formats-codes"),
    Mutation(
        "a code too many", _UNPACK, "if (i >= rows * length)", "if (i > rows * length)", "bounds", "formats-codes"
    ),
    Mutation("no sign", _UNPACK, ") ^ four_times(0x80u);", ");", "twin", "formats-codes"),
    Mutation("two codes to any byte", _UNPACK, "k / kPerByte] >>", "k / 2] >>", "twin|bounds", "formats-codes"),
    Mutation("codes in another order", _UNPACK, "0x4140", "0x4041", "twin", "formats-codes"),
    # formats_encode
    Mutation(
        "the table without a barrier", _ENCODE, "    __syncthreads();\n", "", "race|uninitialised", "formats-codebook"
    ),
    Mutation(
        "a maximum over half a block",
        _ENCODE,
        "lane < kLanes; lane *= 2",
        "lane < kLanes / 2; lane *= 2",
        "twin",
        "formats-codebook",
    ),
    Mutation("no mark", _ENCODE, "is_bad ? INTFA_MARK : found", "found", "twin", "formats-codebook"),
    Mutation(
        "codes of what is no number", _ENCODE, "if (is_bad) word[w] = table.zeros;", ";", "twin", "formats-codebook"
    ),
    Mutation(
        "a scale too far",
        _ENCODE,
        "scale[first / kGroup] =",
        "scale[first / kGroup + 1] =",
        "bounds|twin",
        "formats-codebook",
    ),
    Mutation(
        "whole words at the end",
        _ENCODE,
        "if (first + kNeighbours <= count)",
        "if (first < count)",
        "bounds",
        "formats-codebook",
    ),
    Mutation("subnormal scales", _ENCODE, "max(absmax, 0x00800000u)", "absmax", "twin", "formats-codebook"),
    Mutation(
        "the bucket beside", _ENCODE, "y, 64.0f, kBucketMagic", "y, 32.0f, kBucketMagic", "twin", "formats-codebook"
    ),
    # formats_decode
    Mutation(
        "the levels without a barrier", _DECODE, "    __syncthreads();\n", "", "race|uninitialised", "formats-codebook"
    ),
    Mutation(
        "the scale of the first piece",
        _DECODE,
        "scale + first / kGroup",
        "scale + start / kGroup",
        "twin|bounds",
        "formats-codebook",
    ),
    Mutation("a piece beyond the end", _DECODE, "if (first >= count) continue;", "", "bounds", "formats-codebook"),
    Mutation("three bits of four", _DECODE, "& 15u", "& 7u", "twin", "formats-codebook"),
    Mutation(
        "fewer levels than codes",
        _DECODE,
        "if (threadIdx.x < 16) levels",
        "if (threadIdx.x < 15) levels",
        "uninitialised",
        "formats-codebook",
    ),
    # what they share
    Mutation(
        "a load beyond the end",
        _FLOAT,
        "if (first + kNeighbours <= count) {",
        "if (first < count) {",
        "bounds",
        "formats-codebook",
    ),
    Mutation(
        "a store beyond the end",
        _FLOAT,
        "if (first + kWidth > count) {",
        "if (first >= count) {",
        "bounds",
        "formats-codebook",
    ),
    Mutation(
        "elements of a pair exchanged",
        _FLOAT,
        "half2_bits(low, high);",
        "half2_bits(high, low);",
        "twin",
        "formats-codebook",
    ),
)
