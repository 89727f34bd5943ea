// Storage formats by bit arithmetic, for kernels that do without the chip's conversions: codes to floats, and P rounded
// to its format.
#pragma once
#include "config.cuh"
#include "ptx_math.cuh"

// Element `i` of an array of codes.
template <s32 kFormat>
__device__ __forceinline__ float decode(const void* codes, s64 i) {
    if constexpr (kFormat == kInt8) return (float)((const s8*)codes)[i];
    if constexpr (kFormat == kHalf) return half_to_float(((const u16*)codes)[i]);
    const u32 bits = ((const u8*)codes)[i];
    // e5m2 is the upper byte of a float16; e4m3 is a float16 whose exponent is 8 less (bias 7 for 15).
    if constexpr (kFormat == kE5M2) return half_to_float((u16)(bits << 8));
    return half_to_float((u16)((bits & 0x80u) << 8 | (bits & 0x7fu) << 7)) * 256.0f;
}

// Round a float >= 0 to kFraction bits after the leading one, half to even; below the smallest normal number of the
// format, to its fixed-point grid.
template <s32 kFraction>
__device__ __forceinline__ float round_to_fraction(float x, float smallest_normal) {
    constexpr s32 kDropped = 23 - kFraction;
    const float magic = smallest_normal * (float)(1 << kDropped);  // 2^23 quanta of the grid
    if (x < smallest_normal) return __fsub_rn(__fadd_rn(x, magic), magic);
    const u32 bits = __float_as_uint(x), odd = bits >> kDropped & 1;
    return __uint_as_float((bits + odd + (1u << (kDropped - 1)) - 1) & ~0u << kDropped);
}

// P in its format, as a float: integers by way of float16, as the packed instructions of the other kernels round.
__device__ __forceinline__ float round_p(float p) {
    if constexpr (kPv == kE4M3) return round_to_fraction<3>(p, 0x1p-6f);
    if constexpr (kPv == kE5M2) return round_to_fraction<2>(p, 0x1p-14f);
    const float half = round_to_fraction<10>(p, 0x1p-14f);
    return kPv == kInt8 ? rintf(half) : half;
}
