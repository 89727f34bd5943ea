// Stages of A and B in shared memory, filled by the threads of a block: rows of kBk bytes in units of 16.
//
// A block meets once per stage, before it reads one and refills the one that it read before. Units beyond a matrix are
// zero: they add nothing.
#pragma once
#include "gemm_params.cuh"
#include "ptx_copy.cuh"

constexpr s32 kUnits = kBk / 16;

__device__ __forceinline__ void copy16_or_zero(u32 to, const u8* from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
#else
    const uint4 x = is_there ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
#endif
}

// kRows rows of depth k to kBk more, from row `first`; Place says where a unit of a row lies.
template <s32 kRows, class Place>
__device__ __forceinline__ void fill_rows(u32 to, const u8* matrix, s64 stride, s32 first, s32 rows, s32 k,
                                          s32 depth, Place place) {
    static_assert(kBlock % kUnits == 0, "a thread stays in its column of units");
    const s32 unit = threadIdx.x % kUnits;
    const bool is_deep = k + 16 * unit < depth;
#pragma unroll
    for (s32 r = threadIdx.x / kUnits; r < kRows; r += kBlock / kUnits) {
        const bool is_there = is_deep && first + r < rows;
        const u8* from = matrix + (is_there ? (first + r) * stride + k + 16 * unit : 0);
        if (kRows % (kBlock / kUnits) == 0 || r < kRows) copy16_or_zero(to + place(r, unit), from, is_there);
    }
}

// Unit by unit, all rows of one before the next: 16 rows of a unit are 256 bytes in a row.
template <s32 kRows>
struct ByUnit {
    __device__ __forceinline__ u32 operator()(s32 row, s32 unit) const { return (unit * kRows + row) * 16; }
};

// All of the depth: `fill(stage, k)` starts copies, `multiply(stage)` reads them.
template <class Fill, class Multiply>
__device__ __forceinline__ void walk_depth(s32 depth, Fill fill, Multiply multiply) {
    const s32 steps = tiles_of(depth, kBk);
#pragma unroll
    for (s32 i = 0; i < kRing - 1; ++i) {
        if (i < steps) fill(i * kPart, i * kBk);
        copy_commit();
    }
    u32 now = 0, next = (kRing - 1) * kPart;
    for (s32 i = 0; i < steps; ++i) {
        copy_wait<kRing - 2>();
        __syncthreads();  // step i has arrived for all, and all have left the stage of step i - 1
        if (i + kRing - 1 < steps) fill(next, (i + kRing - 1) * kBk);
        copy_commit();
        multiply(now);
        now = now + kPart == kRingBytes ? 0 : now + kPart;
        next = next + kPart == kRingBytes ? 0 : next + kPart;
    }
    copy_wait<0>();
}
