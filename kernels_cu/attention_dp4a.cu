// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on int8 Q, K, V without tensor cores: both products by DP4A
//             (arXiv 2409.16997, Algorithm 1, and the recipes built on it). sm_61 and later.
// Grid/Block  1-D grid, one block per (batch, query head, kBr rows), a head's longest causal rows first; 32 kWarps
//             threads, each warp 16 rows.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams.
// Outputs     out, any strides and float type; lse where asked for; o_flush as scratch for rows of > 65 536 keys.
// Tiles       B_r = 16 kWarps rows, B_c = 64 keys, D padded to kD.
// Fragments   lane 16 half + x owns rows 2r + half of its warp's 16; of S the 4 keys of packed word x of V (they share a
//             group scale), so that its 4 bytes of P are one word; of O the channels 16n + x. See intfa/dp4a.cuh.
// Shared map  Shared, in units of 16 bytes: Q [kD/16][kBr], K [kD/16][64] with the keys of word x at x, 16 + x, 32 + x,
//             48 + x, V [4][kD], P [kBr][4]; four floats a row. kBr (kD + 80) + 128 kD bytes, at most 44 KB.
// Pipeline    tile j     | Copy | Q K^T | softmax + quantise P | P V
//             iteration  | j    | j     | j                    | j
// Sync        two __syncthreads a tile, around the copy, which the other blocks of the multiprocessor hide; P is its
//             warp's own, one __syncwarp.
// Numerics    scores biased by 0x4B400000 (online_softmax.cuh); O int32 across tiles while P is relative to the running
//             maximum: a row whose maximum grows is rescaled alone, the others' integers stay as they are;
//             float32 O with a reference per tile or a scale of V per block. l float32.
// Edges       keys beyond kv_len and rows beyond q_len are padding; tiles no row sees are not visited, tiles that need
//             no mask do not compute one.
// Limits      int8 in both products; key_block 64; key_window 0 or 64.
// Twin        cupy_intfa.reference.emulator.attention(key_tile=64).
#include "intfa/config.cuh"
#include "intfa/dp4a.cuh"
#include "intfa/epilogue.cuh"
#include "intfa/masking.cuh"
#include "intfa/online_softmax.cuh"
#include "intfa/params.cuh"

static_assert(kQk == kInt8 && kPv == kInt8, "INTFA_QK, INTFA_PV: DP4A multiplies integers");
static_assert(kBc == 64, "INTFA_BC: 16 lanes x 4 keys");
static_assert(kM == 1, "INTFA_M_TILES: a warp has 16 rows");

constexpr s32 kUnits = kD / 16;           // 16-byte units of a row of Q or K
constexpr s32 kChannels = kD / 16;        // of O per lane
constexpr s32 kFlushTiles = 65536 / kBc;  // 255 · 127 · 65536 < 2^31

struct Shared {
    uint4 q[kUnits][kBr];
    uint4 k[kUnits][64];
    uint4 v[4][kD];
    uint4 p[kBr][4];
    float c[kBr];          // scale_log2 s_q, never 0
    float m[kBr], l[kBr];  // final maximum and sum: for the epilogue
    float reference[kBr];  // of the sums in o_flush
};
static_assert(sizeof(Shared) <= 48 * 1024, "INTFA_WARPS: sm_61 has 48 KB for a block");
#ifdef INTFA_SHARED_BYTES
static_assert(sizeof(Shared) == INTFA_SHARED_BYTES, "cupy_intfa/plan.py counts other bytes of shared memory");
#endif

// Running state of the rows 2r + half that a lane serves.
struct LaneRows {
    float m[kLaneRows];  // running maximum, in units of log2
    float l[kLaneRows];  // row sum over this lane's keys
};

// The accumulators of O: integers, or the bits of floats where kFloatO.
typedef s32 Output[kLaneRows][kChannels];

// Key of a block that unit `slot` of a plane of K holds: keys 0 1 8 9, 2 3 10 11, ... of each 16 are words of V.
__device__ __forceinline__ s32 key_in_slot(s32 slot) {
    const s32 x = slot % 16, j = slot / 16;
    return x / 4 * 16 + x % 4 * 2 + j % 2 + j / 2 * 8;
}

// Rows of codes to planes of units; two threads a row read the 32 bytes of a sector.
template <s32 kRows, bool kKeys>
__device__ __forceinline__ void copy_rows(uint4 (&to)[kUnits][kRows], const void* codes, s64 first) {
    for (s32 slot = threadIdx.x / 2; slot < kRows; slot += kThreads / 2) {
        const uint4* row = (const uint4*)codes + (first + (kKeys ? key_in_slot(slot) : slot)) * kUnits;
#pragma unroll
        for (s32 u = 0; u < kUnits; u += 2) to[u + threadIdx.x % 2][slot] = row[u + threadIdx.x % 2];
    }
}

__device__ __forceinline__ void copy_values(uint4 (&to)[4][kD], const void* codes, s64 block) {
    const uint4* tile = (const uint4*)codes + block * kD * 4;
#pragma unroll
    for (s32 i = 0; i < kD * 4; i += kThreads) to[threadIdx.x % 4][(i + threadIdx.x) / 4] = tile[i + threadIdx.x];
}

// Score j of a row as y t: units of log2.
__device__ __forceinline__ float y(s32 s, float k_scale) { return kKToken ? score(s) * k_scale : score(s); }

// Scales of this lane's four keys; but by token they are one group and share theirs.
struct KeyScales {
    float of[4];
};

// Factor of y in a row of c = scale_log2 s_q.
__device__ __forceinline__ float t(float c, const KeyScales& k) { return kKToken ? c : fmaxf(c * k.of[0], kFltMin); }

// Largest y of this lane's keys.
__device__ __forceinline__ float lane_max(const s32 (&s)[4], const KeyScales& k) {
    if constexpr (kKToken)
        return fmaxf(fmaxf(y(s[0], k.of[0]), y(s[1], k.of[1])), fmaxf(y(s[2], k.of[2]), y(s[3], k.of[3])));
    else  // biased scores order as integers
        return score(max(max(s[0], s[1]), max(s[2], s[3])));
}

// 4 bytes of P: R 2^(y t - m_ref); returns their part of the row sum.
__device__ __forceinline__ float probabilities(const s32 (&s)[4], const KeyScales& k, float t, float m_ref, float log2_top,
                                               u32& packed) {
    const float m = m_ref == -INTFA_INF ? 0.0f : m_ref;  // no key seen yet: every score is -inf
    const float constant = __fsub_rd(log2_top, m);       // rounded down: P never exceeds R
    float p[4];
#pragma unroll
    for (s32 j = 0; j < 4; ++j) p[j] = exp2_approx(fmaf(y(s[j], k.of[j]), t, constant));
    packed = pack_p(p[0], p[1], p[2], p[3]);
    return kExactSum ? (p[0] + p[1]) + (p[2] + p[3]) : (float)sum_bytes(packed, 0);
}

// O += P V straight into the accumulators, 8 channels of a lane at a time.
template <s32 kFirst = 0>
__device__ __forceinline__ void second_product(Output& o, const uint4* p, const uint4* v) {
    constexpr s32 kN = kChannels - kFirst < 8 ? kChannels - kFirst : 8;
#pragma unroll 1
    for (s32 u = 0; u < 4; ++u) multiply<false, kFirst, kN, 8>(o, p + u, v + u * kD + 16 * kFirst);
    if constexpr (kFirst + kN < kChannels) second_product<kFirst + kN>(o, p, v);
}

// O += w s_v (P V) in float32, few channels at a time: the tile's integers need few registers and start at the bias.
__device__ __forceinline__ void second_product_scaled(Output& o, const uint4* p, const uint4* v, const float* v_scale,
                                                      const float (&w)[kLaneRows]) {
    constexpr s32 kN = kChannels % 4 ? 2 : 4;
#pragma unroll
    for (s32 first = 0; first < kChannels; first += kN) {
        s32 i[kLaneRows][kN];
#pragma unroll
        for (s32 e = 0; e < kLaneRows * kN; ++e) i[e / kN][e % kN] = kScoreBias;
#pragma unroll 1
        for (s32 u = 0; u < 4; ++u) multiply<false, 0, kN, 8>(i, p + u, v + u * kD + 16 * first);
#pragma unroll
        for (s32 n = 0; n < kN; ++n) {
            const float s_v = kVBlock ? v_scale[16 * (first + n)] : 1.0f;
#pragma unroll
            for (s32 r = 0; r < kLaneRows; ++r) {
                float sum = __int_as_float(o[r][first + n]);
                sum = fmaf((__int_as_float(i[r][n]) - kScoreBiasFloat) * s_v, w[r], sum);
                o[r][first + n] = __float_as_int(sum);
            }
        }
    }
}

// The maximum of row r or of its neighbour in the other half of the warp has grown: bring O to the new reference.
__device__ __forceinline__ void rescale(s32 (&o)[kChannels], float alpha) {
#pragma unroll
    for (s32 n = 0; n < kChannels; ++n) {
        if constexpr (kFloatO) {
            o[n] = __float_as_int(__int_as_float(o[n]) * alpha);
        } else {  // through float and back loses bits above 2^24: a row that did not grow must not take part
            const s32 scaled = __float2int_rn((float)o[n] * alpha);
            o[n] = alpha == 1.0f ? o[n] : scaled;
        }
    }
}

// Before int32 could overflow: add O to the row's floats in device memory, brought to one reference, and start anew.
// Every lane touches only elements of its own, so nothing needs to be ordered. A reference of -inf: nothing there yet.
__device__ __forceinline__ void flush(float* sums, float reference, float m, s32 (&o)[kChannels]) {
    const float before = exp2_approx(reference - (m == -INTFA_INF ? 0.0f : m));
#pragma unroll
    for (s32 n = 0; n < kChannels; ++n) {
        const float past = reference == -INTFA_INF ? 0.0f : sums[16 * n] * before;  // never written yet: not even 0
        sums[16 * n] = past + (float)o[n];
        o[n] = 0;
    }
}

// S, the softmax and P V of the tile at key j0 for the 16 rows of a warp.
struct Tile {
    const AttentionParams& p;
    Shared& shared;
    s64 block;     // tile of this KV head among all heads' tiles
    s32 j0;        // first key
    s32 warp_row;  // first row of the warp, in its head
};

__device__ __forceinline__ void attend(const Tile& tile, LaneRows& rows, Output& o) {
    const AttentionParams& p = tile.p;
    const s32 lane = threadIdx.x % 32, x = lane % 16, half = lane / 16, first = threadIdx.x / 32 * 16 + half;
    const s32 key = key_in_slot(x);  // and key + 1, + 8, + 9
    KeyScales k_scale;
    if constexpr (kKToken) {
        const float* s_k = p.k_scale + tile.block * 64 + key;
        const float2 low = *(const float2*)s_k, high = *(const float2*)(s_k + 8);
        k_scale = {{low.x, low.y, high.x, high.y}};
    } else {
        const float s_k = p.k_scale[tile.block * 4 + x % 4];
        k_scale = {{s_k, s_k, s_k, s_k}};
    }

    s32 s[kLaneRows][4];
#pragma unroll
    for (s32 e = 0; e < kLaneRows * 4; ++e) s[e / 4][e % 4] = kScoreBias;
#pragma unroll 1
    for (s32 u = 0; u < kUnits; ++u)
        multiply<true, 0, 4, 2>(s, &tile.shared.q[u][first], &tile.shared.k[u][x]);

    if (needs_mask(p, tile.j0, tile.warp_row)) {
#pragma unroll
        for (s32 j = 0; j < 4; ++j) {
            const s32 own = key + j % 2 + j / 2 * 8;
            const s32 place = p.key_index ? p.key_index[tile.block * 64 + own] : own;
#pragma unroll
            for (s32 r = 0; r < kLaneRows; ++r)
                if (is_hidden(p, tile.j0 + own, place, tile.warp_row + 2 * r + half)) s[r][j] = (s32)kMinusInfinity;
        }
    }

    float m_tile[kLaneRows], alpha[kLaneRows], weight[kLaneRows];
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) m_tile[r] = row_max(__fmul_ru(lane_max(s[r], k_scale), t(tile.shared.c[first + 2 * r], k_scale)));
    bool grew = false;
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        const float m = fmaxf(rows.m[r], m_tile[r]), m0 = m == -INTFA_INF ? 0.0f : m;
        u32 packed;
        const float sum = probabilities(s[r], k_scale, t(tile.shared.c[first + 2 * r], k_scale), kTileRef ? m_tile[r] : m, p.log2_top, packed);
        ((u32*)tile.shared.p[first + 2 * r])[x] = packed;
        alpha[r] = m > rows.m[r] ? exp2_approx(rows.m[r] - m0) : 1.0f;
        weight[r] = kTileRef ? exp2_approx(m_tile[r] - m0) : 1.0f;
        rows.l[r] = fmaf(sum, weight[r], rows.l[r] * alpha[r]);
        grew |= m > rows.m[r];
        rows.m[r] = m;
    }
    if (__any_sync(0xffffffffu, grew)) {
#pragma unroll
        for (s32 r = 0; r < kLaneRows; ++r)
            if (__any_sync(0xffffffffu, alpha[r] != 1.0f)) rescale(o[r], alpha[r]);
    }
    __syncwarp();  // P is written
    if constexpr (kFloatO)
        second_product_scaled(o, tile.shared.p[first], &tile.shared.v[0][x], p.v_scale + tile.block * kD + x, weight);
    else
        second_product(o, tile.shared.p[first], &tile.shared.v[0][x]);
}

// Finish 8 rows whose sums lie in shared memory; `row` counts in the head, `local` in the block.
__device__ __forceinline__ void store_rows(const AttentionParams& p, const Shared& shared, const float* sums, s32 bh,
                                           s64 kv, s32 row, s32 local) {
    const s32 lane = threadIdx.x % 32;
#pragma unroll 1
    for (s32 i = 0; i < 8 && row < p.q_len; ++i, ++row, ++local, sums += kD) {
        const s64 row_index = (s64)bh * p.q_pad + row;
        const float m = shared.m[local], l = shared.l[local], reference = shared.reference[local];
        const RowEnd end = end_row(p, row_index, kv, shared.c[local], l);
        const s64 offset = bh / p.heads * p.out_stride[0] + bh % p.heads * p.out_stride[1] + row * p.out_stride[2];
#pragma unroll 1
        for (s32 d = lane; d < p.head_dim; d += 32) {
            float sum = sums[d];
            if (kLong && !kFloatO && reference != -INTFA_INF)
                sum = fmaf(p.o_flush[row_index * kD + d], exp2_approx(reference - m), sum);
            const float v_scale = kVBlock ? 1.0f : p.v_scale[kv * kD + d];
            const float v_mean = p.v_mean ? p.v_mean[kv * kD + d] : 0.0f;
            store_element(p, offset + d * p.out_stride[3], end_element(end, sum, v_scale, v_mean));
        }
        if (p.lse && lane == 0) p.lse[(s64)bh * p.q_len + row] = end_lse(p, end, row_index, m, l);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, INTFA_MIN_BLOCKS)
attention_dp4a(const AttentionParams p) {
    extern __shared__ __align__(16) u8 shared_bytes[];
    Shared& shared = *(Shared*)shared_bytes;
    const s32 warp = threadIdx.x / 32, half = threadIdx.x / 16 % 2, x = threadIdx.x % 16, first = 16 * warp + half;

    const s32 row_blocks = (p.q_len + kBr - 1) / kBr;
    const s32 bh = blockIdx.x / row_blocks;
    const s32 block_row = (row_blocks - 1 - blockIdx.x % row_blocks) * kBr;  // the longest causal rows start first
    const s64 kv = (s64)(bh / p.heads) * p.kv_heads + bh % p.heads / (p.heads / p.kv_heads);
    const s32 warp_row = block_row + 16 * warp;

    copy_rows<kBr, false>(shared.q, p.q, (s64)bh * p.q_pad + block_row);
    if (threadIdx.x < kBr) {
        shared.c[threadIdx.x] = fmaxf(p.scale_log2 * p.q_scale[(s64)bh * p.q_pad + block_row + threadIdx.x], kFltMin);
        shared.reference[threadIdx.x] = -INTFA_INF;
    }
    LaneRows rows;
    Output o;
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        rows.m[r] = -INTFA_INF;
        rows.l[r] = 0.0f;
#pragma unroll
        for (s32 n = 0; n < kChannels; ++n) o[r][n] = 0;
    }

    const s32 tiles = visible_tiles(p, block_row, kBr);
    for (s32 i = 0; i < tiles; ++i) {
        const s32 j = p.last_to_first ? tiles - 1 - i : i;
        const s64 block = kv * p.kv_pad / 64 + j;
        __syncthreads();  // all have left the last tile
        copy_rows<64, true>(shared.k, p.k, block * 64);
        copy_values(shared.v, p.v, block);
        __syncthreads();
        if (j * 64 > warp_row + 15 + p.causal_offset) continue;  // no row of this warp sees the tile
        attend({p, shared, block, j * 64, warp_row}, rows, o);
        if constexpr (kLong && !kFloatO) {
            if (i % kFlushTiles == kFlushTiles - 1) {
#pragma unroll
                for (s32 r = 0; r < kLaneRows; ++r) {
                    const s64 row = (s64)bh * p.q_pad + block_row + first + 2 * r;
                    flush(p.o_flush + row * kD + x, shared.reference[first + 2 * r], rows.m[r], o[r]);
                    __syncwarp();
                    shared.reference[first + 2 * r] = rows.m[r];
                }
            }
        }
    }

    __syncthreads();  // the tiles are free: each warp turns its O in them, 8 rows at a time, to store whole rows
    float* turned = (float*)shared_bytes + warp * 8 * kD;
    static_assert(kWarps * 8 * kD * 4 <= sizeof(Shared::q) + sizeof(Shared::k) + sizeof(Shared::v), "room to turn O");
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        shared.m[first + 2 * r] = rows.m[r];
        shared.l[first + 2 * r] = row_sum(rows.l[r]);
    }
#pragma unroll
    for (s32 part = 0; part < kLaneRows; part += 4) {
        __syncwarp();
#pragma unroll
        for (s32 r = part; r < part + 4; ++r)
#pragma unroll
            for (s32 n = 0; n < kChannels; ++n)
                turned[(2 * (r - part) + half) * kD + 16 * n + x] = kFloatO ? __int_as_float(o[r][n]) : (float)o[r][n];
        __syncwarp();
        store_rows(p, shared, turned, bh, kv, warp_row + 2 * part, 16 * warp + 2 * part);
    }
}
