// Computes    out = A B on int8 by mma.sync, whose fragments are known: no detour for the sums. sm_75 on.
// Grid/Block  1-D grid, a block of kWarpsM x kWarpsN warps per tile in the order of gemm_params.cuh.
// Inputs      GemmParams: a and b by rows of depth, at multiples of 16 bytes.
// Outputs     out.
// Tiles       kBm x kBn, kBk bytes of depth; of a warp up to 64 x 64, so that shared memory feeds the tensor cores:
//             4 KB of fragments for 32 instructions.
// Fragments   m16n8k32 (ptx_mma.cuh): lane 4g + t owns rows g, g + 8 and columns 2t, 2t + 1 of each 8.
// Shared map  kRing x { A [kBm][kBk], B [kBn][kBk] }, rows swizzled (swizzle.cuh): neither ldmatrix nor a copy meets a
//             bank twice.
// Pipeline    step i: copies of i + kRing - 1 | ldmatrix and products of i, 32 bytes of depth at a time.
// Sync        one __syncthreads per step.
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       units beyond a matrix are zero; elements beyond the output are not stored.
// Limits      k a multiple of 16.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/gemm_epilogue.cuh"
#include "intfa/gemm_stages.cuh"
#include "intfa/ptx_mma.cuh"
#include "intfa/swizzle.cuh"

constexpr s32 kTilesM = kBm / kWarpsM / 16, kTilesN = kBn / kWarpsN / 8;
static_assert(kBm % (16 * kWarpsM) == 0 && kBn % (16 * kWarpsN) == 0,
              "INTFA_WARPS: whole tiles, pairs of them along the columns");
#ifdef INTFA_SHARED_BYTES
static_assert(kRingBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

extern "C" __global__ void __launch_bounds__(kBlock) gemm_sm80(const __grid_constant__ GemmParams p) {
    extern __shared__ __align__(128) u8 shared_bytes[];
    const u32 shared = shared_address(shared_bytes);
    const Tile tile = tile_of<kBm>(p, blockIdx.x);
    const s32 lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
    const s32 first_row = warp / kWarpsN * 16 * kTilesM, first_column = warp % kWarpsN * 8 * kTilesN;
    // The rows that the lane names to ldmatrix: of A two units of 8 rows after 8 rows, of B both units of 8 columns.
    const u32 a_at = shared + first_row * kBk + swizzled<kBk>(lane % 16, lane / 16);
    const u32 b_at =
        shared + kPartA + first_column * kBk + swizzled<kBk>(lane % 8 + lane / 16 * 8, lane / 8 % 2);

    s32 sum[kTilesM][kTilesN][4];
#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
        for (s32 n = 0; n < kTilesN; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) sum[m][n][e] = 0;

    const auto place = [](s32 row, s32 unit) { return swizzled<kBk>(row, unit); };
    walk_depth(
        p.k,
        [&](u32 stage, s32 k) {
            fill_rows<kBm>(shared + stage, p.a, p.a_stride[0], tile.row, p.m, k, p.k, place);
            fill_rows<kBn>(shared + stage + kPartA, p.b, p.b_stride[0], tile.column, p.n, k, p.k, place);
        },
        [&](u32 stage) {
#pragma unroll
            for (s32 pair = 0; pair < kUnits / 2; ++pair) {
                u32 a[kTilesM][4], b[kTilesN / 2][4];
#pragma unroll
                for (s32 m = 0; m < kTilesM; ++m)
                    load_matrices(a[m], swizzled_step<kBk>(a_at + stage, 2 * m, pair));
#pragma unroll
                for (s32 n = 0; n < kTilesN / 2; ++n)
                    load_matrices(b[n], swizzled_step<kBk>(b_at + stage, 2 * n, pair));
#pragma unroll
                for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
                    for (s32 n = 0; n < kTilesN; ++n)
                        mma_s8(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        });

#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
        store_tiles(p, sum[m], tile.row + first_row + 16 * m, tile.column + first_column);
}
