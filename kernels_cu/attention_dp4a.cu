// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on int8 Q, K, V without tensor cores: both products by
//             DP4A (arXiv 2409.16997, Algorithm 1, and the recipes built on it). sm_61 and later.
// Grid/Block  1-D grid, one block per (batch, query head, kBr rows), a head's longest causal rows first; 32 kWarps
//             threads, each warp 16 rows.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams.
// Outputs     out, any strides and float type; lse where asked for; o_flush as scratch for rows of > 65 536 keys.
// Tiles       B_r = 16 kWarps rows, B_c = 64 keys, D padded to kD.
// Fragments   lane 16 half + x owns rows 2r + half of its warp's 16; of S the 4 keys of packed word x of V (they share
//             a group scale), so that its 4 bytes of P are one word; of O the channels 16n + x. See intfa/dp4a.cuh.
// Shared map  Shared, in units of 16 bytes: Q [kD/16][kBr], K [kD/16][64] with the keys of word x at x, 16 + x, 32 + x,
//             48 + x, V [4][kD], P [kBr][4]; four floats a row. kBr (kD + 80) + 128 kD bytes, at most 44 KB.
// Pipeline    tile j     | Copy | Q K^T | softmax + quantise P | P V
//             iteration  | j    | j     | j                    | j
// Sync        two __syncthreads a tile, around the copy, which the other blocks of the multiprocessor hide; P is its
//             warp's own, one __syncwarp.
// Numerics    scores biased by 0x4B400000 (intfa/score.cuh); O int32 across tiles while P is relative to the running
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
#include "intfa/params.cuh"
#include "intfa/score.cuh"

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
    float c[kBr];  // scale_log2 s_q, never 0
    float m[kBr];  // running maximum, in units of log2; here, for it spares registers in both products
    float l[kBr];  // final row sum, for the epilogue
    float reference[kBr];  // of the sums in o_flush
};
static_assert(sizeof(Shared) <= 48 * 1024, "INTFA_WARPS: sm_61 has 48 KB for a block");
#ifdef INTFA_SHARED_BYTES
static_assert(sizeof(Shared) == INTFA_SHARED_BYTES,
              "cupy_intfa/kernel_table.py counts other bytes of shared memory");
#endif

// What a lane carries from tile to tile for its rows 2r + half.
struct LaneState {
    float l[kLaneRows];           // row sum over its keys
    s32 o[kLaneRows][kChannels];  // O: integers, or the bits of floats where kFloatO
};

__device__ __forceinline__ float output(s32 o) { return kFloatO ? __int_as_float(o) : (float)o; }

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

__device__ __forceinline__ void copy_values(uint4 (&to)[4][kD], const void* codes, s32 block) {
    const uint4* tile = (const uint4*)codes + (s64)block * kD * 4;
#pragma unroll
    for (s32 i = 0; i < kD * 4; i += kThreads) {
        uint4 sixteen = tile[i + threadIdx.x];
        if (kVOffset)
            sixteen = make_uint4(sixteen.x ^ kVSigns, sixteen.y ^ kVSigns, sixteen.z ^ kVSigns,
                                 sixteen.w ^ kVSigns);
        to[threadIdx.x % 4][(i + threadIdx.x) / 4] = sixteen;
    }
}

// Scales of this lane's four keys: of each by token, else of the group that they are.
struct KeyScales {
    float of[4];
};

__device__ __forceinline__ KeyScales load_key_scales(const AttentionParams& p, s64 block, s32 x) {
    if (kKToken) {
        const float* s_k = p.k_scale + block * 64 + key_in_slot(x);
        const float2 low = *(const float2*)s_k, high = *(const float2*)(s_k + 8);
        return {{low.x, low.y, high.x, high.y}};
    } else {
        const float s_k = p.k_scale[block * 4 + x % 4];
        return {{s_k, s_k, s_k, s_k}};
    }
}

// A score in units of log2 is y t. c = scale_log2 s_q of the row.
__device__ __forceinline__ float y_of(s32 s, float s_k) { return kKToken ? unbiased(s) * s_k : unbiased(s); }
__device__ __forceinline__ float t_of(float c, const KeyScales& k) {
    return kKToken ? c : fmaxf(c * k.of[0], kFltMin);
}

// Largest y of this lane's keys.
__device__ __forceinline__ float lane_max(const s32 (&s)[4], const KeyScales& k) {
    if constexpr (kKToken)
        return fmaxf(fmaxf(y_of(s[0], k.of[0]), y_of(s[1], k.of[1])),
                     fmaxf(y_of(s[2], k.of[2]), y_of(s[3], k.of[3])));
    else  // biased scores order as integers
        return unbiased(max(max(s[0], s[1]), max(s[2], s[3])));
}

// Scores that a row does not see become -inf. Places of sorted keys are read here, where few tiles come.
__device__ __forceinline__ void hide(s32 (&s)[kLaneRows][4], const AttentionParams& p, s64 block, s32 j0,
                                     s32 x, s32 row) {
#pragma unroll
    for (s32 j = 0; j < 4; ++j) {
        const s32 key = key_in_slot(16 * j + x), place = p.key_index ? p.key_index[block * 64 + key] : key;
#pragma unroll
        for (s32 r = 0; r < kLaneRows; ++r)
            if (is_hidden(p, j0 + key, place, row + 2 * r)) s[r][j] = (s32)kMinusInfinity;
    }
}

// 4 bytes of P: R 2^(y t - m_ref); returns their part of the row sum.
__device__ __forceinline__ float probabilities(const s32 (&s)[4], const KeyScales& k, float t, float m_ref,
                                               float log2_top, u32& packed) {
    const float constant = __fsub_rd(log2_top, finite(m_ref));  // rounded down: P never exceeds R
    float p[4];
#pragma unroll
    for (s32 j = 0; j < 4; ++j) p[j] = exp2_approx(fmaf(y_of(s[j], k.of[j]), t, constant));
    packed = pack_p(p[0], p[1], p[2], p[3]);
    return kExactSum ? (p[0] + p[1]) + (p[2] + p[3]) : (float)sum_bytes(packed, 0);
}

// O += P V straight into the accumulators, 8 channels of a lane at a time.
template <s32 kFirst = 0>
__device__ __forceinline__ void second_product(s32 (&o)[kLaneRows][kChannels], const uint4* p,
                                               const uint4* v) {
    constexpr s32 kN = kChannels - kFirst < 8 ? kChannels - kFirst : 8;
#pragma unroll 1
    for (s32 u = 0; u < 4; ++u) multiply<false, kFirst, kN, 8>(o, p + u, v + u * kD + 16 * kFirst);
    if constexpr (kFirst + kN < kChannels) second_product<kFirst + kN>(o, p, v);
}

// O += w s_v (P V) in float32, few channels at a time: the tile's integers need few registers and start at the bias.
__device__ __forceinline__ void second_product_scaled(s32 (&o)[kLaneRows][kChannels], const uint4* p,
                                                      const uint4* v, const float* v_scale,
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
                sum = fmaf(unbiased(i[r][n]) * s_v, w[r], sum);
                o[r][first + n] = __float_as_int(sum);
            }
        }
    }
}

// Bring a row to the maximum of its tile where that is larger. The halves of the warp hold two rows.
__device__ __forceinline__ void rescale(float& m, float& l, s32 (&o)[kChannels], float m_tile) {
    const bool grew = m_tile > m;
    if (!__any_sync(0xffffffffu, grew)) return;
    const float alpha = grew ? exp2_approx(m - m_tile) : 1.0f;
    l *= alpha;
    m = grew ? m_tile : m;
#pragma unroll
    for (s32 n = 0; n < kChannels; ++n) {
        if constexpr (kFloatO) {
            o[n] = __float_as_int(__int_as_float(o[n]) * alpha);
        } else {  // through float and back loses bits above 2^24: a row that did not grow must not take part
            const s32 scaled = __float2int_rn((float)o[n] * alpha);
            o[n] = grew ? scaled : o[n];
        }
    }
}

// S, the softmax and P V of the tile at key j0 for the 16 rows of a warp.
struct Tile {
    const AttentionParams& p;
    Shared& shared;
    s32 block;     // the tile's number among those of all KV heads
    s32 j0;        // first key
    s32 warp_row;  // first row of the warp, in its head
};

__device__ __forceinline__ void attend(const Tile& tile, LaneState& state) {
    const AttentionParams& p = tile.p;
    const s32 thread = thread_number(), x = thread % 16, half = thread / 16 % 2,
              first = thread / 32 * 16 + half;
    const KeyScales k_scale = load_key_scales(p, tile.block, x);

    s32 s[kLaneRows][4];
#pragma unroll
    for (s32 e = 0; e < kLaneRows * 4; ++e) s[e / 4][e % 4] = kScoreBias;
#pragma unroll 1
    for (s32 u = 0; u < kUnits; ++u)
        multiply<true, 0, 4, 2>(s, &tile.shared.q[u][first], &tile.shared.k[u][x]);

    if (needs_mask(p, tile.j0, tile.warp_row)) hide(s, p, tile.block, tile.j0, x, tile.warp_row + half);

    float m[kLaneRows], m_tile[kLaneRows], weight[kLaneRows];
    bool grew = false;
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        const float t = t_of(tile.shared.c[first + 2 * r], k_scale);
        m[r] = tile.shared.m[first + 2 * r];
        m_tile[r] = row_max(__fmul_ru(lane_max(s[r], k_scale), t));
        grew |= m_tile[r] > m[r];
    }
    if (__any_sync(0xffffffffu, grew)) {
        __syncwarp();  // m is read
#pragma unroll
        for (s32 r = 0; r < kLaneRows; ++r) {
            rescale(m[r], state.l[r], state.o[r], m_tile[r]);
            tile.shared.m[first + 2 * r] = m[r];
        }
    }
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) {
        const float t = t_of(tile.shared.c[first + 2 * r], k_scale);
        u32 packed;
        const float sum = probabilities(s[r], k_scale, t, kTileRef ? m_tile[r] : m[r], p.log2_top, packed);
        ((u32*)tile.shared.p[first + 2 * r])[x] = packed;
        weight[r] = kTileRef ? exp2_approx(m_tile[r] - finite(m[r])) : 1.0f;
        state.l[r] = fmaf(sum, weight[r], state.l[r]);
    }
    __syncwarp();  // P is written
    if constexpr (kFloatO)
        second_product_scaled(state.o, tile.shared.p[first], &tile.shared.v[0][x],
                              p.v_scale + (s64)tile.block * kD + x, weight);
    else
        second_product(state.o, tile.shared.p[first], &tile.shared.v[0][x]);
}

// Which rows of which head a block works on.
struct Place {
    s32 bh, kv;     // b Hq + h, b Hkv + kv head
    s32 block_row;  // first row of the block, in its head
    s64 q_row;      // the same among the rows of all heads
};

__device__ __forceinline__ Place locate(const AttentionParams& p) {
    const s32 block = block_number();
    const s32 row_blocks = (p.q_len + kBr - 1) / kBr;
    Place place;
    place.bh = block / row_blocks;
    place.kv = place.bh / p.heads * p.kv_heads + place.bh % p.heads / (p.heads / p.kv_heads);
    place.block_row = (row_blocks - 1 - block % row_blocks) * kBr;  // the longest causal rows start first
    place.q_row = (s64)place.bh * p.q_pad + place.block_row;
    return place;
}

// Before int32 could overflow: add O to floats in device memory, brought to one reference, and start anew. Every lane
// touches only elements of its own, so nothing needs to be ordered. A reference of -inf: nothing is there, not even 0.
__device__ __forceinline__ void flush(const AttentionParams& p, Shared& shared, LaneState& state) {
    const s32 first = threadIdx.x / 32 * 16 + threadIdx.x / 16 % 2, x = threadIdx.x % 16;
    float* sums = p.o_flush + (locate(p).q_row + first) * kD + x;
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r, sums += 2 * kD) {
        const float reference = shared.reference[first + 2 * r], m = shared.m[first + 2 * r];
        const float past = exp2_approx(reference - finite(m));
#pragma unroll
        for (s32 n = 0; n < kChannels; ++n) {
            sums[16 * n] = (reference == -INTFA_INF ? 0.0f : sums[16 * n] * past) + (float)state.o[r][n];
            state.o[r][n] = 0;
        }
        __syncwarp();
        shared.reference[first + 2 * r] = m;
    }
}

// Finish 8 rows, from `local` in the block on, whose sums lie in shared memory.
__device__ __forceinline__ void store_rows(const AttentionParams& p, const Place& place, const Shared& shared,
                                           const float* sums, s32 local) {
    const s32 lane = threadIdx.x % 32, b = place.bh / p.heads, h = place.bh % p.heads;
#pragma unroll 1
    for (s32 i = 0; i < 8 && place.block_row + local < p.q_len; ++i, ++local, sums += kD) {
        const s32 row = place.block_row + local;
        const s64 row_index = place.q_row + local;
        const float m = shared.m[local], l = shared.l[local], reference = shared.reference[local];
        const RowEnd end = end_row(p, row_index, place.kv, shared.c[local], m, l);
        const s64 offset = b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2];
#pragma unroll 1
        for (s32 d = lane; d < p.head_dim; d += 32) {
            float sum = sums[d];
            if (kLong && !kFloatO && reference != -INTFA_INF)
                sum = fmaf(p.o_flush[row_index * kD + d], exp2_approx(reference - m), sum);
            const float v_scale = kVBlock ? 1.0f : p.v_scale[(s64)place.kv * kD + d];
            const float v_mean = p.v_mean ? p.v_mean[(s64)place.kv * kD + d] : 0.0f;
            store_element(p, offset + d * p.out_stride[3], end_element(end, sum, v_scale, v_mean));
        }
        if (p.lse && lane == 0) p.lse[(s64)place.bh * p.q_len + row] = end_lse(p, end, row_index, m, l);
    }
}

// The tiles are free: each warp turns its O in them, 8 rows at a time, to store whole rows.
__device__ __forceinline__ void finish(const AttentionParams& p, Shared& shared, const LaneState& state) {
    static_assert(kWarps * 8 * kD * 4 <= sizeof(Shared::q) + sizeof(Shared::k) + sizeof(Shared::v),
                  "room to turn O");
    const Place place = locate(p);
    const s32 warp = threadIdx.x / 32, half = threadIdx.x / 16 % 2, x = threadIdx.x % 16;
    float* turned = (float*)&shared + warp * 8 * kD;
#pragma unroll
    for (s32 r = 0; r < kLaneRows; ++r) shared.l[16 * warp + 2 * r + half] = row_sum(state.l[r]);
#pragma unroll
    for (s32 part = 0; part < kLaneRows; part += 4) {
        __syncwarp();
#pragma unroll
        for (s32 r = part; r < part + 4; ++r)
#pragma unroll
            for (s32 n = 0; n < kChannels; ++n)
                turned[(2 * (r - part) + half) * kD + 16 * n + x] = output(state.o[r][n]);
        __syncwarp();
        store_rows(p, place, shared, turned, 16 * warp + 2 * part);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, INTFA_MIN_BLOCKS)
    attention_dp4a(const AttentionParams p) {
    extern __shared__ __align__(16) u8 shared_bytes[];
    Shared& shared = *(Shared*)shared_bytes;
    const Place place = locate(p);
    const s32 warp_row = place.block_row + threadIdx.x / 32 * 16;

    copy_rows<kBr, false>(shared.q, p.q, place.q_row);
    if (threadIdx.x < kBr) {
        shared.c[threadIdx.x] = fmaxf(p.scale_log2 * p.q_scale[place.q_row + threadIdx.x], kFltMin);
        shared.m[threadIdx.x] = shared.reference[threadIdx.x] = -INTFA_INF;
    }
    LaneState state = {};

    const s32 tiles = visible_tiles(p, place.block_row, kBr), first_block = place.kv * (p.kv_pad / 64);
    for (s32 i = 0; i < tiles; ++i) {
        const s32 j = p.last_to_first ? tiles - 1 - i : i;
        __syncthreads();  // all have left the last tile
        copy_rows<64, true>(shared.k, p.k, (first_block + j) * 64ll);
        copy_values(shared.v, p.v, first_block + j);
        __syncthreads();
        if (j * 64 > warp_row + 15 + p.causal_offset) continue;  // no row of this warp sees the tile
        attend({p, shared, first_block + j, j * 64, warp_row}, state);
        if (kLong && !kFloatO && i % kFlushTiles == kFlushTiles - 1) flush(p, shared, state);
    }
    __syncthreads();
    finish(p, shared, state);
}
