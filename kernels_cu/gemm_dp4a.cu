// Computes    out = A B on int8 by dp4a, four products an instruction: what a GPU without tensor cores has. sm_61 on.
// Grid/Block  1-D grid, a block of 8 warps per tile in the order of gemm_params.cuh.
// Inputs      GemmParams: a and b by rows of depth, at multiples of 16 bytes.
// Outputs     out.
// Tiles       128 x kBn, kBk bytes of depth; up to sm_80 kBn is 64, because 128 columns spill there.
// Fragments   lane 16 half + x of warp w owns rows 16w + 2r + half (r < 8) and columns 16n + x: of 128 columns 64
//             sums, for which it reads 24 units of 16 bytes per 256 instructions (dp4a.cuh).
// Shared map  kRing x { A [kBk / 16][128][16], B [kBk / 16][128][16] }.
// Pipeline    step i: copies of i + kRing - 1 | products of i.
// Sync        one __syncthreads per step.
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       units beyond a matrix are zero; elements beyond the output are not stored.
// Limits      k a multiple of 16.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/dp4a.cuh"
#include "intfa/gemm_epilogue.cuh"
#include "intfa/gemm_stages.cuh"

constexpr s32 kLaneColumns = kBn / 16;
static_assert(kBm == 16 * kWarpsM && kWarpsN == 1, "INTFA_WARPS_M: a warp has 16 rows and all columns");
#ifdef INTFA_SHARED_BYTES
static_assert(kRingBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

extern "C" __global__ void __launch_bounds__(kBlock, 2) gemm_dp4a(const GemmParams p) {
    extern __shared__ __align__(128) u8 shared_bytes[];
    const u32 shared = shared_address(shared_bytes);
    const Tile tile = tile_of(p, blockIdx.x);
    const s32 lane = threadIdx.x % 32, half = lane / 16, first = threadIdx.x / 32 * 16 + half;

    s32 sum[kLaneRows][kLaneColumns];
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r)
#pragma unroll
        for (s32 n = 0; n < kLaneColumns; ++n) sum[r][n] = 0;

    walk_depth(
        p.k,
        [&](u32 stage, s32 k) {
            fill_rows<kBm>(shared + stage, p.a, p.a_stride[0], tile.row, p.m, k, p.k, ByUnit<kBm>());
            fill_rows<kBn>(shared + stage + kPartA, p.b, p.b_stride[0], tile.column, p.n, k, p.k,
                           ByUnit<kBn>());
        },
        [&](u32 stage) {
            const uint4* rows = (const uint4*)(shared_bytes + stage) + first;
            const uint4* columns = (const uint4*)(shared_bytes + stage + kPartA) + lane % 16;
        // One unit after the other, by halves: reading ahead would spill.
#pragma unroll 1
            for (s32 u = 0; u < kUnits; ++u, rows += kBm, columns += kBn) {
                multiply<true, 0, kLaneColumns / 2, 2>(sum, rows, columns);
                multiply<true, kLaneColumns / 2, kLaneColumns / 2, 2>(sum, rows, columns + kBn / 2);
            }
        });

#pragma unroll
    for (s32 n = 0; n < kLaneColumns; ++n) {
        const s32 column = tile.column + 16 * n + lane % 16;
        if (column >= p.n) break;
        const ColumnEnd end = end_of_column(p, column);
#pragma unroll
        for (s32 r = 0; r < kLaneRows; ++r) {
            const s32 row = tile.row + first + 2 * r;
            if (row < p.m) store_one(p, end_of_row(p, row), column, sum[r][n], end);
        }
    }
}
