// The two products of a tile by warpgroup: S = Q K^T and O += P V on tiles that the tensor memory accelerator brought.
#pragma once
#include "pipeline.cuh"
#include "ptx_wgmma.cuh"
#include "rescale.cuh"
#include "softmax_wgmma.cuh"
#include "swizzle.cuh"

constexpr s32 kDepth = kD / 32;  // instructions deep, Q K^T
constexpr s32 kNd = kD / 8;      // 8-channel MMA tiles of O
constexpr s32 kOut = kD / 2;     // registers of O

typedef s32 Output[kNd][4];  // the accumulators of O: integers, or the bits of floats where kFloatO
typedef u32 Queries[kQShared ? 1 : kDepth][4];

__device__ __forceinline__ u32 chunk_of(s32 depth, u32 rows) {
    return depth * 32 / kQkChunk * rows * kQkChunk + depth * 32 % kQkChunk;
}

// This warp's 16 rows of Q as A fragments, out of the swizzled tile.
__device__ __forceinline__ void load_queries(Queries& q, u32 tile, s32 warp) {
    if constexpr (!kQShared) {
        const u32 lane = threadIdx.x % 32;
        const u32 at = tile + warp * 16 * kQkChunk + swizzled<kQkChunk>(lane % 16, lane / 16);
#pragma unroll
        for (s32 k = 0; k < kDepth; ++k) {
            constexpr s32 kPairs = kQkChunk / 32;
            load_matrices(q[k], swizzled_step<kQkChunk>(at, 0, k % kPairs) + k / kPairs * kBr * kQkChunk);
        }
    }
}

// S = Q K^T of a tile, in flight when it returns.
__device__ __forceinline__ void start_scores(Scores& s, const Queries& q, u64 q_tile, u64 k_tile) {
    s32(&d)[4 * kNs] = (s32(&)[4 * kNs]) s;
    wgmma_fence();
#pragma unroll
    for (s32 k = 0; k < kDepth; ++k) {
        const u64 b = moved(k_tile, chunk_of(k, kBc));
        if constexpr (kQShared)
            wgmma_s8(d, moved(q_tile, chunk_of(k, kBr)), b, k > 0);
        else
            wgmma_s8(d, q[k], b, k > 0);
    }
}

// The first of the two channels that a lane holds of MMA tile n of O. The copies of V in bytes bring its rows so that a
// lane has eight channels in a row, and stores 16 bytes.
__device__ __forceinline__ s32 channel_of(s32 n, s32 t) {
    return kPv == kHalf ? 8 * n + 2 * t : n / 4 * 32 + 8 * t + n % 4 * 2;
}

// V of 32 keys in a tile, where P V takes it in bytes.
__device__ __forceinline__ u64 values_at(u64 v_tile, s32 k) {
    return moved(v_tile, kVKeys == 64 ? k / 2 * kD * 64 + k % 2 * 32 : k * kD * 32);
}

// O += P V of a tile, in flight when it returns; behind a fence.
__device__ __forceinline__ void start_output(Output& o, const Probabilities& p, u64 v_tile) {
#pragma unroll
    for (s32 k = 0; k < kPSteps; ++k) {
        if constexpr (kPv == kHalf)
            wgmma_f16((s32(&)[kOut])o, p[k], moved(v_tile, k * 16 * kVChunk), true);
        else
            wgmma_u8((s32(&)[kOut])o, p[k], values_at(v_tile, k), true);
    }
}

// O in floats takes integer products in parts, of as many channels as registers are left for.
constexpr s32 kPartChannels = kD == 64 || (kWarps == 8 && !kKToken) ? 64 : 32;
constexpr s32 kParts = kIntegerPv && kFloatO ? kD / kPartChannels : 0;  // 0: O is the accumulator
typedef s32 Part[kPartChannels / 8][4];

__device__ __forceinline__ void start_part_of_output(Part& d, const Probabilities& p, u64 v_tile) {
#pragma unroll
    for (s32 k = 0; k < kPSteps; ++k)
        wgmma_u8((s32(&)[kPartChannels / 2]) d, p[k], values_at(v_tile, k), k > 0);
}

// O += w s_v P V of part i, or w P V where s_v waits for the end; v_scales are those of the lane's first channel.
__device__ __forceinline__ void add_part(Output& o, const Part& d, const float (&w)[2], u32 v_scales, s32 i) {
#pragma unroll
    for (s32 n = 0; n < kPartChannels / 8; ++n) {
        const s32 tile = i * (kPartChannels / 8) + n;
        const float2 v_scale =
            kVBlock ? load_float2(v_scales + 4 * channel_of(tile, 0)) : make_float2(1.0f, 1.0f);
#pragma unroll
        for (s32 e = 0; e < 4; ++e) {
            s32& x = o[tile][e];
            x = __float_as_int(
                fmaf((float)d[n][e], w[e / 2] * (e % 2 ? v_scale.y : v_scale.x), __int_as_float(x)));
        }
    }
}

// Registers that a product in flight has written: nothing that reads them moves above this.
template <s32 kCount>
__device__ __forceinline__ void settle(s32 (&x)[kCount][4]) {
#pragma unroll
    for (s32 i = 0; i < kCount; ++i)
#pragma unroll
        for (s32 e = 0; e < 4; ++e) asm volatile("" : "+r"(x[i][e])::"memory");
}

// The maximum of this lane's row r has grown: bring O to the new reference. `sum` is the row's so far.
__device__ __forceinline__ void rescale(Output& o, s32 r, float alpha, float sum) {
    const Rescale by = rescale_by(alpha, sum);
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 2 * r; e < 2 * r + 2; ++e) {
            if constexpr (kFloatO)
                o[n][e] = __float_as_int(__int_as_float(o[n][e]) * alpha);
            else
                o[n][e] = rescaled(o[n][e], by);
        }
}
