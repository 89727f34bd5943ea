// What every GEMM kernel is given: C (m, n) of A (m, k) and B, taken as its columns: n rows of k bytes.
#pragma once
#include "gemm_config.cuh"

struct GemmParams {  // cupy_intfa/gemm_plan.py packs it
    const u8* a;
    const u8* b;
    void* out;             // (m, n), row-major without gaps
    const float* scale_a;  // null: 1
    const float* scale_b;
    const float* bias;  // null: none
    s64 a_stride[2];    // bytes between rows, and between neighbours of a row
    s64 b_stride[2];    // bytes between columns of B, and between neighbours of a column
    s32 m, n, k;
    s32 scale_a_step;  // 1: a scale per row; 0: one for all
    s32 scale_b_step;  // 1: a scale per column
    s32 raster;        // tiles of rows that are walked together
};
#ifdef INTFA_PARAMS_BYTES
static_assert(sizeof(GemmParams) == INTFA_PARAMS_BYTES, "cupy_intfa packs another GemmParams");
#endif

// Where a tile begins. Bands of `raster` tiles of rows are walked column by column, so that the blocks which run at a
// time read few rows of A and few columns of B, and find them in the L2 cache.
struct Tile {
    s32 row, column;
};

__device__ __forceinline__ constexpr s32 tiles_of(s32 length, s32 tile) { return (length + tile - 1) / tile; }

__device__ __forceinline__ Tile tile_of(const GemmParams& p, s32 index) {
    const s32 rows = tiles_of(p.m, kBm), columns = tiles_of(p.n, kBn);
    const s32 band = index / (p.raster * columns), first = band * p.raster;
    const s32 height = min(p.raster, rows - first), rest = index - first * columns;
    return {(first + rest % height) * kBm, rest / height * kBn};
}
