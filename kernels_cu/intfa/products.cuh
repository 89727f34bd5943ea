// The two products of a step, S = Q K^T and O += P V, on swizzled tiles in shared memory.
#pragma once
#include "online_softmax.cuh"
#include "rescale.cuh"
#include "stages.cuh"

constexpr s32 kKSteps = kQkRow / 32;  // depth of an MMA: 32 bytes
constexpr s32 kNd = kD / 8;           // 8-channel MMA tiles of O

// The accumulators of O, [kM][kNd][4]: integers, or the bits of floats where kFloatO.
typedef s32 Output[kM][kNd][4];

__device__ __forceinline__ float (&as_floats(s32 (&x)[4]))[4] { return (float (&)[4])x; }

// Q as A fragments: all of a warp's rows, or those of one depth step where Q stays in shared memory.
typedef u32 Queries[kM][kQShared ? 1 : kKSteps][4];

// Straight from device memory: four lanes read 16 bytes in a row, once per block.
__device__ __forceinline__ void load_queries(Queries& q, const u8* rows, s32 g, s32 t) {
    if constexpr (!kQShared)
#pragma unroll
        for (s32 m = 0; m < kM; ++m)
#pragma unroll
            for (s32 k = 0; k < kKSteps; ++k)
#pragma unroll
                for (s32 a = 0; a < 4; ++a)
                    q[m][k][a] =
                        *(const u32*)(rows + (16 * m + g + a % 2 * 8) * kQkRow + 32 * k + a / 2 * 16 + 4 * t);
}

// S = Q K^T of a step. B fragments: matrices (n, first 16 bytes), (n, second), (n + 1, first), (n + 1, second).
__device__ __forceinline__ void first_product(s32 (&s)[kM][kNs][4], Queries& q, u32 q_rows, u32 k) {
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 n = 0; n < kNs; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) s[m][n][e] = kQk == kInt8 ? kScoreBias : 0;
#pragma unroll
    for (s32 ks = 0; ks < kKSteps; ++ks) {
        if constexpr (kQShared) {
#pragma unroll
            for (s32 m = 0; m < kM; ++m) load_matrices(q[m][0], swizzled_step<kQkRow>(q_rows, 2 * m, ks));
        }
#pragma unroll
        for (s32 n = 0; n < kNs; n += 2) {
            u32 b[4];
            load_matrices(b, swizzled_step<kQkRow>(k, n, ks));
#pragma unroll
            for (s32 m = 0; m < kM; ++m) {
                const u32(&a)[4] = q[m][kQShared ? 0 : ks];
                if constexpr (kQk == kInt8) {
                    mma_s8(s[m][n], a, b[0], b[1]);
                    mma_s8(s[m][n + 1], a, b[2], b[3]);
                } else {
                    mma_float<kQk>(as_floats(s[m][n]), a, b[0], b[1]);
                    mma_float<kQk>(as_floats(s[m][n + 1]), a, b[2], b[3]);
                }
            }
        }
    }
}

// B fragments of V for channels 8n … 8n + 15 and depth step ks of the tile.
__device__ __forceinline__ void load_values(u32 (&b)[4], u32 v, s32 n, s32 ks) {
    if constexpr (kPv == kHalf)
        load_matrices_transposed(b, swizzled_step<kVRow>(v, 2 * ks, n / 2));
    else
        load_matrices(b, swizzled_step<kVRow>(v, ks / 2 * kNd + n, ks % 2));
    if constexpr (kVOffset)
#pragma unroll
        for (s32 i = 0; i < 4; ++i) b[i] ^= kVSigns;
}

// O += P V of a step straight into the accumulators; `first` is its first depth step in the tile.
__device__ __forceinline__ void second_product(Output& o, const u32 (&p)[kM][kPSteps][4], u32 v, s32 first) {
#pragma unroll
    for (s32 ks = 0; ks < kPSteps; ++ks)
#pragma unroll
        for (s32 n = 0; n < kNd; n += 2) {
            u32 b[4];
            load_values(b, v, n, first + ks);
#pragma unroll
            for (s32 m = 0; m < kM; ++m) {
                if constexpr (kIntegerPv) {
                    mma_u8(o[m][n], p[m][ks], b[0], b[1]);
                    mma_u8(o[m][n + 1], p[m][ks], b[2], b[3]);
                } else {
                    mma_float<kPv>(as_floats(o[m][n]), p[m][ks], b[0], b[1]);
                    mma_float<kPv>(as_floats(o[m][n + 1]), p[m][ks], b[2], b[3]);
                }
            }
        }
}

// O += w s_v (P V) in float32, some channels at a time: the tile's integers need few registers and start at the bias.
constexpr s32 kChunk = kD < 192 ? 4 : 2;  // 8-channel MMA tiles

__device__ __forceinline__ void second_product_scaled(Output& o, const u32 (&p)[kM][kPSteps][4], u32 stage,
                                                      const Places& at, const float (&w)[kM][2], s32 first,
                                                      s32 t) {
    const u32 v_scales =
        stage + at.k_scale + (kStageVScale - kStageKScale) + (kKToken ? 0 : 4 * t);  // + 8t in all
#pragma unroll
    for (s32 chunk = 0; chunk < kNd; chunk += kChunk) {
        s32 i[kM][kChunk][4];
#pragma unroll
        for (s32 m = 0; m < kM; ++m)
#pragma unroll
            for (s32 e = 0; e < 4 * kChunk; ++e) i[m][e / 4][e % 4] = kScoreBias;
#pragma unroll
        for (s32 ks = 0; ks < kPSteps; ++ks)
#pragma unroll
            for (s32 n = 0; n < kChunk; n += 2) {
                u32 b[4];
                load_values(b, stage + at.v, chunk + n, first + ks);
#pragma unroll
                for (s32 m = 0; m < kM; ++m) {
                    mma_u8(i[m][n], p[m][ks], b[0], b[1]);
                    mma_u8(i[m][n + 1], p[m][ks], b[2], b[3]);
                }
            }
#pragma unroll
        for (s32 n = 0; n < kChunk; ++n) {
            float2 v_scale = make_float2(1.0f, 1.0f);  // of channels 8n + 2t and 8n + 2t + 1
            if constexpr (kVBlock) v_scale = load_float2(v_scales + 32 * (chunk + n));
#pragma unroll
            for (s32 m = 0; m < kM; ++m)
#pragma unroll
                for (s32 e = 0; e < 4; ++e) {
                    float value = __int_as_float(i[m][n][e]) - kScoreBiasFloat;
                    float& sum = as_floats(o[m][chunk + n])[e];
                    sum = fmaf(value, w[m][e / 2] * (e % 2 ? v_scale.y : v_scale.x), sum);
                }
        }
    }
}

// The maximum of this lane's row r has grown: bring O to the new reference. `sum` is the row's so far.
__device__ __forceinline__ void rescale(s32 (&o)[kNd][4], s32 r, float alpha, float sum) {
    const Rescale by = rescale_by(alpha, sum);
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 2 * r; e < 2 * r + 2; ++e) {
            if constexpr (kFloatO)
                as_floats(o[n])[e] *= alpha;
            else
                o[n][e] = rescaled(o[n][e], by);
        }
}
