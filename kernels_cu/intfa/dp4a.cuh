// The DP4A micro-kernel: a warp multiplies 16 rows by 16 n columns out of shared memory, four bytes an instruction.
//
// Lane 16 half + x owns rows 2r + half (r < 8) and columns 16n + x: an outer product of 8 rows and kN columns in
// registers. Both operands lie in 16-byte units of 16 consecutive bytes of depth, so a lane reads (8 + kN) units for
// 32 kN instructions; the rows are broadcast to 16 lanes, the columns are consecutive units and meet no bank twice.
#pragma once
#include "config.cuh"
#include "ptx_math.cuh"

constexpr s32 kLaneRows = 8;

// acc + Σ a b over four bytes of one signedness or the other; the mixed form exists in PTX alone.
__device__ __forceinline__ s32 dot_signed(u32 a, u32 b, s32 acc) { return __dp4a((s32)a, (s32)b, acc); }
__device__ __forceinline__ s32 dot_unsigned(u32 a, u32 b, s32 acc) {
    s32 d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(acc));
    return d;
}

// acc[r][kFirst + n] += rows[r kRowStep] · columns[16 n] over 16 bytes of depth.
template <bool kSigned, s32 kFirst, s32 kN, s32 kRowStep, s32 kWidth>
__device__ __forceinline__ void multiply(s32 (&acc)[kLaneRows][kWidth], const uint4* rows,
                                         const uint4* columns) {
    uint4 b[kN];
#pragma unroll
    for (s32 n = 0; n < kN; ++n) b[n] = columns[16 * n];
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        const uint4 a = rows[r * kRowStep];
        const u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (s32 w = 0; w < 4; ++w)
#pragma unroll
            for (s32 n = 0; n < kN; ++n) {
                const u32 word = w == 0 ? b[n].x : w == 1 ? b[n].y : w == 2 ? b[n].z : b[n].w;
                s32& sum = acc[r][kFirst + n];
                sum = kSigned ? dot_signed(words[w], word, sum) : dot_unsigned(words[w], word, sum);
            }
    }
}

// threadIdx.x and blockIdx.x, read anew at each call: what follows from them is cheap to work out again, and would else
// be kept in registers across the loop, where it spills.
__device__ __forceinline__ s32 thread_number() {
    s32 n;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(n));
    return n;
}
__device__ __forceinline__ s32 block_number() {
    s32 n;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(n));
    return n;
}

// Over the 16 lanes that share their rows.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (s32 lanes = 8; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (s32 lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// Four P to four bytes, as pack_bytes: before sm_70 packed float16 arithmetic runs at a 64th of the rate.
__device__ __forceinline__ u32 pack_p(float p0, float p1, float p2, float p3) {
#if __CUDA_ARCH__ >= 700
    return pack_bytes(p0, p1, p2, p3);
#else
    const u32 h[2] = {half2_bits(p0, p1), half2_bits(p2, p3)};
    u32 byte[4];
#pragma unroll
    for (s32 e = 0; e < 4; ++e) {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)(h[e / 2] >> 16 * (e % 2))));
        byte[e] = __float_as_uint(x + 12582912.0f);  // 1.5 · 2^23: nearest even, in the low bits
    }
    return __byte_perm(__byte_perm(byte[0], byte[1], 0x0040), __byte_perm(byte[2], byte[3], 0x0040), 0x5410);
#endif
}
