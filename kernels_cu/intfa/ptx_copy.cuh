// Shared-memory addresses, 16-byte asynchronous copies, ldmatrix.
#pragma once
#include "types.cuh"

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A value that all lanes have: so that the compiler knows it, and keeps it in a uniform register.
__device__ __forceinline__ s32 uniform(s32 x) { return __shfl_sync(0xffffffffu, x, 0); }

// A value that stays in its register: without this, an address is worked out again in every tile from the thread's index,
// which takes some 50 cycles to read.
__device__ __forceinline__ u32 keep(u32 x) { return __shfl_sync(0xffffffffu, x, threadIdx.x % 32); }

// Now, and not where the value is used: it is there by then.
__device__ __forceinline__ float load_global(const float* address) {
    float x;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(address));
    return x;
}
__device__ __forceinline__ float load_float(u32 address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}
// The half word at an address where that holds one, else `other`; without a branch.
__device__ __forceinline__ u32 load_half_word_or(u32 other, u32 address, bool there) {
    u16 x = other;
    asm volatile("{.reg .pred there; setp.ne.s32 there, %2, 0; @there ld.shared.u16 %0, [%1];}"
                 : "+h"(x)
                 : "r"(address), "r"((s32)there)
                 : "memory");
    return x;
}
__device__ __forceinline__ uint4 load_words(u32 address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}
__device__ __forceinline__ void store_words(u32 address, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
__device__ __forceinline__ float2 load_float2(u32 address) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
    return x;
}

#if __CUDA_ARCH__ >= 800
// From `kFrom` bytes behind src to `kTo` bytes behind dst. .cg: the copy bypasses L1, which holds nothing that a tile is
// read for twice.
template <s32 kTo = 0, s32 kFrom = 0>
__device__ __forceinline__ void copy16(u32 dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(dst), "l"(src), "n"(kTo),
                 "n"(kFrom)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <s32 kPending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#else  // sm_75 has no cp.async: the copy is done when it returns, and the caller's barrier publishes it
template <s32 kTo = 0, s32 kFrom = 0>
__device__ __forceinline__ void copy16(u32 dst, const void* src) {
    const uint4 x = *(const uint4*)((const u8*)src + kFrom);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(dst + kTo), "r"(x.x), "r"(x.y), "r"(x.z),
                 "r"(x.w)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() {}
template <s32 kPending>
__device__ __forceinline__ void copy_wait() {}
#endif

// Four 8 × 8 matrices of 16-bit elements (8 rows of 16 bytes each); lanes 8i … 8i+7 give the row addresses of matrix i.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
