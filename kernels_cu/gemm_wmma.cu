// Computes    out = A B on int8 by wmma, the tensor cores' portable interface. sm_72 on.
// Grid/Block  1-D grid, a block of kWarpsM x kWarpsN warps per tile in the order of gemm_params.cuh.
// Inputs      GemmParams: a and b by rows of depth, at multiples of 16 bytes.
// Outputs     out.
// Tiles       kBm x kBn, kBk bytes of depth; of a warp kBm / kWarpsM x kBn / kWarpsN.
// Fragments   unknown to the program: sums pass through shared memory to find their rows and columns.
// Shared map  kRing x { A [kBk / 16][kBm][16], B [kBk / 16][kBn][16] }: 16 rows of a unit are one fragment and meet no
//             bank twice; at the end 16 x 16 sums per warp instead.
// Pipeline    step i: copies of i + kRing - 1 | products of i.
// Sync        one __syncthreads per step; before the sums, one more.
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       units beyond a matrix are zero; elements beyond the output are not stored.
// Limits      k a multiple of 16.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/gemm_epilogue.cuh"
#include "intfa/gemm_stages.cuh"
#include "intfa/gemm_wmma.cuh"

constexpr s32 kTilesM = kBm / kWarpsM / 16, kTilesN = kBn / kWarpsN / 16;
static_assert(kBm % (16 * kWarpsM) == 0 && kBn % (16 * kWarpsN) == 0, "INTFA_WARPS: whole tiles of 16 x 16");
static_assert(1024 * kWarpsM * kWarpsN <= kRingBytes, "sums of all warps fit into the stages");
#ifdef INTFA_SHARED_BYTES
static_assert(kRingBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

extern "C" __global__ void __launch_bounds__(kBlock) gemm_wmma(const __grid_constant__ GemmParams p) {
    extern __shared__ __align__(128) u8 shared_bytes[];
    const u32 shared = shared_address(shared_bytes);
    const Tile tile = tile_of(p, blockIdx.x);
    const s32 lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32);
    const s32 first_row = warp / kWarpsN * 16 * kTilesM, first_column = warp % kWarpsN * 16 * kTilesN;

    s32 sum[kTilesM][kTilesN][8];
#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
        for (s32 n = 0; n < kTilesN; ++n)
#pragma unroll
            for (s32 e = 0; e < 8; ++e) sum[m][n][e] = 0;

    walk_depth(
        p.k,
        [&](u32 stage, s32 k) {
            fill_rows<kBm>(shared + stage, p.a, p.a_stride[0], tile.row, p.m, k, p.k, ByUnit<kBm>());
            fill_rows<kBn>(shared + stage + kPartA, p.b, p.b_stride[0], tile.column, p.n, k, p.k,
                           ByUnit<kBn>());
        },
        [&](u32 stage) {
#pragma unroll
            for (s32 u = 0; u < kUnits; ++u) {
                u32 a[kTilesM][2], b[kTilesN][2];
#pragma unroll
                for (s32 m = 0; m < kTilesM; ++m)
                    wmma_load_a(a[m], shared + stage + 16 * (u * kBm + first_row + 16 * m));
#pragma unroll
                for (s32 n = 0; n < kTilesN; ++n)
                    wmma_load_b(b[n], shared + stage + kPartA + 16 * (u * kBn + first_column + 16 * n));
#pragma unroll
                for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
                    for (s32 n = 0; n < kTilesN; ++n) wmma_multiply(sum[m][n], a[m], b[n]);
            }
        });

    __syncthreads();  // the stages are free
    const s32* turned = (const s32*)shared_bytes + 256 * warp;
#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
        for (s32 n = 0; n < kTilesN; ++n) {
            __syncwarp();
            wmma_store(shared + 1024 * warp, sum[m][n]);
            __syncwarp();
            const s32 column = tile.column + first_column + 16 * n + lane % 16;
            const ColumnEnd end = end_of_column(p, column);
#pragma unroll
            for (s32 r = lane / 16; r < 16; r += 2) {
                const s32 row = tile.row + first_row + 16 * m + r;
                if (row < p.m && column < p.n)
                    store_one(p, end_of_row(p, row), column, turned[16 * r + lane % 16], end);
            }
        }
}
