// From absolute maxima to scales, from floats to codes: the bits of cupy_intfa/quantize. Nothing here may be contracted
// to an FMA, and divisions are correctly rounded.
#pragma once
#include "quantize_load.cuh"

// Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits.
constexpr float kRoundingMagic = 12582912.0f;
#define INTFA_MARK __int_as_float(0x7fc00000)  // the NaN of a mark, as NumPy writes it

template <s32 kFormat>
__device__ __forceinline__ float scale_of(float absmax, float largest) {
    if constexpr (kFormat == kHalf) {  // 2^(exponent - 14), not subnormal
        const s32 exponent = (s32)(__float_as_uint(absmax) >> 23) - 14;
        return absmax == 0.0f ? 1.0f : __uint_as_float((u32)max(exponent, 1) << 23);
    }
    return absmax == 0.0f ? 1.0f : fmaxf(__fdiv_rn(absmax, largest), kFltMin);
}

// To an 8-bit float, half to even; |x| does not pass the format's largest.
template <s32 kFraction, s32 kBias>
__device__ __forceinline__ u32 float8_code(float x) {
    constexpr s32 kDropped = 23 - kFraction;
    constexpr u32 kMagic = (u32)(127 + 1 - kBias + kDropped)
                           << 23;  // 2^23 quanta of the grid of small values
    const u32 bits = __float_as_uint(x) & 0x7fffffffu;
    const u32 small = __float_as_uint(__fadd_rn(__uint_as_float(bits), __uint_as_float(kMagic))) - kMagic;
    const u32 odd = bits >> kDropped & 1;
    const u32 normal =
        ((bits + odd + (1u << (kDropped - 1)) - 1) >> kDropped) - ((127u - kBias) << kFraction);
    const u32 code = bits < (u32)(127 + 1 - kBias) << 23 ? small : normal;
    return code | (__float_as_uint(x) >> 24 & 0x80u);
}

// The code of x in the low bits; those above it are noise.
template <s32 kFormat>
__device__ __forceinline__ u32 encode(float x, float inverse) {
    if constexpr (kFormat == kInt8) return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), kRoundingMagic));
    x = __fmul_rn(__fadd_rn(x, 0.0f), inverse);  // -0 and subnormals become +0
    if constexpr (kFormat == kE4M3) return float8_code<3, 7>(x);
    if constexpr (kFormat == kE5M2) return float8_code<2, 15>(x);
    return half_bits(x);
}

// What a code of `encode` stands for, without its scale.
template <s32 kFormat>
__device__ __forceinline__ float decode(u32 code) {
    if constexpr (kFormat == kInt8) return __fsub_rn(__uint_as_float(code), kRoundingMagic);
    if constexpr (kFormat == kHalf) return half_to_float((u16)code);
    if constexpr (kFormat == kE5M2) return half_to_float((u16)(code << 8));  // the upper byte of a float16
    // e4m3 is a float16 whose exponent is 8 less.
    return half_to_float((u16)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * 256.0f;
}

__device__ __forceinline__ u32 pack_bytes(u32 a, u32 b, u32 c, u32 d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ __forceinline__ u32 pack_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
