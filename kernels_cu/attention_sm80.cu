// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on quantised inputs, by warp-level MMA: int8, float16 or
//             8-bit float products (arXiv 2409.16997, Algorithm 1, and the recipes built on it). sm_75 and later.
// Grid/Block  1-D grid, one block per (batch, query head, kBr rows), heads of a KV head side by side, a head's longest
//             causal rows first; 32 kWarps threads, each warp 16 kM rows.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams.
// Outputs     out, any strides and float type; lse where asked for; o_flush as scratch for rows of > 65 536 keys.
// Tiles       B_r = 16 kM kWarps rows, B_c = 64 or 128 keys, the softmax in steps of kStep of them, D padded to kD.
// Fragments   m16n8k32: lane 4g + t owns rows g, g + 8 and columns 2t, 2t + 1 of each 8; Q stays in registers as A
//             (or in shared memory), S becomes A of the second product in place (the packing permutes the keys of V).
// Shared map  kStages x { K [B_c][D], V [B_c / 64][D][64] or float16 [B_c][D], scales of K, of V }, then Q where it stays;
//             rows swizzled (swizzle.cuh): neither ldmatrix nor a copy meets a bank twice.
// Pipeline    tile j     | Copy                      | Q K^T  | softmax + quantise P | P V
//             iteration  | j + kAhead, behind Q K^T  | j      | j                    | j
// Sync        kSlack 0: one __syncthreads per tile, after cp.async.wait_group; warps run free in between. Else two
//             mbarriers per stage: each warp arrives on full when its copies of the next tile have come, in the midst of
//             this one, and on empty when it has left the tile; so that the slowest warp holds nobody up.
// Numerics    scores biased by 0x4B400000 (online_softmax.cuh); O int32 across tiles while P is relative to the running
//             maximum: a row whose maximum grows is rescaled alone, its neighbours' integers stay as they are;
//             float32 O with a reference per tile or a scale of V per block. l float32, by an MMA with ones.
// Edges       keys beyond kv_len and rows beyond q_len are padding; tiles no row sees are not visited, tiles that need
//             no mask do not compute one.
// Limits      key_block 64; key_window 0 or 64; 8-bit floats from sm_89 on.
// Twin        cupy_intfa.reference.emulator.attention(key_tile=kStep).
#include "intfa/config.cuh"
#include "intfa/epilogue.cuh"
#include "intfa/flush.cuh"
#include "intfa/masking.cuh"
#include "intfa/online_softmax.cuh"
#include "intfa/params.cuh"
#include "intfa/products.cuh"
#include "intfa/ptx_copy.cuh"
#include "intfa/stages.cuh"

// Scores that a row does not see become -inf. Places of sorted keys are found and read here, where few tiles come; with
// barriers of its own a build has no two registers to hold their address through the loop.
__device__ __forceinline__ void hide(s32 (&s)[kM][kNs][4], const AttentionParams& p, s32 kv, s32 j0,
                                     s32 first_row, s32 t) {
    if constexpr (kSlack > 0) asm volatile("" : "+r"(kv));  // not known before: nothing is worked out ahead
    const u8* places = p.key_index ? p.key_index + (s64)kv * p.kv_pad : nullptr;
#pragma unroll
    for (s32 n = 0; n < kNs; ++n)
#pragma unroll
        for (s32 e = 0; e < 2; ++e) {
            const s32 j = j0 + 8 * n + 2 * t + e, place = places ? places[j] : j % 64;
#pragma unroll
            for (s32 m = 0; m < kM; ++m)
#pragma unroll
                for (s32 r = 0; r < 2; ++r)
                    if (is_hidden(p, j, place, first_row + 16 * m + 8 * r))
                        s[m][n][2 * r + e] = (s32)kMinusInfinity;
        }
}

// The factors of this lane's scores, per span of keys and row.
__device__ __forceinline__ void load_scales(float (&scale)[kBlocks][2], const Rows& rows, u32 k_scale) {
#pragma unroll
    for (s32 h = 0; h < kBlocks; ++h)
#pragma unroll
        for (s32 r = 0; r < 2; ++r)
            scale[h][r] = kKToken ? rows.c[r] : fmaxf(rows.c[r] * load_float(k_scale + 16 * h), kFltMin);
}

// Bring the running maxima to those of a step; O and l follow where one has grown.
__device__ __forceinline__ void raise_maxima(Rows (&rows)[kM], Output& o, const float (&top)[kM][2]) {
    bool grew = false;
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
        grew = grew || top[m][0] > rows[m].m[0] + kRoom || top[m][1] > rows[m].m[1] + kRoom;
    if (!__any_sync(0xffffffffu, grew)) return;
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            if (top[m][r] >
                rows[m].m[r] + kRoom) {  // lanes of rows that have grown: the others' bits stay as they are
                const float alpha = exp2_approx(rows[m].m[r] - top[m][r]);
                rescale(o[m], r, alpha, rows[m].l[r]);
                rows[m].l[r] *= alpha;
                rows[m].m[r] = top[m][r];
            }
        }
}

// Finish 8 rows whose sums lie in shared memory; lane 4g + t brings c, m, l and the flushed sums' reference of row g.
__device__ __forceinline__ void store_rows(const AttentionParams& p, const float* sums, s32 bh, s64 kv,
                                           s32 first_row, float c, float m, float l, float reference) {
    const s32 lane = threadIdx.x % 32, b = bh / p.heads, h = bh % p.heads;
#pragma unroll 1
    for (s32 i = 0; i < 8 && first_row + i < p.q_len; ++i) {
        const s32 row = first_row + i;
        const s64 row_index = (s64)bh * p.q_pad + row;
        const float row_m = __shfl_sync(0xffffffffu, m, 4 * i), row_l = __shfl_sync(0xffffffffu, l, 4 * i);
        const float row_reference = __shfl_sync(0xffffffffu, reference, 4 * i);
        const RowEnd end = end_row(p, row_index, kv, __shfl_sync(0xffffffffu, c, 4 * i), row_m, row_l);
        const s64 offset = b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2];
#pragma unroll 1
        for (s32 d = 2 * lane; d < p.head_dim; d += 64) {
            float value[2];
#pragma unroll
            for (s32 e = 0; e < 2; ++e) {
                float sum = sums[i * kD + d + e];
                if (kLong && !kFloatO && row_reference != -INTFA_INF)
                    sum = fmaf(p.o_flush[row_index * kD + d + e], exp2_approx(row_reference - row_m), sum);
                float v_scale = kVBlock ? 1.0f : p.v_scale[kv * kD + d + e];
                value[e] = end_element(end, sum, v_scale, p.v_mean ? p.v_mean[kv * kD + d + e] : 0.0f);
            }
            store_pair(p, offset + d * p.out_stride[3], d + 1 < p.head_dim, value[0], value[1]);
        }
        if (p.lse && lane == 0) p.lse[(s64)bh * p.q_len + row] = end_lse(p, end, row_index, row_m, row_l);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, INTFA_MIN_BLOCKS)
    attention_sm80(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(128) u8 shared_bytes[];
    const s32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const s32 warp = uniform(threadIdx.x / 32);

    const s32 row_blocks = (p.q_len + kBr - 1) / kBr;
    const s32 bh = uniform(blockIdx.x / row_blocks);
    const s32 block = row_blocks - 1 - (blockIdx.x - bh * row_blocks);  // the longest causal rows start first
    const s32 kv = bh / p.heads * p.kv_heads + bh % p.heads / (p.heads / p.kv_heads);
    const s32 warp_row = block * kBr + warp * 16 * kM;
    const s64 warp_index = (s64)bh * p.q_pad + warp_row;

    const s32 tiles = visible_tiles(p, block * kBr, kBr);
    const u32 stages = shared_address(shared_bytes);
    const Places at = places_in(stages);
    Source from = source_of(p, kv, tiles);
    if constexpr (kSlack > 0) init_barriers(stages);
    if constexpr (kQShared) {
        const s64 first_unit = ((s64)bh * p.q_pad + block * kBr) * kQkRow + 16 * threadIdx.x;
        copy_tile<kBr, kQkRow>(stages + kStagesBytes + copy_place<kQkRow>(), (const u8*)p.q + first_unit);
    }
#pragma unroll
    for (s32 i = 0; i < kAhead; ++i)
        if (tiles > 0) fill_stage({i * (u32)sizeof(Stage), 0}, at, from, i + 1 < tiles);

    const u32 q_rows =
        stages + kStagesBytes + warp * 16 * kM * kQkRow + swizzled<kQkRow>(lane % 16, lane / 16);
    Queries q;
    load_queries(q, (const u8*)p.q + warp_index * kQkRow, g, t);
    Rows rows[kM];
    Output o;
    float reference[kM][2];  // of the flushed sums
    bool any_bias = false;
#pragma unroll
    for (s32 m = 0; m < kM; ++m) {
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            rows[m].c[r] = fmaxf(p.scale_log2 * p.q_scale[warp_index + 16 * m + g + 8 * r], kFltMin);
            rows[m].m[r] = kNoKey;
            rows[m].l[r] = 0.0f;
            reference[m][r] = -INTFA_INF;
            rows[m].bias[r] = may_fold(rows[m].c[r] * p.k_scale_max[kv]) ? kScoreBiasFloat : 0.0f;
            any_bias = any_bias || rows[m].bias[r] == 0.0f;
        }
#pragma unroll
        for (s32 n = 0; n < kNd; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) o[m][n][e] = 0;
    }
    any_bias = kBiased && __any_sync(0xffffffffu, any_bias);  // of any row of the warp

    Slot tile = {0, 0}, fill = {kAhead * (u32)sizeof(Stage), 1};
    if constexpr (kSlack > 0) publish_stage(stages, tile);
    for (s32 i = 0; i < tiles; ++i) {
        if constexpr (kSlack == 0) {
            copy_wait<kAhead - 1>();
            __syncthreads();  // tile i has arrived for all, and all have left the stage of tile i - 1
        } else {
            while (!barrier_passed(stages + tile.offset + kStageFull, tile.parity)) continue;
        }
#pragma unroll
        for (s32 step = 0; step < kBc; step += kStep) {
            const s32 first = kBc == kStep ? 0 : p.last_to_first ? kBc - kStep - step : step;
            const s32 j0 = (p.last_to_first ? tiles - 1 - i : i) * kBc + first;
            float scale[kM][kBlocks][2];
#pragma unroll
            for (s32 m = 0; m < kM; ++m)
                load_scales(scale[m], rows[m], tile.offset + at.k_scale + first / 64 * 16);
            s32 s[kM][kNs][4];
            first_product(s, q, q_rows, tile.offset + at.k + first * kQkRow);
            if (step == 0) {
                if constexpr (kSlack > 0)
                    while (!barrier_passed(stages + fill.offset + kStageEmpty, fill.parity)) continue;
                fill_stage(fill, at, from, i + kAhead + 1 < tiles);
                fill = next(fill);
            }
            if constexpr (kSlack > 0)
                if (step + kStep == kBc) publish_stage(stages, next(tile));
            if constexpr (kKToken) {
#pragma unroll
                for (s32 m = 0; m < kM; ++m) scale_by_token(s[m], tile.offset + at.k_scale + 4 * first);
            }
            if (first_key(j0) > warp_row + 16 * kM - 1 + p.causal_offset)
                continue;  // no row of this warp sees the step
            if (needs_mask(p, j0, warp_row)) hide(s, p, kv, j0, warp_row + g, t);

            float top[kM][2], weight[kM][2];
#pragma unroll
            for (s32 m = 0; m < kM; ++m)
#pragma unroll
                for (s32 r = 0; r < 2; ++r) top[m][r] = step_max(s[m], r, scale[m]);
            raise_maxima(rows, o, top);
            if (any_bias) take_bias_off(s, rows);
            u32 pr[kM][kPSteps][4];
#pragma unroll
            for (s32 m = 0; m < kM; ++m) {
                float m_ref[2], sum[2];
#pragma unroll
                for (s32 r = 0; r < 2; ++r) {
                    m_ref[r] = kTileRef ? fmaxf(top[m][r], kNoKey) : rows[m].m[r];
                    weight[m][r] = kTileRef ? exp2_approx(m_ref[r] - rows[m].m[r]) : 1.0f;
                }
                probabilities(s[m], scale[m], m_ref, rows[m], p.log2_top, pr[m], sum);
#pragma unroll
                for (s32 r = 0; r < 2; ++r) rows[m].l[r] = fmaf(sum[r], weight[m][r], rows[m].l[r]);
            }
            if constexpr (kIntegerPv && kFloatO)
                second_product_scaled(o, pr, tile.offset, at, weight, first / 32, t);
            else
                second_product(o, pr, tile.offset + at.v, first / (kStep / kPSteps));
        }
        leave_stage(stages, tile);
        tile = next(tile);

        if constexpr (kLong && !kFloatO) {
            if (i % kFlushTiles == kFlushTiles - 1) {
#pragma unroll
                for (s32 m = 0; m < kM; ++m)
#pragma unroll
                    for (s32 r = 0; r < 2; ++r)
                        flush<0>(p.o_flush + (warp_index + 16 * m + g + 8 * r) * kD, reference[m][r],
                                 rows[m].m[r], r, t, o[m]);
            }
        }
    }

    if constexpr (kQShared) copy_commit();  // Q, where no tile is seen
    copy_wait<0>();
    __syncthreads();  // the stages are free: each warp turns its O in them, 8 rows at a time, to store whole rows
    float* turned = (float*)shared_bytes + warp * 8 * kD;
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            __syncwarp();
#pragma unroll
            for (s32 n = 0; n < kNd; ++n) {
                s32(&x)[4] = o[m][n];
                float2 pair = kFloatO ? make_float2(as_floats(x)[2 * r], as_floats(x)[2 * r + 1])
                                      : make_float2((float)x[2 * r], (float)x[2 * r + 1]);
                *(float2*)(turned + g * kD + 8 * n + 2 * t) = pair;
            }
            __syncwarp();
            const float top = rows[m].m[r] == kNoKey ? -INTFA_INF : rows[m].m[r];
            store_rows(p, turned, bh, kv, warp_row + 16 * m + 8 * r, rows[m].c[r], top, rows[m].l[r],
                       reference[m][r]);
        }
}
