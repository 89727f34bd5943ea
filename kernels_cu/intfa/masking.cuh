// Which tiles a block visits, and which scores of a tile a row does not see.
#pragma once
#include "config.cuh"
#include "params.cuh"

// Key tiles that any of the rows [first_row, first_row + rows) sees.
__device__ __forceinline__ s32 visible_tiles(const AttentionParams& p, s32 first_row, s32 rows) {
    s32 last_row = min(first_row + rows, p.q_len) - 1;
    s32 keys = min(p.kv_len, last_row + p.causal_offset + 1);
    if (kBc % 64 != 0) keys = (keys + 63) / 64 * 64;  // sorted: any of a block's places may be the last key's
    return keys > 0 ? (keys + kBc - 1) / kBc : 0;
}

// Keys are sorted inside their block of 64: a step that ends amid a block may hold any key of it.
__device__ __forceinline__ s32 first_key(s32 j0) { return kStep % 64 != 0 ? j0 / 64 * 64 : j0; }
__device__ __forceinline__ s32 behind_last_key(s32 j0) {
    return kStep % 64 != 0 ? (j0 + kStep + 63) / 64 * 64 : j0 + kStep;
}

// The step at key j0 may have a key that row `first_row`, the most restricted of its warp, does not see.
__device__ __forceinline__ bool needs_mask(const AttentionParams& p, s32 j0, s32 first_row) {
    return behind_last_key(j0) > min(p.kv_len, first_row + p.causal_offset + 1);
}

// Key at stored position j (`place`: its original place inside its block of 64) is hidden from `row`.
__device__ __forceinline__ bool is_hidden(const AttentionParams& p, s32 j, s32 place, s32 row) {
    return j >= p.kv_len || (j & ~63) + place > row + p.causal_offset;
}
