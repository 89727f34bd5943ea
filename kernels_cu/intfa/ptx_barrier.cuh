// Barriers in shared memory whose arrival and wait are apart (mbarrier, sm_80 and later).
//
// A phase ends with its last arrival, and the next begins. Who waits names the parity of the phase; a barrier that is
// new counts as if a phase of parity 1 had just ended.
#pragma once
#include "types.cuh"

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}
// Whether the phase of this parity has ended; from sm_90 on, the warp may sleep for a while before the answer is no.
__device__ __forceinline__ bool barrier_passed(u32 barrier, u32 parity) {
#if __CUDA_ARCH__ >= 900
#define INTFA_TEST_WAIT "mbarrier.try_wait.parity"
#else
#define INTFA_TEST_WAIT "mbarrier.test_wait.parity"
#endif
    u32 passed;
    asm volatile("{.reg .pred p; " INTFA_TEST_WAIT ".shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed;
}
#else  // a block of sm_75 meets at every tile
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {}
__device__ __forceinline__ bool barrier_passed(u32 barrier, u32 parity) { return true; }
#endif
