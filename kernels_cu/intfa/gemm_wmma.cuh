// wmma: the first interface to tensor cores, 16 x 16 x 16 products whose fragments have no layout that a program may
// rely on (sm_72 on). As PTX: the header <mma.h> of nvcuda::wmma includes crt/mma.h, which NVRTC's wheels do not bring.
#pragma once
#include "types.cuh"

// 16 rows of 16 bytes, one after the other, in shared memory: of A, or of B as its columns.
__device__ __forceinline__ void wmma_load_a(u32 (&a)[2], u32 address) {
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.s8 {%0,%1}, [%2], 16;"
                 : "=r"(a[0]), "=r"(a[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void wmma_load_b(u32 (&b)[2], u32 address) {
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.s8 {%0,%1}, [%2], 16;"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void wmma_multiply(s32 (&d)[8], const u32 (&a)[2], const u32 (&b)[2]) {
    asm("wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
}
// 16 rows of 16 integers, one after the other.
__device__ __forceinline__ void wmma_store(u32 address, const s32 (&d)[8]) {
    asm volatile(
        "wmma.store.d.sync.aligned.row.m16n16k16.shared.s32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8}, 16;" ::"r"(
            address),
        "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3]), "r"(d[4]), "r"(d[5]), "r"(d[6]), "r"(d[7])
        : "memory");
}
