// Warp-level matrix products of one 16-row tile: D += A B with 32 bytes of depth (32 8-bit or 16 16-bit elements).
//
// Fragments, lane = 4 g + t:        A: a0 row g, a1 row g + 8, both bytes 4t … 4t+3; a2, a3 the same 16 bytes on
//                                   B: b0 column g, bytes 4t … 4t+3; b1 16 bytes on
//                                   D: d0, d1 row g, columns 2t, 2t+1; d2, d3 row g + 8
// sm_75 has only half the shapes (m8n8k16 and m16n8k8): the same fragments in two or four steps.
#pragma once
#include "config.cuh"

#define INTFA_MMA_INT(TYPE)                              \
    asm("mma.sync.aligned.m16n8k32.row.col.s32." TYPE    \
        ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "         \
        "{%8,%9}, {%0,%1,%2,%3};"                        \
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

#define INTFA_MMA_INT_SM75(TYPE, D0, D1, A, B)                                               \
    asm("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
        : "+r"(D0), "+r"(D1)                                                                 \
        : "r"(A), "r"(B))

// S += Q Kᵀ, signed by signed.
__device__ __forceinline__ void mma_s8(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    INTFA_MMA_INT("s8");
#else
    INTFA_MMA_INT_SM75("s8", d[0], d[1], a[0], b0);
    INTFA_MMA_INT_SM75("s8", d[2], d[3], a[1], b0);
    INTFA_MMA_INT_SM75("s8", d[0], d[1], a[2], b1);
    INTFA_MMA_INT_SM75("s8", d[2], d[3], a[3], b1);
#endif
}

// O += P V, unsigned P by signed V. P of 127 levels is unsigned as well: its sign bit is never set.
__device__ __forceinline__ void mma_u8(s32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    INTFA_MMA_INT("u8");
#else
    INTFA_MMA_INT_SM75("u8", d[0], d[1], a[0], b0);
    INTFA_MMA_INT_SM75("u8", d[2], d[3], a[1], b0);
    INTFA_MMA_INT_SM75("u8", d[0], d[1], a[2], b1);
    INTFA_MMA_INT_SM75("u8", d[2], d[3], a[3], b1);
#endif
}

#define INTFA_MMA_FLOAT(SHAPE)                                                                          \
    asm volatile("mma.sync.aligned." SHAPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// Products of a float format, accumulated in float32.
template <s32 kFormat>
__device__ __forceinline__ void mma_float(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (kFormat == kHalf) {
#if __CUDA_ARCH__ >= 800
        INTFA_MMA_FLOAT("m16n8k16.row.col.f32.f16.f16");
#else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b0));
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
    }
#if __CUDA_ARCH__ >= 890
    if constexpr (kFormat == kE4M3) INTFA_MMA_FLOAT("m16n8k32.row.col.f32.e4m3.e4m3");
    if constexpr (kFormat == kE5M2) INTFA_MMA_FLOAT("m16n8k32.row.col.f32.e5m2.e5m2");
#else
    static_assert(kFormat == kHalf, "8-bit floats have an MMA from sm_89 on");
#endif
}
