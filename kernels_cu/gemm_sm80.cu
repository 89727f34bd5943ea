// Computes    out = A B on int8 by mma.sync, whose fragments are known: no detour for the sums. sm_75 on.
// Grid/Block  1-D grid, a block of kWarpsM x kWarpsN warps per tile in the order of gemm_params.cuh.
// Inputs      GemmParams: a and b by rows of depth, at multiples of 16 bytes.
// Outputs     out.
// Tiles       kBm x kBn, kBk bytes of depth; of a warp up to 64 x 64, so that shared memory feeds the tensor cores:
//             4 KB of fragments for 32 instructions.
// Fragments   m16n8k32 (ptx_mma.cuh): lane 4g + t owns rows g, g + 8 and columns 2t, 2t + 1 of each 8.
// Shared map  kRing x { A [kBm][kBk], B [kBn][kBk] }, rows swizzled (swizzle.cuh): neither ldmatrix nor a copy meets a
//             bank twice.
// Pipeline    for every 32 bytes of depth: ldmatrix of the next 32 | a share of the copies of step i + kRing - 1 |
//             products of these 32. Without the reading ahead, and with all copies at the start of a step, an H200 did
//             698 TOPS at 8192^3 instead of 988: both warps of a scheduler waited for the same.
// Sync        one __syncthreads per step, before the last products of a step, whose fragments are in registers by then.
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       units beyond a matrix are zero; elements beyond the output are not stored.
// Limits      k a multiple of 16.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/gemm_epilogue.cuh"
#include "intfa/gemm_stages.cuh"
#include "intfa/ptx_mma.cuh"
#include "intfa/swizzle.cuh"

constexpr s32 kTilesM = kBm / kWarpsM / 16, kTilesN = kBn / kWarpsN / 8;
constexpr s32 kPairs = kUnits / 2;  // of units of 16 bytes: the depth of a product
static_assert(kBm % (16 * kWarpsM) == 0 && kBn % (16 * kWarpsN) == 0,
              "INTFA_WARPS: whole tiles, pairs of them along the columns");
static_assert(kPairs % 2 == 0, "INTFA_TILE_K: two sets of fragments take turns");
#ifdef INTFA_SHARED_BYTES
static_assert(kRingBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

struct Fragments {
    u32 a[kTilesM][4], b[kTilesN / 2][4];
};

__device__ __forceinline__ void multiply(s32 (&sum)[kTilesM][kTilesN][4], const Fragments& f) {
#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
#pragma unroll
        for (s32 n = 0; n < kTilesN; ++n)
            mma_s8(sum[m][n], f.a[m], f.b[n / 2][n % 2 * 2], f.b[n / 2][n % 2 * 2 + 1]);
}

// One of the shares in which kRows rows of depth k to kBk more are brought, from row `first`. All threads together bring
// kDown rows of kAcross units at a time, 128 bytes side by side where a row has as many: a copy differs from a thread's
// first by constants, needs no branch, and takes four instructions. (gemm_dp4a and gemm_wmma, which bring a stage at once,
// are 5 and 10 % slower with it.)
template <s32 kRows>
__device__ __forceinline__ void fill_share(u32 to, const u8* matrix, s64 stride, s32 first, s32 rows, s32 k,
                                           s32 depth, s32 share, s32 shares) {
    constexpr s32 kAcross = kUnits < 8 ? kUnits : 8, kAlong = kUnits / kAcross;
    constexpr s32 kDown = kBlock / kAcross, kCopies = tiles_of(kRows, kDown) * kAlong;
    static_assert(kUnits % kAcross == 0 && kBlock % kAcross == 0, "a thread stays in its column of units");
    const s32 unit = threadIdx.x % kAcross, row = threadIdx.x / kAcross;
    const u8* from = matrix + (first + row) * stride + k + 16 * unit;
#pragma unroll
    for (s32 i = 0; i < kCopies; ++i) {
        const s32 down = i / kAlong * kDown, along = i % kAlong * kAcross;
        if (i * shares / kCopies != share || (kRows % kDown && row + down >= kRows)) continue;
        const bool is_there = first + row + down < rows && k + 16 * (unit + along) < depth;
        copy16_or_zero(to + swizzled<kBk>(row + down, unit + along), from + down * stride + 16 * along,
                       is_there);
    }
}

__device__ __forceinline__ u32 after(u32 stage) { return stage + kPart == kRingBytes ? 0 : stage + kPart; }

extern "C" __global__ void __launch_bounds__(kBlock, 1) gemm_sm80(const __grid_constant__ GemmParams p) {
    extern __shared__ __align__(128) u8 shared_bytes[];
    const u32 shared = shared_address(shared_bytes);
    const Tile tile = tile_of(p, blockIdx.x);
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

    const auto fill = [&](u32 stage, s32 k, s32 share, s32 shares) {
        fill_share<kBm>(shared + stage, p.a, p.a_stride[0], tile.row, p.m, k, p.k, share, shares);
        fill_share<kBn>(shared + stage + kPartA, p.b, p.b_stride[0], tile.column, p.n, k, p.k, share, shares);
    };
    Fragments fragments[2];
    const auto load = [&](Fragments& to, u32 stage, s32 pair) {
#pragma unroll
        for (s32 m = 0; m < kTilesM; ++m)
            load_matrices(to.a[m], swizzled_step<kBk>(a_at + stage, 2 * m, pair));
#pragma unroll
        for (s32 n = 0; n < kTilesN / 2; ++n)
            load_matrices(to.b[n], swizzled_step<kBk>(b_at + stage, 2 * n, pair));
    };

#pragma unroll
    for (s32 i = 0; i < kRing - 1; ++i) {
        fill(i * kPart, i * kBk, 0, 1);
        copy_commit();
    }
    copy_wait<kRing - 2>();
    __syncthreads();
    load(fragments[0], 0, 0);
    u32 now = 0, next = (kRing - 1) * kPart;
    const s32 ahead = (kRing - 1) * kBk;
    for (s32 k = ahead; k < p.k + ahead; k += kBk, next = after(next)) {
#pragma unroll
        for (s32 pair = 0; pair < kPairs; ++pair) {
            const bool is_last = pair == kPairs - 1;
            if (is_last) {
                copy_commit();
                copy_wait<kRing - 2>();
                __syncthreads();  // the next stage has arrived for all, and all have read this one
                now = after(now);
            }
            load(fragments[(pair + 1) % 2], now, (pair + 1) % kPairs);
            if (!is_last) fill(next, k, pair, kPairs - 1);
            multiply(sum, fragments[pair % 2]);
        }
    }
    copy_wait<0>();

#pragma unroll
    for (s32 m = 0; m < kTilesM; ++m)
        store_tiles(p, sum[m], tile.row + first_row + 16 * m, tile.column + first_column);
}
