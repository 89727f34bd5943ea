// Integer sums as floats without a conversion, and maxima that can be subtracted.
#pragma once
#include "config.cuh"

// An integer sum that starts at 0x4B400000 reads, as a float, 12582912 + S while |S| < 2^22: one FADD, and no conversion on
// the slow unit, gives a score (D <= 256), and one FMA multiplies O (products_wgmma.cuh).
constexpr s32 kScoreBias = 0x4B400000;
constexpr float kScoreBiasFloat = 12582912.0f;
constexpr u32 kMinusInfinity = 0xff800000u;  // below every biased score, as a float and as an integer

__device__ __forceinline__ float unbiased(s32 bits) { return __int_as_float(bits) - kScoreBiasFloat; }

// -inf, where no key was seen, becomes 0.
__device__ __forceinline__ float finite(float m) { return m == -INTFA_INF ? 0.0f : m; }
