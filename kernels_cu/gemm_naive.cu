// Computes    out = A B on int8, one element a thread: int32, or scaled by row and column with a bias. Any GPU.
// Grid/Block  1-D grid of blocks of 256 threads: 16 rows by 16 columns each.
// Inputs      GemmParams: a, b by any strides, scales, bias.
// Outputs     out.
// Tiles       16 x 16.
// Fragments   a thread owns one element.
// Shared map  none: neighbours find each other's bytes in the L1 cache.
// Pipeline    none.
// Sync        none.
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       threads beyond the output leave.
// Limits      none.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/gemm_epilogue.cuh"

extern "C" __global__ void __launch_bounds__(256) gemm_naive(const GemmParams p) {
    const s32 columns = tiles_of(p.n, 16);
    const s32 row = blockIdx.x / columns * 16 + threadIdx.x / 16;
    const s32 column = blockIdx.x % columns * 16 + threadIdx.x % 16;
    if (row >= p.m || column >= p.n) return;
    const s8* a = (const s8*)p.a + row * p.a_stride[0];
    const s8* b = (const s8*)p.b + column * p.b_stride[0];
    s32 sum = 0;
    for (s32 k = 0; k < p.k; ++k) sum += a[k * p.a_stride[1]] * b[k * p.b_stride[1]];
    store_one(p, end_of_row(p, row), column, sum, end_of_column(p, column));
}
