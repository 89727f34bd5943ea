// 2^x, and P in its storage format.
#pragma once
#include "config.cuh"
#include "ptx_half.cuh"

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp (PTX ISA, ex2.approx.ftz.f32)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 fma_half2(u32 x, u32 y, u32 z) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(y), "r"(z));
    return d;
}
__device__ __forceinline__ u32 mul_half2(u32 x, u32 y) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(y));
    return d;
}

// x y + z, also of subnormal numbers, whatever the compiler was told about them.
__device__ __forceinline__ float fma_exact(float x, float y, float z) {
    float d;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(x), "f"(y), "f"(z));
    return d;
}

// x y + z in [0, 1]; 0 where it is not a number.
__device__ __forceinline__ float fma_saturated(float x, float y, float z) {
    float d;
    asm("fma.rn.ftz.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(x), "f"(y), "f"(z));
    return d;
}

// 255 2^(16 (u - 1)) of two u in [0, 1] in float16, without the slow unit: the fourth power of a cubic that is 0 at 0 and
// gives 255 at 1. Fitted to the error of the output, of which what P is far below a level is a part: an exact row sum
// adds it.
constexpr float kCubicReach = 16.0f;  // octaves
__device__ __forceinline__ u32 exp2_cubic(u32 u) {
    u32 w = fma_half2(u, 0x459d459du, 0xc47bc47bu);
    w = fma_half2(w, u, 0x41ba41bau);
    w = mul_half2(w, u);
    w = mul_half2(w, w);
    return mul_half2(w, w);
}

__device__ __forceinline__ u32 add_half2(u32 x, u32 y) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(x), "r"(y));
    return sum;
}

// Four float16 P in [0, 255] to four bytes: + 1024 rounds to an integer, nearest even, that fills the low byte.
__device__ __forceinline__ u32 round_to_bytes(u32 p01, u32 p23) {
    return __byte_perm(add_half2(p01, 0x64006400u), add_half2(p23, 0x64006400u), 0x6420);
}

__device__ __forceinline__ u32 pack_bytes(float p0, float p1, float p2, float p3) {
    return round_to_bytes(half2_bits(p0, p1), half2_bits(p2, p3));
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
