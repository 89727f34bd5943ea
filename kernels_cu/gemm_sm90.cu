// Computes    out = A B on int8 by warpgroup MMA on tiles that the tensor memory accelerator brings. sm_90a alone.
// Grid/Block  1-D grid of at most one block per multiprocessor, which takes tiles in turn in the order of
//             gemm_params.cuh; a producer warpgroup and two consumer warpgroups of 64 rows each.
// Inputs      GemmParams, and tensor maps of a and b by rows of depth.
// Outputs     out.
// Tiles       128 x 256, 128 bytes of depth: at full rate wgmma reads 10 KB of shared memory in 128 cycles, a tile of
//             128 x 128 would read 12 KB for the same products.
// Fragments   m64n256k32: warp w of a warpgroup owns rows 16w to 16w + 15, and a lane of them what it owns of m16n8
//             tiles side by side (ptx_mma.cuh).
// Shared map  kRing x { A [128][128], B [256][128] }, swizzled by their tensor maps, then a pair of barriers per stage.
// Pipeline    consumers step i | copies up to i + kRing - 1 | products of i in flight | stage of i - 1 is given back
// Sync        a pair of mbarriers per stage: full (copies have landed), empty (all warps have left).
// Numerics    int32, exact; gemm_epilogue.cuh.
// Edges       what a box brings from beyond a matrix is zero; elements beyond the output are not stored.
// Limits      k a multiple of 16, rows of a and b without gaps.
// Twin        cupy_intfa.gemm on NumPy arrays.
#include "intfa/gemm_epilogue.cuh"
#include "intfa/ptx_bulk.cuh"
#include "intfa/ptx_copy.cuh"
#include "intfa/ptx_wgmma.cuh"

constexpr u32 kBarriersAt = kRingBytes, kConsumerWarps = 8;
// 65 536 registers are 168 a thread at the start; what the producer gives back is enough for 240 in the others.
constexpr s32 kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kBm == 128 && kBn == 256 && kBk == 128, "two warpgroups of 64 x 256, a swizzle span deep");
#ifdef INTFA_SHARED_BYTES
static_assert(kRingBytes + 16 * kRing == INTFA_SHARED_BYTES,
              "cupy_intfa counts other bytes of shared memory");
#endif

__device__ __forceinline__ u32 stage_full(u32 shared, u32 i) { return shared + kBarriersAt + 16 * i; }
__device__ __forceinline__ u32 stage_empty(u32 shared, u32 i) { return stage_full(shared, i) + 8; }

__device__ __forceinline__ s32 all_tiles(const GemmParams& p) {
    return tiles_of(p.m, kBm) * tiles_of(p.n, kBn);
}

// One thread: brings the stages of every tile, as they become free.
__device__ __forceinline__ void produce(const GemmParams& p, const TensorMap& a_map, const TensorMap& b_map,
                                        u32 shared) {
    const s32 all = all_tiles(p), steps = tiles_of(p.k, kBk);
    u32 turn = 0;
    for (s32 i = blockIdx.x; i < all; i += gridDim.x) {
        const Tile tile = tile_of(p, i);
        for (s32 step = 0; step < steps; ++step, ++turn) {
            const u32 stage = turn % kRing, full = stage_full(shared, stage), to = shared + stage * kPart;
            barrier_wait(stage_empty(shared, stage), turn / kRing % 2 ^ 1);
            barrier_expect(full, kPart);
            copy_box(to, a_map, step * kBk, tile.row, full);
            copy_box(to + kPartA, b_map, step * kBk, tile.column, full);
        }
    }
}

__device__ __forceinline__ void consume(const GemmParams& p, u32 shared, s32 warp) {
    const s32 all = all_tiles(p), steps = tiles_of(p.k, kBk);
    const u64 a_tiles = tile_at<kBk>(shared + warp / 4 * 64 * kBk), b_tiles = tile_at<kBk>(shared + kPartA);
    const bool is_first = threadIdx.x % 32 == 0;
    u32 turn = 0;
    for (s32 i = blockIdx.x; i < all; i += gridDim.x) {
        const Tile tile = tile_of(p, i);
        s32 sum[32][4];
        for (s32 step = 0; step < steps; ++step, ++turn) {
            const u32 stage = turn % kRing;
            barrier_wait(stage_full(shared, stage), turn / kRing % 2);
            wgmma_fence();
#pragma unroll
            for (s32 k = 0; k < kBk / 32; ++k) {
                const u32 at = stage * kPart + 32 * k;
                wgmma_s8((s32(&)[128])sum, moved(a_tiles, at), moved(b_tiles, at), step + k > 0);
            }
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0 && is_first) barrier_arrive(stage_empty(shared, (turn - 1) % kRing));
        }
        wgmma_wait<0>();
        if (is_first) barrier_arrive(stage_empty(shared, (turn - 1) % kRing));
#pragma unroll
        for (s32 n = 0; n < 32; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) asm volatile("" : "+r"(sum[n][e])::"memory");
        store_tiles(p, sum, tile.row + 16 * warp, tile.column);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock + 128, 1)
    gemm_sm90(const __grid_constant__ GemmParams p, const __grid_constant__ TensorMap a_map,
              const __grid_constant__ TensorMap b_map) {
    extern __shared__ __align__(1024) u8 shared_bytes[];
    const u32 shared = shared_address(shared_bytes);
    const s32 warp = uniform(threadIdx.x / 32);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < kRing; ++i) {
            barrier_init(stage_full(shared, i), 1);
            barrier_init(stage_empty(shared, i), kConsumerWarps);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (warp < 4) {
        give_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, a_map, b_map, shared);
        __syncwarp();
    } else {
        take_registers<kConsumerRegisters>();
        consume(p, shared, warp - 4);
    }
}
