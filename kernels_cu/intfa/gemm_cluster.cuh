// Blocks of a cluster that copy for each other (sm_90a); a block alone where kCluster is 1.
#pragma once
#include "gemm_params.cuh"
#include "ptx_bulk.cuh"

// The attribute of a kernel whose blocks come in clusters; CuPy has no launch that would ask for them.
#if INTFA_CLUSTER > 1
#define INTFA_CLUSTER_SHAPE __cluster_dims__(INTFA_CLUSTER, 1, 1)
#else
#define INTFA_CLUSTER_SHAPE
#endif

__device__ __forceinline__ u32 cluster_rank() {
    if constexpr (kCluster == 1) return 0;
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of all blocks of the cluster, or of the block.
__device__ __forceinline__ void cluster_sync() {
    if constexpr (kCluster == 1) {
        __syncthreads();
    } else {
        asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    }
}

// A box to the same place of every block of the cluster; it counts on the same barrier of each.
__device__ __forceinline__ void copy_box_to_all(u32 to, const TensorMap& map, s32 x, s32 y, u32 barrier) {
    if constexpr (kCluster == 1) {
        copy_box(to, map, x, y, barrier);
    } else {
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
            "l"((u64)&map), "r"(x), "r"(y), "r"(barrier), "h"((u16)((1 << kCluster) - 1))
            : "memory");
    }
}

// Arrive at the same barrier of every block of the cluster.
__device__ __forceinline__ void barrier_arrive_at_all(u32 barrier) {
    if constexpr (kCluster == 1) {
        barrier_arrive(barrier);
    } else {
#pragma unroll
        for (u32 rank = 0; rank < kCluster; ++rank)
            asm volatile(
                "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
                "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];}" ::"r"(barrier),
                "r"(rank)
                : "memory");
    }
}
