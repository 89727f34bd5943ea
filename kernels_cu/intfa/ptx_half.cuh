// Floats to float16 and bfloat16, nearest even, and back: so that the kernels need no headers of the CUDA toolkit.
#pragma once
#include "types.cuh"

__device__ __forceinline__ float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ float2 floats_of(u32 half2) {
    float2 f;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(f.x), "=f"(f.y)
        : "r"(half2));
    return f;
}
__device__ __forceinline__ float bfloat_to_float(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ __forceinline__ u16 half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ u16 bfloat_bits(float x) {
    u16 bits;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    const u32 word = __float_as_uint(x);
    bits = (u16)(x == x ? (word + 0x7fffu + (word >> 16 & 1u)) >> 16 : 0x7fffu);
#endif
    return bits;
}

// Two of them in a word, the first in its low half.
__device__ __forceinline__ u32 half2_bits(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return half_bits(low) | (u32)half_bits(high) << 16;
#endif
}
__device__ __forceinline__ u32 bfloat2_bits(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return bfloat_bits(low) | (u32)bfloat_bits(high) << 16;
#endif
}
