// An integer sum becomes an element of the output: times the row's scale, times the column's, plus the column's bias.
//
// Every step is rounded by itself to float32 and the last one to the output, so that NumPy has the same bits.
#pragma once
#include "gemm_params.cuh"
#include "ptx_half.cuh"

struct RowEnd {
    float scale;
    s64 offset;  // of the row, in elements
};

__device__ __forceinline__ RowEnd end_of_row(const GemmParams& p, s32 row) {
    const float scale = kOut != kInt32 && p.scale_a ? p.scale_a[row * p.scale_a_step] : 1.0f;
    return {scale, (s64)row * p.n};
}

struct ColumnEnd {
    float scale, bias;
};

__device__ __forceinline__ ColumnEnd end_of_column(const GemmParams& p, s32 column) {
    if (kOut == kInt32 || column >= p.n) return {1.0f, 0.0f};
    return {p.scale_b ? p.scale_b[column * p.scale_b_step] : 1.0f, p.bias ? p.bias[column] : 0.0f};
}

__device__ __forceinline__ float scaled(const GemmParams& p, s32 sum, const RowEnd& row,
                                        const ColumnEnd& column) {
    const float x = __fmul_rn(__fmul_rn(__int2float_rn(sum), row.scale), column.scale);
    return p.bias ? __fadd_rn(x, column.bias) : x;
}

__device__ __forceinline__ void store_one(const GemmParams& p, const RowEnd& row, s32 column, s32 sum,
                                          const ColumnEnd& end) {
    const s64 i = row.offset + column;
    if constexpr (kOut == kInt32) {
        ((s32*)p.out)[i] = sum;
    } else {
        const float x = scaled(p, sum, row, end);
        if constexpr (kOut == kFloat32) ((float*)p.out)[i] = x;
        if constexpr (kOut == kFloat16) ((u16*)p.out)[i] = half_bits(x);
        if constexpr (kOut == kBFloat16) ((u16*)p.out)[i] = bfloat_bits(x);
    }
}

// Two neighbours, the first in an even column. In a matrix of an odd width every other row begins at an odd element.
__device__ __forceinline__ void store_two(const GemmParams& p, const RowEnd& row, s32 column, s32 x, s32 y,
                                          const ColumnEnd (&end)[2]) {
    if (column >= p.n) return;
    if (p.n % 2) {
        store_one(p, row, column, x, end[0]);
        if (column + 1 < p.n) store_one(p, row, column + 1, y, end[1]);
        return;
    }
    const s64 pair = (row.offset + column) / 2;
    if constexpr (kOut == kInt32) {
        ((int2*)p.out)[pair] = make_int2(x, y);
    } else {
        const float2 v = make_float2(scaled(p, x, row, end[0]), scaled(p, y, row, end[1]));
        if constexpr (kOut == kFloat32) ((float2*)p.out)[pair] = v;
        if constexpr (kOut == kFloat16) ((u32*)p.out)[pair] = half2_bits(v.x, v.y);
        if constexpr (kOut == kBFloat16) ((u32*)p.out)[pair] = bfloat2_bits(v.x, v.y);
    }
}

// The accumulators of m16n8 tiles side by side (ptx_mma.cuh): lane 4g + t has rows g, g + 8 and columns 2t, 2t + 1.
template <s32 kTiles>
__device__ __forceinline__ void store_tiles(const GemmParams& p, const s32 (&d)[kTiles][4], s32 first_row,
                                            s32 first_column) {
    const s32 lane = threadIdx.x % 32, top = first_row + lane / 4, left = first_column + lane % 4 * 2;
    const RowEnd rows[2] = {end_of_row(p, min(top, p.m - 1)), end_of_row(p, min(top + 8, p.m - 1))};
#pragma unroll
    for (s32 n = 0; n < kTiles; ++n) {
        const s32 column = left + 8 * n;
        const ColumnEnd ends[2] = {end_of_column(p, column), end_of_column(p, column + 1)};
#pragma unroll
        for (s32 r = 0; r < 2; ++r)
            if (top + 8 * r < p.m) store_two(p, rows[r], column, d[n][2 * r], d[n][2 * r + 1], ends);
    }
}
