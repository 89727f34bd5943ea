// Matrix products of a warpgroup (sm_90a): D += A B with 64 rows, N columns and 32 bytes of depth an instruction.
//
// D: a lane holds what it holds of m16n8 tiles side by side (ptx_mma.cuh), warp w of the four rows 16w to 16w + 15.
// A: fragments in registers, as in ptx_mma.cuh, or a tile in shared memory. B: always a tile in shared memory.
// Products run behind the program: fence before the first one after registers were written, commit, wait before any of
// their registers is touched.
#pragma once
#include "types.cuh"

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <s32 kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of a tile in shared memory: rows of kRow bytes (32, 64 or 128), swizzled over that span; `leading` bytes
// from one span to the next where a matrix is read across its rows and wider than a span.
template <u32 kRow>
__device__ __forceinline__ u64 tile_at(u32 address, u32 leading = 16) {
    constexpr u32 kSwizzle = kRow == 128 ? 1 : kRow == 64 ? 2 : 3;
    return (u64)(kSwizzle << 30 | 8 * kRow / 16) << 32 | (leading / 16 << 16 | address / 16);
}

// The same layout some bytes on: addresses end below 2^18, so nothing is carried out of the low word.
__device__ __forceinline__ u64 moved(u64 tile, u32 bytes) {
    return (tile & 0xffffffff00000000ull) | ((u32)tile + bytes / 16);
}

#define INTFA_LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define INTFA_LIST_32 \
    INTFA_LIST_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define INTFA_LIST_48 \
    INTFA_LIST_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define INTFA_LIST_64 \
    INTFA_LIST_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define INTFA_LIST_96                                                                              \
    INTFA_LIST_64                                                                                  \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define INTFA_LIST_128                                                                               \
    INTFA_LIST_96                                                                                    \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define INTFA_OUT_8(C, i) \
    C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3]), C(d[i + 4]), C(d[i + 5]), C(d[i + 6]), C(d[i + 7])
#define INTFA_OUT_16(C, i)  INTFA_OUT_8(C, i), INTFA_OUT_8(C, i + 8)
#define INTFA_OUT_32(C, i)  INTFA_OUT_16(C, i), INTFA_OUT_16(C, i + 16)
#define INTFA_OUT_48(C, i)  INTFA_OUT_32(C, i), INTFA_OUT_16(C, i + 32)
#define INTFA_OUT_64(C, i)  INTFA_OUT_32(C, i), INTFA_OUT_32(C, i + 32)
#define INTFA_OUT_96(C, i)  INTFA_OUT_64(C, i), INTFA_OUT_32(C, i + 64)
#define INTFA_OUT_128(C, i) INTFA_OUT_64(C, i), INTFA_OUT_64(C, i + 64)

// A from registers: after the COUNT registers of D come four of A, the descriptor of B, and whether D is added to.
#define INTFA_WGMMA_REGISTERS(C, COUNT, A0, A1, A2, A3, B, ADD, OP, TAIL)                                 \
    asm volatile("{.reg .pred add; setp.ne.b32 add, %" #ADD ", 0; wgmma.mma_async.sync.aligned." OP       \
                 " {" INTFA_LIST_##COUNT "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", add" TAIL \
                                         ";}"                                                             \
                 : INTFA_OUT_##COUNT(C, 0)                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((s32)add))
#define INTFA_WGMMA_TILE(C, COUNT, A, B, ADD, OP)                                                   \
    asm volatile("{.reg .pred add; setp.ne.b32 add, %" #ADD ", 0; wgmma.mma_async.sync.aligned." OP \
                 " {" INTFA_LIST_##COUNT "}, %" #A ", %" #B ", add;}"                               \
                 : INTFA_OUT_##COUNT(C, 0)                                                          \
                 : "l"(a), "l"(b), "r"((s32)add))

#define INTFA_INT(x) "+r"(x)

// S (+)= Q K^T, kCount / 2 ... columns: kCount registers of D are N = 2 kCount columns.
template <s32 kCount>
__device__ __forceinline__ void wgmma_s8(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    if constexpr (kCount == 32)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 32, 32, 33, 34, 35, 36, 37, "m64n64k32.s32.s8.s8", "");
    if constexpr (kCount == 64)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 64, 64, 65, 66, 67, 68, 69, "m64n128k32.s32.s8.s8", "");
}
template <s32 kCount>
__device__ __forceinline__ void wgmma_s8(s32 (&d)[kCount], u64 a, u64 b, bool add) {
    if constexpr (kCount == 32) INTFA_WGMMA_TILE(INTFA_INT, 32, 32, 33, 34, "m64n64k32.s32.s8.s8");
    if constexpr (kCount == 64) INTFA_WGMMA_TILE(INTFA_INT, 64, 64, 65, 66, "m64n128k32.s32.s8.s8");
}

// O (+)= P V with unsigned P and signed V.
template <s32 kCount>
__device__ __forceinline__ void wgmma_u8(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    if constexpr (kCount == 16)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 16, 16, 17, 18, 19, 20, 21, "m64n32k32.s32.u8.s8", "");
    if constexpr (kCount == 32)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 32, 32, 33, 34, 35, 36, 37, "m64n64k32.s32.u8.s8", "");
    if constexpr (kCount == 48)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 48, 48, 49, 50, 51, 52, 53, "m64n96k32.s32.u8.s8", "");
    if constexpr (kCount == 64)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 64, 64, 65, 66, 67, 68, 69, "m64n128k32.s32.u8.s8", "");
    if constexpr (kCount == 96)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 96, 96, 97, 98, 99, 100, 101, "m64n192k32.s32.u8.s8", "");
    if constexpr (kCount == 128)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 128, 128, 129, 130, 131, 132, 133, "m64n256k32.s32.u8.s8", "");
}

// O (+)= P V in float16, V with a row per key: B is transposed on its way.
template <s32 kCount>
__device__ __forceinline__ void wgmma_f16(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    if constexpr (kCount == 16)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 16, 16, 17, 18, 19, 20, 21, "m64n32k16.f32.f16.f16", ", 1, 1, 1");
    if constexpr (kCount == 32)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 32, 32, 33, 34, 35, 36, 37, "m64n64k16.f32.f16.f16", ", 1, 1, 1");
    if constexpr (kCount == 48)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 48, 48, 49, 50, 51, 52, 53, "m64n96k16.f32.f16.f16", ", 1, 1, 1");
    if constexpr (kCount == 64)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 64, 64, 65, 66, 67, 68, 69, "m64n128k16.f32.f16.f16", ", 1, 1, 1");
    if constexpr (kCount == 96)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 96, 96, 97, 98, 99, 100, 101, "m64n192k16.f32.f16.f16", ", 1, 1, 1");
    if constexpr (kCount == 128)
        INTFA_WGMMA_REGISTERS(INTFA_INT, 128, 128, 129, 130, 131, 132, 133, "m64n256k16.f32.f16.f16",
                              ", 1, 1, 1");
}
