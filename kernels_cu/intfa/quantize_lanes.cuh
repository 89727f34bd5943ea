// How a tile of 64 rows lies in a thread block of the row kernel, and what its lanes do together.
//
// kLanes lanes hold a row, lane l its channels [8l, 8l + 8), so that a float16 row is read 16 bytes a lane. A thread has
// four rows, first + 16 j. What is one number per row - maximum, scale, mark - is kept once: lane l has it of row l % 4.
#pragma once
#include "quantize_config.cuh"

constexpr s32 kLanes = kD <= 32 ? 4 : kD <= 64 ? 8 : kD <= 128 ? 16 : 32;
constexpr s32 kRowThreads = 16 * kLanes;
constexpr u32 kAllLanes = 0xffffffffu;

struct Larger {
    __device__ __forceinline__ static float of(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
    __device__ __forceinline__ static float of(float a, float b) { return __fadd_rn(a, b); }
};

// Combines each of a thread's four rows over the row's lanes, neighbours first; lane l is left with row l % 4. In the
// first two steps a lane gives away the rows that it will not keep: 3 + log2(kLanes / 4) shuffles, not 4 log2(kLanes).
template <class Op>
__device__ __forceinline__ float combine_rows(const float (&row)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    const float low = Op::of(odd ? row[1] : row[0], __shfl_xor_sync(kAllLanes, odd ? row[0] : row[1], 1));
    const float high = Op::of(odd ? row[3] : row[2], __shfl_xor_sync(kAllLanes, odd ? row[2] : row[3], 1));
    float mine = Op::of(upper ? high : low, __shfl_xor_sync(kAllLanes, upper ? low : high, 2));
#pragma unroll
    for (s32 step = 4; step < kLanes; step *= 2) mine = Op::of(mine, __shfl_xor_sync(kAllLanes, mine, step));
    return mine;
}

// Which of a thread's rows any of the row's lanes has marked: bit j for row j.
__device__ __forceinline__ u32 any_lane(u32 rows) {
    if (!__any_sync(kAllLanes, rows)) return 0;
#pragma unroll
    for (s32 step = 1; step < kLanes; step *= 2) rows |= __shfl_xor_sync(kAllLanes, rows, step);
    return rows;
}

// From the lane that keeps row j of this thread.
template <class T>
__device__ __forceinline__ T of_row(T kept, s32 j) {
    return __shfl_sync(kAllLanes, kept, (threadIdx.x & 28) | j);
}

__device__ constexpr float rotation_norm(s32 block) {  // block^-1/2
    return block == 1 ? 1.0f : block == 2 ? 0.70710678118654752f : 0.5f * rotation_norm(block / 4);
}

// Hadamard butterfly over blocks of kRotate channels (cupy_intfa/quantize/rotate.py), partners at distance 1, 2, 4, ...
__device__ __forceinline__ void rotate(float (&x)[8]) {
#pragma unroll
    for (s32 step = 1; step < 8 && step < kRotate; step *= 2) {
#pragma unroll
        for (s32 i = 0; i < 8; ++i) {
            if (i & step) continue;
            const float low = x[i], high = x[i + step];
            x[i] = __fadd_rn(low, high);
            x[i + step] = __fsub_rn(low, high);
        }
    }
#pragma unroll
    for (s32 step = 8; step < kRotate; step *= 2) {
        const bool upper = threadIdx.x & (step / 8);
#pragma unroll
        for (s32 i = 0; i < 8; ++i) {
            const float other = __shfl_xor_sync(kAllLanes, x[i], step / 8);
            x[i] = __fadd_rn(other, upper ? -x[i] : x[i]);
        }
    }
    if constexpr (kRotate > 1) {
#pragma unroll
        for (s32 i = 0; i < 8; ++i) x[i] = __fmul_rn(x[i], rotation_norm(kRotate));
    }
}
