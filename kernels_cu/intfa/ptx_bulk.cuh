// Copies by the tensor memory accelerator, which complete on a barrier, and registers that move between the warpgroups of
// a block (sm_90a).
#pragma once
#include "ptx_barrier.cuh"

struct alignas(64) TensorMap {  // the driver's CUtensorMap
    u64 opaque[16];
};

__device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrive, and announce bytes that copies will bring: the phase ends when they are there too.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    while (!barrier_passed(barrier, parity)) continue;
}

// A box of the tensor behind `map`, at element x of row y.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap& map, s32 x, s32 y, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(to),
        "l"((u64)&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}
// A box of five axes, at element x of the innermost and y of the outermost.
__device__ __forceinline__ void copy_box5(u32 to, const TensorMap& map, s32 x, s32 y, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, 0, 0, 0, %3}], [%4];" ::"r"(to),
        "l"((u64)&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}
// `bytes` in a row, a multiple of 16 like both addresses.
__device__ __forceinline__ void copy_line(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

template <s32 kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <s32 kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
