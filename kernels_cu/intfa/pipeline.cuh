// The pipeline of attention_sm90: what a block works on, where tiles lie in shared memory, and the warp that brings them.
#pragma once
#include "config.cuh"
#include "masking.cuh"
#include "params.cuh"
#include "ptx_bulk.cuh"
#include "ptx_copy.cuh"

constexpr s32 kProducerRegisters = 24;
// Of 168 a thread with two warpgroups of consumers, 128 with three and 96 with four, which the block has at its start;
// more than the producer gives back would be waited for without end.
constexpr s32 kConsumerRegisters = kWarps == 8 ? 240 : kWarps == 12 ? 160 : 112;

// A tile is cut into chunks of columns as wide as a swizzle span.
constexpr s32 kQkChunk = kD % 128 == 0 ? 128 : kD % 64 == 0 ? 64 : 32;    // bytes, Q and K
constexpr s32 kVKeys = kBc % 64 == 0 ? 64 : 32;                           // keys of a box of V in 8 bits
constexpr s32 kVChunk = kPv != kHalf ? kVKeys : kD % 64 == 0 ? 128 : 64;  // bytes, V
constexpr u32 kTileK = kBc * kD, kTileV = kBc * kD * (kPv == kHalf ? 2 : 1);
constexpr u32 kStageBytes = kTileK + kTileV;
constexpr s32 kScales = kKToken ? kBc : (kBc + 63) / 64 * 4;  // of the blocks that a tile touches
constexpr s32 kVScales = kVBlock ? kD * (kBc / 64) : 0;
constexpr u32 kPlacesAt = 4 * (kScales + kVScales);  // of the keys in their block, where they are sorted
constexpr u32 kScaleBytes = kPlacesAt + kBc;

// What an item needs once: Q, its scales and marks, scales and means of V, and what the producer finds for all consumers.
// Two of them where they fit, so that the next item's are there when this one ends.
constexpr bool kMeanShared = kD < 256;  // where it fits beside three stages
constexpr u32 kTileQ = kBr * kD;
constexpr u32 kQScaleAt = kTileQ, kQMarkAt = kQScaleAt + 4 * kBr, kVScaleAt = kQMarkAt + 4 * kBr,
              kVMeanAt = kVScaleAt + 4 * kD, kWorkAt = kVMeanAt + (kMeanShared ? 4 * kD : 0),
              kHeadAt = kWorkAt + 16;
constexpr u32 kItemBytes = kItemBuffers == 1 ? kHeadAt + 16 : (kHeadAt + 16 + 1023) / 1024 * 1024;

constexpr u32 kItemsAt = kStages * kStageBytes, kScalesAt = kItemsAt + kItemBuffers * kItemBytes,
              kBarriersAt = kScalesAt + kStages * kScaleBytes;
constexpr u32 kSharedBytes = kBarriersAt + 16 * (kStages + kItemBuffers);
static_assert(kM == 1 && (kWarps == 8 || kWarps == 12 || kWarps == 16),
              "INTFA_WARPS: two to four warpgroups, of 64 rows each");
static_assert(kQk == kInt8 && kStep == kBc, "INTFA_QK, INTFA_STEP: int8, and a step is a tile");
static_assert(kStageBytes % 1024 == 0 && kTileK % 1024 == 0,
              "a tile starts where its swizzle pattern starts");
#ifdef INTFA_SHARED_BYTES
static_assert(kSharedBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

// Two barriers for each stage and for each item buffer: it is full; it is empty.
__device__ __forceinline__ u32 stage_full(u32 shared, u32 stage) { return shared + kBarriersAt + 16 * stage; }
__device__ __forceinline__ u32 stage_empty(u32 shared, u32 stage) { return stage_full(shared, stage) + 8; }
__device__ __forceinline__ u32 item_full(u32 shared, u32 i) { return stage_full(shared, kStages + i); }
__device__ __forceinline__ u32 item_empty(u32 shared, u32 i) { return stage_empty(shared, kStages + i); }

__device__ __forceinline__ void init_barriers(u32 shared) {
    for (u32 i = 0; i < kStages + kItemBuffers; ++i) {
        barrier_init(stage_full(shared, i), 1);
        barrier_init(stage_empty(shared, i), kWarps);
    }
    barrier_init_done();
}

// A place in a ring of buffers, and the parity of its phase.
template <u32 kCount>
struct Ring {
    u32 i, parity;
    __device__ __forceinline__ void advance() {
        if (++i == kCount) i = 0, parity ^= 1;
    }
};

// A block of rows of one head. Items are sections of heads whose K and V fit in the L2 cache together; in a section the
// longest causal rows of all its heads come first.
struct Work {
    s32 bh, first_row;
};

__device__ __forceinline__ Work work_at(const AttentionParams& p, s32 item) {
    const s32 row_blocks = (p.q_len + kBr - 1) / kBr;
    const s32 section = item / (p.section * row_blocks);
    const s32 first_head = section * p.section, rest = item - first_head * row_blocks;
    const s32 heads = min(p.section, p.all_heads - first_head);
    return {first_head + rest % heads, (row_blocks - 1 - rest / heads) * kBr};
}

__device__ __forceinline__ s32 work_items(const AttentionParams& p) {
    return (p.q_len + kBr - 1) / kBr * p.all_heads;
}

__device__ __forceinline__ s64 kv_head_of(const AttentionParams& p, s32 bh) {
    return (s64)(bh / p.heads) * p.kv_heads + bh % p.heads / (p.heads / p.kv_heads);
}

// What the producer leaves in an item buffer, so that no consumer divides or waits for device memory.
struct HeadOf {
    s64 out;  // elements, of the head's first row
    float mark, k_scale_max;
};

__device__ __forceinline__ void store_work(const AttentionParams& p, const Work& work, float mark,
                                           float k_scale_max, u32 item) {
    const s64 out = work.bh / p.heads * p.out_stride[0] + work.bh % p.heads * p.out_stride[1];
    store_words(item + kWorkAt, work.bh, work.first_row, 0, 0);
    store_words(item + kHeadAt, (u32)out, (u32)(out >> 32), __float_as_uint(mark),
                __float_as_uint(k_scale_max));
}
__device__ __forceinline__ s32 load_bh(u32 item) { return (s32)load_words(item + kWorkAt).x; }
// By a reduction, which leaves it in a uniform register.
__device__ __forceinline__ s32 load_first_row(u32 item) {
    return (s32)__reduce_or_sync(0xffffffffu, load_words(item + kWorkAt).y);
}
__device__ __forceinline__ HeadOf load_head(u32 item) {
    const uint4 words = load_words(item + kHeadAt);
    HeadOf head = {0, __uint_as_float(words.z), __uint_as_float(words.w)};
    asm("mov.b64 %0, {%1, %2};" : "=l"(head.out) : "r"(words.x), "r"(words.y));
    return head;
}

// Rows of the item that the packing has, padding included; of Q a box brings what lies behind, which nobody stores.
__device__ __forceinline__ s32 rows_packed(const AttentionParams& p, s32 first_row) {
    return min(kBr, p.q_pad - first_row);
}

// Bring what the item needs once.
__device__ __forceinline__ void copy_item(const AttentionParams& p, const TensorMap& q_map, const Work& work,
                                          s64 kv, u32 to, u32 full) {
    const s64 row = (s64)work.bh * p.q_pad + work.first_row;
    const s32 rows = rows_packed(p, work.first_row);
    barrier_expect(full, kTileQ + 8 * rows + (kVBlock ? 0 : 4 * kD) + (kMeanShared && p.v_mean ? 4 * kD : 0));
#pragma unroll
    for (s32 c = 0; c < kD / kQkChunk; ++c)
        copy_box(to + c * kBr * kQkChunk, q_map, c * kQkChunk, (s32)row, full);
    copy_line(to + kQScaleAt, p.q_scale + row, 4 * rows, full);
    copy_line(to + kQMarkAt, p.q_mark + row, 4 * rows, full);
    if constexpr (!kVBlock) copy_line(to + kVScaleAt, p.v_scale + kv * kD, 4 * kD, full);
    if (kMeanShared && p.v_mean) copy_line(to + kVMeanAt, p.v_mean + kv * kD, 4 * kD, full);
}

// Bring the tile at key j0 of a head whose packing starts at key `head`, its values and their scales. Where the packing
// ends in the tile, boxes bring what lies behind, and lines the head's first scales and places: is_hidden tells.
__device__ __forceinline__ void copy_stage(const AttentionParams& p, const TensorMap& k_map,
                                           const TensorMap& v_map, s32 head, s32 j0, u32 to, u32 scales,
                                           u32 full) {
    const s32 key = head + j0, left = p.kv_pad - j0;
    const s32 places = min(kBc, left), k_scales = kKToken ? places : min(kScales, (left + 63) / 64 * 4);
    barrier_expect(full, kStageBytes + kPlacesAt + (p.key_index ? kBc : 0));
#pragma unroll
    for (s32 c = 0; c < kD / kQkChunk; ++c) copy_box(to + c * kBc * kQkChunk, k_map, c * kQkChunk, key, full);
    copy_line(scales, p.k_scale + (kKToken ? key : key / 64 * 4), 4 * k_scales, full);
    if constexpr (kPv == kHalf) {
#pragma unroll
        for (s32 c = 0; c < 2 * kD / kVChunk; ++c)
            copy_box(to + kTileK + c * kBc * kVChunk, v_map, c * kVChunk / 2, key, full);
    } else {
#pragma unroll
        for (s32 j = 0; j < kBc; j += kVKeys)
            copy_box5(to + kTileK + j * kD, v_map, (key + j) % 64, (key + j) / 64 * (kD / 32), full);
    }
    if constexpr (kVBlock)
        copy_line(scales + 4 * kScales, p.v_scale + (s64)(key / 64) * kD, 4 * kVScales, full);
    if (p.key_index) copy_line(scales + kPlacesAt, p.key_index + key, places, full);
    if (128 % kBc != 0 && places < kBc) {
        if (k_scales < kScales)
            copy_line(scales + 4 * k_scales, p.k_scale + (kKToken ? head : head / 16),
                      4 * (kScales - k_scales), full);
        if (p.key_index) copy_line(scales + kPlacesAt + places, p.key_index + head, kBc - places, full);
    }
}

// One thread: brings every item and its key tiles, as buffers become free.
__device__ __forceinline__ void produce(const AttentionParams& p, const TensorMap& q_map,
                                        const TensorMap& k_map, const TensorMap& v_map, u32 shared) {
    const s32 items = work_items(p);
    Ring<kStages> ring = {0, 1};
    Ring<kItemBuffers> item_ring = {0, 1};
    for (s32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Work work = work_at(p, item);
        const s64 kv = kv_head_of(p, work.bh);
        const s32 tiles = visible_tiles(p, work.first_row, kBr);
        const float mark = load_global(p.kv_mark + kv), k_scale_max = load_global(p.k_scale_max + kv);
        const u32 buffer = shared + kItemsAt + item_ring.i * kItemBytes;
        barrier_wait(item_empty(shared, item_ring.i), item_ring.parity);
        store_work(p, work, mark, k_scale_max, buffer);
        copy_item(p, q_map, work, kv, buffer, item_full(shared, item_ring.i));
        item_ring.advance();
        for (s32 i = 0; i < tiles; ++i) {
            const s32 j0 = (p.last_to_first ? tiles - 1 - i : i) * kBc;
            barrier_wait(stage_empty(shared, ring.i), ring.parity);
            copy_stage(p, k_map, v_map, (s32)kv * p.kv_pad, j0, shared + ring.i * kStageBytes,
                       shared + kScalesAt + ring.i * kScaleBytes, stage_full(shared, ring.i));
            ring.advance();
        }
    }
}
