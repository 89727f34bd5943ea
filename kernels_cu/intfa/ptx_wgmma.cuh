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

#define INTFA_SIXTEEN(i)                                                                                  \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]),           \
        "+r"(d[i + 6]), "+r"(d[i + 7]), "+r"(d[i + 8]), "+r"(d[i + 9]), "+r"(d[i + 10]), "+r"(d[i + 11]), \
        "+r"(d[i + 12]), "+r"(d[i + 13]), "+r"(d[i + 14]), "+r"(d[i + 15])
#define INTFA_OUT_16  INTFA_SIXTEEN(0)
#define INTFA_OUT_32  INTFA_SIXTEEN(0), INTFA_SIXTEEN(16)
#define INTFA_OUT_48  INTFA_OUT_32, INTFA_SIXTEEN(32)
#define INTFA_OUT_64  INTFA_OUT_48, INTFA_SIXTEEN(48)
#define INTFA_OUT_96  INTFA_OUT_64, INTFA_SIXTEEN(64), INTFA_SIXTEEN(80)
#define INTFA_OUT_128 INTFA_OUT_96, INTFA_SIXTEEN(96), INTFA_SIXTEEN(112)

// D has COUNT registers, which are N columns; the operands after them are numbered as the compiler wants to read them.
#define INTFA_WGMMA(COUNT, N, ADD, A, B, OP, TAIL, ...)                                                    \
    if constexpr (kCount == COUNT)                                                                         \
    asm volatile("{.reg .pred add; setp.ne.b32 add, %" #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N OP \
                 " {" INTFA_LIST_##COUNT "}, " A ", %" #B ", add" TAIL ";}"                                \
                 : INTFA_OUT_##COUNT                                                                       \
                 : __VA_ARGS__, "l"(b), "r"((s32)add))

// A from four registers; and from a tile.
#define INTFA_FOUR(A0, A1, A2, A3) "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}"
#define INTFA_WGMMA_REGISTERS(OP, TAIL)                                            \
    INTFA_WGMMA(16, 32, 21, INTFA_FOUR(16, 17, 18, 19), 20, OP, TAIL, INTFA_A);    \
    INTFA_WGMMA(32, 64, 37, INTFA_FOUR(32, 33, 34, 35), 36, OP, TAIL, INTFA_A);    \
    INTFA_WGMMA(48, 96, 53, INTFA_FOUR(48, 49, 50, 51), 52, OP, TAIL, INTFA_A);    \
    INTFA_WGMMA(64, 128, 69, INTFA_FOUR(64, 65, 66, 67), 68, OP, TAIL, INTFA_A);   \
    INTFA_WGMMA(96, 192, 101, INTFA_FOUR(96, 97, 98, 99), 100, OP, TAIL, INTFA_A); \
    INTFA_WGMMA(128, 256, 133, INTFA_FOUR(128, 129, 130, 131), 132, OP, TAIL, INTFA_A)
#define INTFA_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define INTFA_WGMMA_TILES(OP)                            \
    INTFA_WGMMA(32, 64, 34, "%32", 33, OP, "", "l"(a));  \
    INTFA_WGMMA(48, 96, 50, "%48", 49, OP, "", "l"(a));  \
    INTFA_WGMMA(64, 128, 66, "%64", 65, OP, "", "l"(a)); \
    INTFA_WGMMA(96, 192, 98, "%96", 97, OP, "", "l"(a)); \
    INTFA_WGMMA(128, 256, 130, "%128", 129, OP, "", "l"(a))

// S (+)= Q K^T.
template <s32 kCount>
__device__ __forceinline__ void wgmma_s8(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    INTFA_WGMMA_REGISTERS("k32.s32.s8.s8", "");
}
template <s32 kCount>
__device__ __forceinline__ void wgmma_s8(s32 (&d)[kCount], u64 a, u64 b, bool add) {
    static_assert(kCount == 32 || kCount == 48 || kCount == 64 || kCount == 96 || kCount == 128,
                  "a width that is not written out above");
    INTFA_WGMMA_TILES("k32.s32.s8.s8");
}

// O (+)= P V with unsigned P, and signed V or not.
template <s32 kCount>
__device__ __forceinline__ void wgmma_u8_s8(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    INTFA_WGMMA_REGISTERS("k32.s32.u8.s8", "");
}
template <s32 kCount>
__device__ __forceinline__ void wgmma_u8_u8(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    INTFA_WGMMA_REGISTERS("k32.s32.u8.u8", "");
}

// O (+)= P V in float16, V with a row per key: B is transposed on its way. D holds the bits of floats: passed as floats
// they would be moved between two kinds of registers, and the products wait for each other (C7514).
template <s32 kCount>
__device__ __forceinline__ void wgmma_f16(s32 (&d)[kCount], const u32 (&a)[4], u64 b, bool add) {
    INTFA_WGMMA_REGISTERS("k16.f32.f16.f16", ", 1, 1, 1");
}
