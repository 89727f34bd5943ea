// 2^x, and P in its storage format.
#pragma once
#include "config.cuh"

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp (PTX ISA, ex2.approx.ftz.f32)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats to a pair of float16, nearest even; the first in the low half.
__device__ __forceinline__ u32 half2_bits(float low, float high) {
    u32 h;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
#else
    asm("{.reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
        : "=r"(h)
        : "f"(low), "f"(high));
#endif
    return h;
}

// Four P in [0, 255] to four bytes: float16, then + 1024 rounds to an integer, nearest even, that fills the low byte.
__device__ __forceinline__ u32 pack_bytes(float p0, float p1, float p2, float p3) {
    u32 a, b;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(a) : "r"(half2_bits(p0, p1)), "r"(0x64006400u));
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(b) : "r"(half2_bits(p2, p3)), "r"(0x64006400u));
    return __byte_perm(a, b, 0x6420);
}

// Four P to four 8-bit floats.
template <s32 kFormat>
__device__ __forceinline__ u32 pack_float8(float p0, float p1, float p2, float p3) {
    u32 packed = 0;
#if __CUDA_ARCH__ >= 890
    u16 low, high;
    if constexpr (kFormat == kE4M3) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(p1), "f"(p0));
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(p3), "f"(p2));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(p1), "f"(p0));
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(p3), "f"(p2));
    }
    packed = (u32)high << 16 | low;
#endif
    return packed;
}

__device__ __forceinline__ u32 sum_bytes(u32 packed, u32 sum) { return __dp4a(packed, 0x01010101u, sum); }

// Unpack two 8-bit floats or halves again, for the sum of rounded P.
template <s32 kFormat>
__device__ __forceinline__ float sum_pair(u32 bits) {
    u32 h = bits;
#if __CUDA_ARCH__ >= 890
    if constexpr (kFormat == kE4M3) asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h) : "h"((u16)bits));
    if constexpr (kFormat == kE5M2) asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(h) : "h"((u16)bits));
#endif
    float low, high;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high)
        : "r"(h));
    return low + high;
}
