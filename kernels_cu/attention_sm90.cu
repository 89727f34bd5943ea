// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on quantised inputs, by warpgroup MMA: int8 Q K^T, int8 or
//             float16 P V (arXiv 2409.16997, Algorithm 1, and the recipes built on it). sm_90a: Hopper alone.
// Grid/Block  1-D grid of at most one block per multiprocessor, which takes items (kBr rows of one head) in turn; a
//             producer warpgroup and kWarps / 4 consumer warpgroups of 64 rows each.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams, and tensor maps of its q, k and v.
// Outputs     out, any strides and float type; lse where asked for; o_flush as scratch for rows of > 65 536 keys.
// Tiles       B_r = 128 or 192 rows, B_c = 64, 96, 128 or 192 keys, D padded to kD.
// Fragments   m64nNk32: warp w of a warpgroup owns rows 16w to 16w + 15, and a lane 4g + t of them what it owns of
//             m16n8k32 tiles side by side (ptx_mma.cuh); S becomes A of the second product in place.
// Shared map  kStages x { K [B_c][D], V [D][64] per 64 keys, [D][32] per 32 where B_c is 96, or float16 [B_c][D] },
//             kItemBuffers x { Q, scales and marks of its rows, scales and means of V, what the head has once },
//             kStages x { scales of K and V, places of sorted keys }, barriers (pipeline.cuh). Tiles lie in the swizzle
//             of their tensor map.
// Pipeline    consumers  | Copy (producer)             | Q K^T        | softmax + quantise P | P V
//             kSerial    | up to j + kStages - 1       | j            | j                    | j
//             otherwise  | up to j + kStages - 1       | j, in flight | j                    | j - 1, under the softmax
//             In series a product is hidden by the other warpgroups alone, of which there can be more: P takes the
//             place of S. Otherwise P V of turn j - 1 is waited for amid the softmax, before P is packed.
// Sync        a pair of mbarriers per stage and per item buffer: full (copies have landed), empty (all warps have left).
//             Warpgroups meet only there.
// Numerics    scores are integers up to the exponent (group scales), the maximum with three operands an instruction; the
//             first of every kCubic groups of 16 keys takes 2^x from a cubic in float16 pairs (ptx_math.cuh), the others
//             from the special function unit. O int32 across tiles while P is relative to the running maximum: rows whose
//             maximum grows are rescaled, as floats where |O| < 2^22 (products_wgmma.cuh), else alone (rescale.cuh). float32 O
//             with a reference per tile or a scale of V per block, whose reference stays until a maximum is 2^20 times larger,
//             and with float16 P, whose reference stays for eight octaves. An exact row sum adds P in float16, in a fixed order.
// Edges       keys beyond kv_len and rows beyond q_len are padding, or rows of the next head; tiles no row of an item sees
//             are not copied, those no row of a warpgroup sees not multiplied; tiles that need no mask do not compute one.
// Limits      int8 Q and K; key_block 64; key_window 0 or 64; a float P relative to the running maximum.
// Twin        cupy_intfa.reference.emulator.attention(key_tile=kBc).
#include "intfa/config.cuh"
#include "intfa/epilogue.cuh"
#include "intfa/flush.cuh"
#include "intfa/masking.cuh"
#include "intfa/params.cuh"
#include "intfa/pipeline.cuh"
#include "intfa/products_wgmma.cuh"

// What a warp of consumers works on.
struct Consumer {
    const AttentionParams& p;
    u32 shared, item;          // shared memory, and the item's buffer in it
    s32 warp, g, t, item_row;  // the item's first row

    __device__ __forceinline__ s32 first_row() const { return item_row + 16 * warp; }
    __device__ __forceinline__ s32 warpgroup_row() const { return item_row + warp / 4 * 64; }
    __device__ __forceinline__ s32 in_item(s32 r) const {  // of the lane's row r; a row of the packing
        const s32 row = 16 * warp + g + 8 * r;
        return kBr > 128 ? min(row, rows_packed(p, item_row) - 1) : row;
    }
    __device__ __forceinline__ bool is_there(s32 r) const { return first_row() + g + 8 * r < p.q_len; }
    __device__ __forceinline__ s64 row_index(s32 r) const {  // of the lane's row r in the packing
        return (s64)load_bh(item) * p.q_pad + first_row() + g + 8 * r;
    }
};

// Scores to floats, those that a row does not see to -inf; `places` are those of sorted keys, in shared memory.
__device__ __forceinline__ void hide(Scores& s, const Consumer& c, u32 places, s32 j0) {
    const bool sorted = c.p.key_index;
    const s32 last = c.first_row() + c.g + c.p.causal_offset;  // key that the lane's first row sees
    const s32 end = c.p.kv_len - j0 - 2 * c.t;                 // behind the last of the lane's columns 8n + e
    const s32 in_block = kSpan == 64 ? 0 : j0 % 64;            // of the tile's first key
#pragma unroll
    for (s32 n = 0; n < kNs; ++n) {
        const s32 place = in_block + 8 * n, block = j0 - in_block + place / 64 * 64;
        const u32 two =
            load_half_word_or(0x100 + (place % 64 + 2 * c.t) * 0x101, places + 8 * n + 2 * c.t, sorted);
#pragma unroll
        for (s32 e = 0; e < 2; ++e) {
            const s32 key = 8 * n + e < end ? (s32)(two >> 8 * e & 255) : 255;  // its place in the block
#pragma unroll
            for (s32 r = 0; r < 2; ++r) {
                s32& x = s[n][2 * r + e];
                if (!kKToken) x = __float_as_int((float)x);
                if (key > min(last + 8 * r - block, 254)) x = __float_as_int(-INTFA_INF);
            }
        }
    }
}

// What the maxima of a tile decide, per row of the lane.
struct Turn {
    float scale[kSpans][2];  // factors of Y, per span of keys
    float m_ref[2];          // reference of P
    float fall[2];           // log2 of the factor of what lies behind
    float weight[2];         // factor of the tile's own sums
    float sum[2];            // of the tile's P, so weighted
    u32 counts;              // sums of the lane's P in bytes, of row 1 in the upper half
    bool grew[2];            // whether any of these rows of the warp has grown
};

// Octaves by which a maximum may pass the reference of O and l. Where P has another, a tile's own, weights are exact enough
// up to many, and a branch that is all but never taken costs nothing.
constexpr float kLag = kTileRef ? 20.0f : kRoom;

// Scores of a tile to their maxima: all that comes before P.
template <bool kMasked>
__device__ __forceinline__ void find_maxima(Scores& s, Rows& rows, Turn& turn, const Consumer& c, u32 scales,
                                            s32 j0) {
#pragma unroll
    for (s32 h = 0; h < kSpans; ++h) {
        const s32 block = kSpan == 64 ? h : (j0 / 32 % 2 + h) / 2;  // of those that the tile touches
        const float k_scale = kKToken ? 1.0f : load_float(scales + 16 * block + 4 * c.t);
#pragma unroll
        for (s32 r = 0; r < 2; ++r)
            turn.scale[h][r] = kKToken   ? rows.c[r]
                               : kMasked ? fmaxf(rows.c[r] * k_scale, kFltMin)
                                         : rows.c[r] * k_scale;
    }
    if constexpr (kKToken) scale_by_token(s, scales + 8 * c.t);
    if constexpr (kMasked) hide(s, c, scales + kPlacesAt, j0);
    constexpr bool kFloats = kMasked || kKToken;
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        const float top = tile_max<kFloats>(s, r, turn.scale), before = rows.m[r];
        const bool grew = top > before + kLag;
        const float own = fmaxf(top, kNoKey);
        turn.grew[r] = __any_sync(0xffffffffu, grew);
        rows.m[r] = grew ? top : before;
        turn.m_ref[r] = kTileRef ? own : rows.m[r];
        turn.weight[r] = kTileRef ? exp2_approx(turn.m_ref[r] - rows.m[r]) : 1.0f;
        turn.fall[r] = before - rows.m[r];
    }
}

// What a lane writes of a row: whether and where, and how it is finished.
struct OutputRow {
    bool there;
    RowEnd end;
    s64 offset;            // elements, of channel 0
    float zero;            // O of a channel whose V is 0, where V has an offset
    const float* flushed;  // sums of the keys before the last flush, or null
    float flushed_weight;
};

__device__ __forceinline__ OutputRow output_row(const Consumer& c, const Rows& rows, float reference, s32 r) {
    const AttentionParams& p = c.p;
    const HeadOf head = load_head(c.item);
    const float l = quad_sum(rows.l[r]), m = rows.m[r] == kNoKey ? -INTFA_INF : rows.m[r];
    const s32 index = c.first_row() + c.g + 8 * r;
    const float mark = load_float(c.item + kQMarkAt + 4 * c.in_item(r)) + head.mark;
    const bool flushed = kLong && !kFloatO && reference != -INTFA_INF;
    const OutputRow row = {c.is_there(r),
                           end_row(p, mark, head.k_scale_max, rows.c[r], m, l),
                           head.out + index * p.out_stride[2],
                           rows.zero[r],
                           flushed ? p.o_flush + c.row_index(r) * kD : nullptr,
                           flushed ? exp2_approx(reference - m) : 0.0f};
    if (p.lse && c.t == 0 && row.there)
        p.lse[(s64)load_bh(c.item) * p.q_len + index] = end_lse(p, row.end, c.row_index(r), m, l);
    return row;
}

// Scales and means of the channels that a lane has of kRun MMA tiles in a row.
constexpr s32 kRun = kPv == kHalf ? 1 : 4;
struct Channels {
    float2 scale[kRun], mean[kRun];
};

__device__ __forceinline__ Channels channels_of(const Consumer& c, const float* v_mean, s32 n) {
    const s32 d = channel_of(n, c.t);
    Channels of;
#pragma unroll
    for (s32 k = 0; k < kRun; ++k) {
        of.scale[k] = kVBlock ? make_float2(1.0f, 1.0f) : load_float2(c.item + kVScaleAt + 4 * (d + 2 * k));
        of.mean[k] = !v_mean       ? make_float2(0.0f, 0.0f)
                     : kMeanShared ? load_float2(c.item + kVMeanAt + 4 * (d + 2 * k))
                                   : __ldg((const float2*)(v_mean + d) + k);
    }
    return of;
}

// The two channels of row r in MMA tile n, finished.
__device__ __forceinline__ float2 finished(const OutputRow& row, const s32 (&o)[4], s32 r, s32 at,
                                           float2 scale, float2 mean) {
    float2 sum = make_float2(float_of(o[2 * r], row.zero), float_of(o[2 * r + 1], row.zero));
    if (kLong && !kFloatO && row.flushed) {
        sum.x = fmaf(row.flushed[at], row.flushed_weight, sum.x);
        sum.y = fmaf(row.flushed[at + 1], row.flushed_weight, sum.y);
    }
    return make_float2(end_element(row.end, sum.x, scale.x, mean.x),
                       end_element(row.end, sum.y, scale.y, mean.y));
}

__device__ __forceinline__ void store(const Consumer& c, Output& o, const Rows& rows,
                                      const float (&reference)[2]) {
    const AttentionParams& p = c.p;
    const OutputRow row[2] = {output_row(c, rows, reference[0], 0), output_row(c, rows, reference[1], 1)};
    const float* v_mean =
        p.v_mean && !kMeanShared ? p.v_mean + kv_head_of(p, load_bh(c.item)) * kD : p.v_mean;
    if (stores_runs<2 * kRun>(p)) {  // what most callers have, without a branch
#pragma unroll
        for (s32 n = 0; n < kNd; n += kRun) {
            const Channels of = channels_of(c, v_mean, n);
#pragma unroll
            for (s32 r = 0; r < 2; ++r) {
                u32 pairs[kRun];
#pragma unroll
                for (s32 k = 0; k < kRun; ++k)
                    pairs[k] = pair_bits(
                        p, finished(row[r], o[n + k], r, 8 * (n + k) + 2 * c.t, of.scale[k], of.mean[k]));
                if (row[r].there) store_pairs((u16*)p.out + row[r].offset + channel_of(n, c.t), pairs);
            }
        }
        return;
    }
    // All else, four MMA tiles at a time, and O moves along: written out, these stores were half of what is compiled.
#pragma unroll 1
    for (s32 n = 0; n < kNd; n += 4) {
#pragma unroll
        for (s32 k = 0; k < 4; ++k) {
            const Channels of = channels_of(c, v_mean, n + k / kRun * kRun);
            const s32 d = channel_of(n + k, c.t);
#pragma unroll
            for (s32 r = 0; r < 2; ++r) {
                const float2 x =
                    finished(row[r], o[k], r, 8 * (n + k) + 2 * c.t, of.scale[k % kRun], of.mean[k % kRun]);
                if (row[r].there && d < p.head_dim)
                    store_pair(p, row[r].offset + d * p.out_stride[3], d + 1 < p.head_dim, x.x, x.y);
            }
        }
#pragma unroll
        for (s32 k = 0; k + 4 < kNd; ++k)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) o[k][e] = o[k + 4][e];
    }
}

// With more than two warpgroups some may see fewer tiles than the item, or have rows behind the last.
constexpr bool kApart = kWarps > 8;

// One item: all tiles that the warpgroup's rows see. What only the rows of others see it lets pass.
__device__ __forceinline__ void attend(const Consumer& c, Ring<kStages>& ring) {
    const AttentionParams& p = c.p;
    const s32 of_item = visible_tiles(p, c.item_row, kBr), row = c.warpgroup_row();
    const s32 tiles = !kApart ? of_item : row < p.q_len ? visible_tiles(p, row, 64) : 0;
    const s32 lane = kBr > 128 ? 4 * c.g + c.t : threadIdx.x % 32;  // the same; either saves one a spill
    Rows rows;
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        rows.c[r] = fmaxf(p.scale_log2 * load_float(c.item + kQScaleAt + 4 * c.in_item(r)), kFltMin);
        rows.m[r] = kNoKey;
        rows.l[r] = 0.0f;
        rows.zero[r] = 0.0f;
    }
    Queries q;
    load_queries(q, c.item, c.warp);
    Output o;
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 0; e < 4; ++e) o[n][e] = kZero;
    settle(o);

    const u64 q_tile = tile_at<kQkChunk>(c.item + c.warp / 4 * 64 * kQkChunk);
    const u64 k_tiles = tile_at<kQkChunk>(c.shared);
    const u64 v_tiles = kPv == kHalf ? tile_at<kVChunk>(c.shared + kTileK, kBc * kVChunk)
                                     : tile_at<kVChunk>(c.shared + kTileK);
    const s32 stride = p.last_to_first ? -kBc : kBc;
    s32 j0 = p.last_to_first ? (tiles - 1) * kBc : 0;
    Scores s;
    Probabilities even, odd;  // one of them, unless kTwoP
    Part part;
    float weight[2] = {0.0f, 0.0f};                 // of the tile whose P V is in flight
    float reference[2] = {-INTFA_INF, -INTFA_INF};  // of the flushed sums
    u32 counts = 0;                                 // sums of its P in bytes
    s32 summed = 0;                                 // turns that have been taken up

    auto scores = [&](const Ring<kStages>& at) {
        barrier_wait(stage_full(c.shared, at.i), at.parity);
        start_scores(s, q, q_tile, moved(k_tiles, at.i * kStageBytes));
        wgmma_commit();
    };
    auto maxima = [&](Turn& turn, u32 stage) {
        const u32 scales = c.shared + kScalesAt + stage * kScaleBytes;
        const bool masked =
            needs_mask(p, j0, c.warpgroup_row());  // the same for the warps that wait together
        if (masked)
            find_maxima<true>(s, rows, turn, c, scales, j0);
        else
            find_maxima<false>(s, rows, turn, c, scales, j0);
        return masked;
    };
    auto leave_stage = [&]() {
        __syncwarp();  // other lanes have read scales there
        if (lane == 0) barrier_arrive(stage_empty(c.shared, ring.i));
        ring.advance();
    };
    auto let_pass = [&]() {
        for (s32 i = tiles; kApart && i < of_item; ++i) {
            barrier_wait(stage_full(c.shared, ring.i), ring.parity);
            leave_stage();
        }
    };
    // P V of the tile before, in parts where O is in floats: one part's product runs while the one before is added.
    auto start_part = [&](s32 i, const Probabilities& pr) {
        if constexpr (kParts == 0)
            start_output(o, pr, moved(v_tiles, ring.i * kStageBytes));
        else
            start_part_of_output(part, pr, moved(v_tiles, ring.i * kStageBytes + i * kPartChannels * 64));
        wgmma_commit();
    };
    auto end_part = [&](s32 i) {
        if (kVOffset && i == 0) counts = quad_sums(counts);  // under the product
        wgmma_wait<0>();
        if constexpr (kVOffset)
            if (i == 0) add_zero(rows, counts, weight);
        if constexpr (kParts == 0) {
            settle(o);
        } else {
            settle(part);
            add_part(o, part, weight, c.shared + kScalesAt + ring.i * kScaleBytes + 4 * kScales + 32 * c.t,
                     i);
        }
    };
    auto softmax = [&](Turn& turn, bool masked, Probabilities& pr, bool behind) {
        auto release = [&]() {
            if (behind) end_part(max(kParts - 1, 0));
        };
        float sum[2];
        u32 count[2];
        if (masked)
            probabilities<true>(s, turn.scale, turn.m_ref, p.log2_top, pr, sum, count, release);
        else
            probabilities<kKToken>(s, turn.scale, turn.m_ref, p.log2_top, pr, sum, count, release);
#pragma unroll
        for (s32 r = 0; r < 2; ++r) turn.sum[r] = kTileRef ? sum[r] * turn.weight[r] : sum[r];
        turn.counts = count[0] | count[1] << 16;
    };
    // Rows whose maximum has grown are rescaled; rows of very many keys are emptied before they could overflow.
    auto take_up = [&](const Turn& turn) {
        const s32 in_o = kSerial ? summed : summed + 1;  // tiles
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            if (turn.grew[r]) {
                const float alpha = exp2_approx(turn.fall[r]);
                if (!kSerial || in_o > 0) rescale(o, r, alpha, rows.l[r], in_o * kBc);
                rows.l[r] *= alpha;
                rows.zero[r] *= alpha;
            }
            rows.l[r] += turn.sum[r];
            weight[r] = turn.weight[r] * kPartUnit;
            if constexpr (kLong && !kFloatO) {
                if ((!kSerial || in_o > 0) && in_o % kFlushTiles == 0 &&
                    c.is_there(r))  // else the scratch is another head's
                    flush<kZero>(p.o_flush + c.row_index(r) * kD, reference[r], rows.m[r], r, c.t, o);
            }
        }
        counts = turn.counts;
        ++summed;
    };
    auto add_values = [&](const Probabilities& now) {
#pragma unroll
        for (s32 i = 0; i < max(kParts, 1); ++i) {
            wgmma_fence();
            start_part(i, now);
            end_part(i);
        }
        leave_stage();
    };
    auto advance = [&](const Probabilities& now, Probabilities& next) {
        Ring<kStages> ahead = ring;
        ahead.advance();
        j0 += stride;
        scores(ahead);
        start_part(0, now);
        wgmma_wait<1>();
        settle(s);
        Turn turn;
        const bool masked = maxima(turn, ahead.i);
#pragma unroll
        for (s32 i = 0; i + 1 < kParts; ++i) {
            end_part(i);
            wgmma_fence();
            start_part(i + 1, now);
        }
        softmax(turn, masked, next, true);
        leave_stage();
        take_up(turn);
    };
    if (p.last_to_first) let_pass();
    if constexpr (kSerial) {
        for (s32 i = 0; i < tiles; ++i, j0 += stride) {
            scores(ring);
            wgmma_wait<0>();
            settle(s);
            Turn turn;
            const bool masked = maxima(turn, ring.i);
            softmax(turn, masked, even, false);
            take_up(turn);
            add_values(even);
        }
    } else if (tiles > 0) {
        scores(ring);
        wgmma_wait<0>();
        settle(s);
        Turn first;
        const bool masked = maxima(first, ring.i);
        softmax(first, masked, even, false);
        weight[0] = first.weight[0] * kPartUnit, weight[1] = first.weight[1] * kPartUnit;
        rows.l[0] = first.sum[0], rows.l[1] = first.sum[1];
        counts = first.counts;
        s32 i = 1;
        if constexpr (kTwoP) {
            for (; i + 1 < tiles; i += 2) {
                advance(even, odd);
                advance(odd, even);
            }
            if (i < tiles) {
                advance(even, odd);
                add_values(odd);
            } else {
                add_values(even);
            }
        } else {
            for (; i < tiles; ++i) advance(even, even);
            add_values(even);
        }
    }
    if (!p.last_to_first) let_pass();
    store(c, o, rows, reference);
}

__device__ __forceinline__ void consume(const AttentionParams& p, u32 shared, s32 warp) {
    const s32 lane = threadIdx.x % 32, items = work_items(p);
    Ring<kStages> ring = {0, 0};
    Ring<kItemBuffers> item_ring = {0, 0};
    for (s32 item = blockIdx.x; item < items; item += gridDim.x) {
        // By a reduction, which leaves it in a uniform register.
        const u32 buffer = __reduce_or_sync(0xffffffffu, shared + kItemsAt + item_ring.i * kItemBytes);
        barrier_wait(item_full(shared, item_ring.i), item_ring.parity);
        const Consumer c = {p, shared, buffer, warp, lane / 4, lane % 4, load_first_row(buffer)};
        attend(c, ring);
        __syncwarp();
        if (lane == 0) barrier_arrive(item_empty(shared, item_ring.i));
        item_ring.advance();
    }
}

extern "C" __global__ void __launch_bounds__(kThreads + 128, 1)
    attention_sm90(const __grid_constant__ AttentionParams p, const __grid_constant__ TensorMap q_map,
                   const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map) {
    extern __shared__ __align__(1024) u8 shared_bytes[];
    const u32 first = shared_address(shared_bytes);
    const u32 shared =
        kSerial ? __reduce_or_sync(0xffffffffu, first) : first;      // reduced: in a uniform register
    const s32 warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // so that the compiler knows it uniform
    if (threadIdx.x == 0) init_barriers(shared);
    __syncthreads();
    if (warp < 4) {
        give_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, q_map, k_map, v_map, shared);
    } else {
        take_registers<kConsumerRegisters>();
        consume(p, shared, warp - 4);
    }
}
