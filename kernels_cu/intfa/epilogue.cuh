// From sums to answers: what every attention kernel does once per row and once per element.
#pragma once
#include "config.cuh"
#include "params.cuh"
#include "ptx_half.cuh"

// What a row needs in the epilogue. `empty` rows saw no key: output 0, lse -inf.
struct RowEnd {
    float inverse;  // 1 / l
    float mark;     // 0 or NaN
    bool empty;
};

// `mark` is 0 or NaN; c = scale_log2 s_q of the row; k_scale_max of its KV head.
__device__ __forceinline__ RowEnd end_row(const AttentionParams& p, float mark, float k_scale_max, float c,
                                          float m, float l) {
    RowEnd row;
    row.empty = m == -INTFA_INF;
    row.inverse = __frcp_rn(row.empty ? 1.0f : l);
    row.mark = mark;
    // Scores that could leave float32 make the row NaN; no score of another row can be infinite.
    float reach = __fmul_rn(__fmul_rn(c, k_scale_max), p.score_reach);
    if (!(reach < INTFA_INF)) row.mark = INTFA_NAN;
    // So does a maximum that float32 has in steps of 1/2: P would lose its levels to the rounding.
    if (!row.empty && !(fabsf(m) <= kMaxScore)) row.mark = INTFA_NAN;
    return row;
}

// The same from device memory: row_index = (b Hq + h) q_pad + row, kv_index = b Hkv + kv head.
__device__ __forceinline__ RowEnd end_row(const AttentionParams& p, s64 row_index, s64 kv_index, float c,
                                          float m, float l) {
    return end_row(p, p.q_mark[row_index] + p.kv_mark[kv_index], p.k_scale_max[kv_index], c, m, l);
}

__device__ __forceinline__ float end_element(const RowEnd& row, float o, float v_scale, float v_mean) {
    float value = __fmul_rn(__fmul_rn(o, row.inverse), v_scale) + v_mean;
    return (row.empty ? 0.0f : value) + row.mark;
}

__device__ __forceinline__ float end_lse(const AttentionParams& p, const RowEnd& row, s64 row_index, float m,
                                         float l) {
    float lse = (m + log2f(l) - p.log2_top) * kLn2;
    if (p.q_kmean) lse += p.scale * p.q_kmean[row_index];
    return (row.empty ? -INTFA_INF : lse) + row.mark;
}

// Two values in the output's 16 bits.
__device__ __forceinline__ u32 pair_bits(const AttentionParams& p, float2 x) {
    return p.out_dtype == kFloat16 ? half2_bits(x.x, x.y) : bfloat2_bits(x.x, x.y);
}

__device__ __forceinline__ void store_element(const AttentionParams& p, s64 offset, float value) {
    if (p.out_dtype <= kBFloat16)
        ((u16*)p.out)[offset] = (u16)pair_bits(p, make_float2(value, 0.0f));
    else if (p.out_dtype == kFloat32)
        ((float*)p.out)[offset] = value;
    else
        ((double*)p.out)[offset] = value;
}

// Two neighbouring channels of a row; one 4-byte store where the output allows it.
__device__ __forceinline__ void store_pair(const AttentionParams& p, s64 offset, bool both, float x,
                                           float y) {
    if (p.out_dtype <= kBFloat16 && both && p.out_stride[3] == 1 &&
        (((u64)p.out >> 1) + (u64)offset) % 2 == 0) {
        *(u32*)((u16*)p.out + offset) = pair_bits(p, make_float2(x, y));
    } else {
        store_element(p, offset, x);
        if (both) store_element(p, offset + p.out_stride[3], y);
    }
}

// Whether all kD channels of a row are there in 16 bits each, and runs of them may be stored at once.
template <s32 kRun>
__device__ __forceinline__ bool stores_runs(const AttentionParams& p) {
    const u64 places = (u64)p.out >> 1 | p.out_stride[0] | p.out_stride[1] | p.out_stride[2];
    return p.out_dtype <= kBFloat16 && p.out_stride[3] == 1 && p.head_dim == kD && places % kRun == 0;
}

__device__ __forceinline__ void store_pairs(u16* out, const u32 (&pairs)[1]) { *(u32*)out = pairs[0]; }
__device__ __forceinline__ void store_pairs(u16* out, const u32 (&pairs)[4]) {
    *(uint4*)out = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
