// The order in which the keys of a block are stored: by magnitude, so that keys which share a group scale are of a size
// (cupy_intfa/quantize/keys.py, sorted_key_index).
#pragma once
#include "quantize_lanes.cuh"

// Rank of a key among the 64 magnitudes, ties by index. The kLanes / 4 lanes that keep this row share the work: each
// compares it with its part of the keys.
__device__ __forceinline__ s32 rank_of(const u32 (&magnitude)[kBlockRows], s32 row) {
    const u32 mine = magnitude[row];
    u32 rank = 0;
#pragma unroll 16
    for (s32 i = 0; i < 4 * kBlockRows / kLanes; ++i) {
        const s32 other = threadIdx.x % kLanes / 4 + kLanes / 4 * i;
        rank += magnitude[other] < mine + (other < row);
    }
#pragma unroll
    for (s32 step = 4; step < kLanes; step *= 2) rank += __shfl_xor_sync(kAllLanes, rank, step);
    return (s32)rank;
}

// Stored positions of group g, those p with p % 8 / 2 == g, among the first `count`.
__device__ __forceinline__ s32 group_size(s32 g, s32 count) {
    return count / 8 * 2 + min(max(count % 8 - 2 * g, 0), 2);
}

// Ranks are dealt to the positions group by group; a short block uses the positions that it has, padding stays last.
__device__ __forceinline__ s32 place_of_rank(s32 rank, s32 count) {
    if (rank >= count) return rank;
    s32 g = 0;
#pragma unroll
    for (s32 next = 0; next < 3; ++next) {
        const s32 size = group_size(g, count);
        if (rank < size) break;
        rank -= size, ++g;
    }
    return rank / 2 * 8 + 2 * g + rank % 2;
}
