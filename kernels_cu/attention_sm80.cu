// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on quantised inputs, by warp-level MMA: int8, float16 or
//             8-bit float products (arXiv 2409.16997, Algorithm 1, and the recipes built on it). sm_75 and later.
// Grid/Block  1-D grid, one block per (batch, query head, kBr rows), heads of a KV head side by side, a head's longest
//             causal rows first; 32 kWarps threads, each warp 16 kM rows.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams.
// Outputs     out, any strides and float type; lse where asked for; o_flush as scratch for rows of > 65 536 keys.
// Tiles       B_r = 16 kM kWarps rows, B_c = 64 or 128 keys, D padded to kD.
// Fragments   m16n8k32: lane 4g + t owns rows g, g + 8 and columns 2t, 2t + 1 of each 8; Q stays in registers as A,
//             S becomes A of the second product in place (the packing permutes the keys of V to fit).
// Shared map  kStages x { K [B_c][kD + pad], V [kD][B_c + pad] or float16 [B_c][2 kD + pad], scales, key places };
//             rows are padded to an odd number of 16-byte units, so that ldmatrix meets no bank twice.
// Pipeline    tile j     | Copy                | Q K^T  | softmax + quantise P | P V
//             iteration  | j + kStages - 1     | j      | j                    | j
// Sync        one __syncthreads per tile, after cp.async.wait_group; warps run free in between.
// Numerics    scores biased by 0x4B400000 (online_softmax.cuh); O int32 across tiles while P is relative to the running
//             maximum: a row whose maximum grows is rescaled alone, its neighbours' integers stay as they are;
//             float32 O with a reference per tile or a scale of V per block. l float32.
// Edges       keys beyond kv_len and rows beyond q_len are padding; tiles no row sees are not visited, tiles that need
//             no mask do not compute one.
// Limits      key_block 64; key_window 0 or 64; 8-bit floats from sm_89 on.
// Twin        cupy_intfa.reference.emulator.attention(key_tile=B_c).
#include "intfa/config.cuh"
#include "intfa/epilogue.cuh"
#include "intfa/masking.cuh"
#include "intfa/online_softmax.cuh"
#include "intfa/params.cuh"
#include "intfa/ptx_copy.cuh"
#include "intfa/ptx_mma.cuh"

__host__ __device__ constexpr s32 odd_units(s32 bytes) { return bytes / 16 % 2 ? bytes : bytes + 16; }

constexpr s32 kQkRow = kD * (kQk == kHalf ? 2 : 1);  // bytes of a row of Q or K
constexpr s32 kKPitch = odd_units(kQkRow);
constexpr s32 kVRows = kPv == kHalf ? kBc : kD;
constexpr s32 kVRow = kPv == kHalf ? 2 * kD : 64;  // 8-bit V comes in tiles of 64 keys, one below the other
constexpr s32 kVPitch = odd_units(kVRow);
constexpr s32 kVTiles = kPv == kHalf ? 1 : kBc / 64;
constexpr s32 kKSteps = kQkRow / 32;  // depth of an MMA: 32 bytes
constexpr s32 kNd = kD / 8;           // 8-channel MMA tiles of O
constexpr s32 kScales = kKToken ? kBc : kBc / 16;
constexpr s32 kFlushTiles = 65536 / kBc;  // 255 · 127 · 65536 < 2^31

struct alignas(128) Stage {
    u8 k[kBc * kKPitch];
    u8 v[kVTiles * kVRows * kVPitch];
    float k_scale[kScales];
    float v_scale[kVBlock ? kD : 4];
    u8 place[kBc];
};
struct Shared {
    Stage stage[kStages];
};
static_assert(sizeof(Shared) >= kWarps * 8 * kD * 4, "the epilogue turns 8 rows of every warp in the stages");
#ifdef INTFA_SHARED_BYTES
static_assert(sizeof(Shared) == INTFA_SHARED_BYTES, "cupy_intfa/plan.py counts other bytes of shared memory");
#endif

// The accumulators of O, [kM][kNd][4]: integers, or the bits of floats where kFloatO.
typedef s32 Output[kM][kNd][4];

__device__ __forceinline__ float (&as_floats(s32 (&x)[4]))[4] { return (float(&)[4])x; }

// Rows that follow each other in device memory, to padded rows in shared memory. Unsigned, so that a thread's addresses
// are one base and constants.
template <u32 kRows, u32 kRow, u32 kPitch>
__device__ __forceinline__ void copy_tile(u8* to, const u8* from) {
    constexpr u32 kUnits = kRows * (kRow / 16);
#pragma unroll
    for (u32 i = 0; i < kUnits; i += kThreads) {
        u32 unit = i + threadIdx.x;
        if (kUnits % kThreads == 0 || unit < kUnits)
            copy16(to + unit / (kRow / 16) * kPitch + unit % (kRow / 16) * 16, from + unit * 16);
    }
}

// Where the keys, values and scales of one KV head start.
struct KvHead {
    const u8* k;
    const u8* v;
    const float* k_scale;
    const float* v_scale;
    const u8* place;
};

__device__ __forceinline__ KvHead kv_head(const AttentionParams& p, s64 kv) {
    KvHead h;
    h.k = (const u8*)p.k + kv * p.kv_pad * kQkRow;
    h.v = (const u8*)p.v + kv * p.kv_pad * (kPv == kHalf ? 2 * kD : kD);
    h.k_scale = p.k_scale + kv * p.kv_pad / (kKToken ? 1 : 16);
    h.v_scale = p.v_scale + kv * kD * (kVBlock ? p.kv_pad / 64 : 1);
    h.place = p.key_index ? p.key_index + kv * p.kv_pad : nullptr;
    return h;
}

__device__ __forceinline__ void copy_stage(Stage& to, const KvHead& h, u32 tile) {
    constexpr u32 kScaleStep = kKToken ? kBc : kBc / 16;
    copy_tile<kBc, kQkRow, kKPitch>(to.k, h.k + (u64)tile * (kBc * kQkRow));
    copy_tile<kVTiles * kVRows, kVRow, kVPitch>(to.v, h.v + (u64)tile * (kBc * (kPv == kHalf ? 2 * kD : kD)));
    u32 i = threadIdx.x;
    if (i < kScales / 4) copy16(to.k_scale + 4 * i, h.k_scale + tile * kScaleStep + 4 * i);
    if (h.place && i < kBc / 16) copy16(to.place + 16 * i, h.place + tile * kBc + 16 * i);
    if constexpr (kVBlock)
        if (i < kD / 4) copy16(to.v_scale + 4 * i, h.v_scale + tile * kD + 4 * i);
}

// Q as A fragments, straight from device memory: four lanes read 16 bytes in a row, once per block.
__device__ __forceinline__ void load_queries(u32 (&q)[kM][kKSteps][4], const u8* rows, s32 g, s32 t) {
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 k = 0; k < kKSteps; ++k)
#pragma unroll
            for (s32 a = 0; a < 4; ++a)
                q[m][k][a] = *(const u32*)(rows + (16 * m + g + a % 2 * 8) * kQkRow + 32 * k + a / 2 * 16 + 4 * t);
}

// S = Q K^T of a tile. B fragments: matrices (n, first 16 bytes), (n, second), (n + 1, first), (n + 1, second).
__device__ __forceinline__ void first_product(s32 (&s)[kM][kNs][4], const u32 (&q)[kM][kKSteps][4], const u8* k, s32 lane) {
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 n = 0; n < kNs; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) s[m][n][e] = kQk == kInt8 ? kScoreBias : 0;
    u32 base = shared_address(k) + (lane % 8 + lane / 16 * 8) * kKPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (s32 ks = 0; ks < kKSteps; ++ks)
#pragma unroll
        for (s32 n = 0; n < kNs; n += 2) {
            u32 b[4];
            load_matrices(b, base + n * 8 * kKPitch + ks * 32);
#pragma unroll
            for (s32 m = 0; m < kM; ++m) {
                if constexpr (kQk == kInt8) {
                    mma_s8(s[m][n], q[m][ks], b[0], b[1]);
                    mma_s8(s[m][n + 1], q[m][ks], b[2], b[3]);
                } else {
                    mma_float<kQk>(as_floats(s[m][n]), q[m][ks], b[0], b[1]);
                    mma_float<kQk>(as_floats(s[m][n + 1]), q[m][ks], b[2], b[3]);
                }
            }
        }
}

// B fragments of V for channels 8n … 8n + 15 and k step ks.
__device__ __forceinline__ void load_values(u32 (&b)[4], const u8* v, s32 n, s32 ks, s32 lane) {
    if constexpr (kPv == kHalf) {
        u32 base = shared_address(v) + lane % 16 * kVPitch + lane / 16 * 16;
        load_matrices_transposed(b, base + ks * 16 * kVPitch + n * 16);
    } else {
        u32 base = shared_address(v) + (lane % 8 + lane / 16 * 8) * kVPitch + lane / 8 % 2 * 16;
        load_matrices(b, base + (ks / 2 * kVRows + n * 8) * kVPitch + ks % 2 * 32);
    }
}

// O += P V straight into the accumulators.
__device__ __forceinline__ void second_product(Output& o, const u32 (&p)[kM][kPSteps][4], const u8* v, s32 lane) {
#pragma unroll
    for (s32 ks = 0; ks < kPSteps; ++ks)
#pragma unroll
        for (s32 n = 0; n < kNd; n += 2) {
            u32 b[4];
            load_values(b, v, n, ks, lane);
#pragma unroll
            for (s32 m = 0; m < kM; ++m) {
                if constexpr (kIntegerPv) {
                    mma_u8(o[m][n], p[m][ks], b[0], b[1]);
                    mma_u8(o[m][n + 1], p[m][ks], b[2], b[3]);
                } else {
                    mma_float<kPv>(as_floats(o[m][n]), p[m][ks], b[0], b[1]);
                    mma_float<kPv>(as_floats(o[m][n + 1]), p[m][ks], b[2], b[3]);
                }
            }
        }
}

// O += w s_v (P V) in float32, 32 channels at a time: the tile's integers need few registers and start at the bias.
__device__ __forceinline__ void second_product_scaled(Output& o, const u32 (&p)[kM][kPSteps][4], const Stage& stage,
                                                      const float (&w)[kM][2], s32 lane) {
#pragma unroll
    for (s32 chunk = 0; chunk < kNd; chunk += 4) {
        s32 i[kM][4][4];
#pragma unroll
        for (s32 m = 0; m < kM; ++m)
#pragma unroll
            for (s32 e = 0; e < 16; ++e) i[m][e / 4][e % 4] = kScoreBias;
#pragma unroll
        for (s32 ks = 0; ks < kPSteps; ++ks)
#pragma unroll
            for (s32 n = 0; n < 4; n += 2) {
                u32 b[4];
                load_values(b, stage.v, chunk + n, ks, lane);
#pragma unroll
                for (s32 m = 0; m < kM; ++m) {
                    mma_u8(i[m][n], p[m][ks], b[0], b[1]);
                    mma_u8(i[m][n + 1], p[m][ks], b[2], b[3]);
                }
            }
#pragma unroll
        for (s32 n = 0; n < 4; ++n) {
            float2 v_scale = make_float2(1.0f, 1.0f);
            if constexpr (kVBlock) v_scale = *(const float2*)(stage.v_scale + 8 * (chunk + n) + lane % 4 * 2);
#pragma unroll
            for (s32 m = 0; m < kM; ++m)
#pragma unroll
                for (s32 e = 0; e < 4; ++e) {
                    float value = __int_as_float(i[m][n][e]) - kScoreBiasFloat;
                    if constexpr (kVBlock) value *= e % 2 ? v_scale.y : v_scale.x;
                    float& sum = as_floats(o[m][chunk + n])[e];
                    sum = fmaf(value, w[m][e / 2], sum);
                }
        }
    }
}

// The maximum of some of the 8 rows r of this MMA tile has grown: bring O to the new reference. Integers are multiplied
// by alpha in 30-bit fixed point and rounded, without the slow unit: alpha = 1 leaves a neighbour's bits as they are.
__device__ __forceinline__ void rescale(s32 (&o)[kNd][4], s32 r, float alpha) {
    const s32 fixed = __float2int_rn(alpha * 1073741824.0f);
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 2 * r; e < 2 * r + 2; ++e) {
            if constexpr (kFloatO) as_floats(o[n])[e] *= alpha;
            else o[n][e] = (s32)(((s64)o[n][e] * fixed + (1 << 29)) >> 30);
        }
}

// Before int32 could overflow: add O to the row's floats in device memory, brought to one reference, and start anew.
// Every lane touches only elements of its own, so nothing needs to be ordered. `reference` starts as -inf.
__device__ __forceinline__ void flush(float* sums, float& reference, float m, s32 r, s32 t, s32 (&o)[kNd][4]) {
    float m0 = m == -INTFA_INF ? 0.0f : m;
    float before = exp2_approx(reference - m0);
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 0; e < 2; ++e) {
            float* sum = sums + 8 * n + 2 * t + e;
            float past = reference == -INTFA_INF ? 0.0f : *sum * before;  // never written yet: not even 0
            *sum = past + (float)o[n][2 * r + e];
            o[n][2 * r + e] = 0;
        }
    reference = m;
}

// Finish 8 rows whose sums lie in shared memory; lane 4g + t brings c, m, l and the flushed sums' reference of row g.
__device__ __forceinline__ void store_rows(const AttentionParams& p, const float* sums, s32 bh, s64 kv, s32 first_row,
                                           float c, float m, float l, float reference) {
    const s32 lane = threadIdx.x % 32, b = bh / p.heads, h = bh % p.heads;
#pragma unroll 1
    for (s32 i = 0; i < 8 && first_row + i < p.q_len; ++i) {
        const s32 row = first_row + i;
        const s64 row_index = (s64)bh * p.q_pad + row;
        const float row_m = __shfl_sync(0xffffffffu, m, 4 * i), row_l = __shfl_sync(0xffffffffu, l, 4 * i);
        const float row_reference = __shfl_sync(0xffffffffu, reference, 4 * i);
        const RowEnd end = end_row(p, row_index, kv, __shfl_sync(0xffffffffu, c, 4 * i), row_l);
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
    Shared& shared = *(Shared*)shared_bytes;
    const s32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

    const s32 row_blocks = (p.q_len + kBr - 1) / kBr;
    const s32 bh = blockIdx.x / row_blocks;
    const s32 block = row_blocks - 1 - blockIdx.x % row_blocks;  // the longest causal rows start first
    const s64 kv = (s64)(bh / p.heads) * p.kv_heads + bh % p.heads / (p.heads / p.kv_heads);
    const s32 warp_row = block * kBr + threadIdx.x / 32 * 16 * kM;
    const s64 warp_index = (s64)bh * p.q_pad + warp_row;

    const KvHead head = kv_head(p, kv);
    const s32 tiles = visible_tiles(p, block * kBr, kBr);
    auto tile_at = [&](s32 i) { return p.last_to_first ? tiles - 1 - i : i; };
#pragma unroll
    for (s32 i = 0; i < kStages - 1; ++i) {
        if (i < tiles) copy_stage(shared.stage[i], head, tile_at(i));
        copy_commit();
    }

    u32 q[kM][kKSteps][4];
    load_queries(q, (const u8*)p.q + warp_index * kQkRow, g, t);
    Rows rows[kM];
    Output o;
    float reference[kM][2];  // of the flushed sums
#pragma unroll
    for (s32 m = 0; m < kM; ++m) {
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            rows[m].c[r] = fmaxf(p.scale_log2 * p.q_scale[warp_index + 16 * m + g + 8 * r], kFltMin);
            rows[m].m[r] = reference[m][r] = -INTFA_INF;
            rows[m].l[r] = 0.0f;
        }
#pragma unroll
        for (s32 n = 0; n < kNd; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e) o[m][n][e] = 0;
    }

    s32 read = 0, write = kStages - 1;  // stages
    for (s32 i = 0; i < tiles; ++i) {
        copy_wait<kStages - 2>();
        __syncthreads();  // tile i has arrived for all, and all have left the stage that is filled next
        if (i + kStages - 1 < tiles) copy_stage(shared.stage[write], head, tile_at(i + kStages - 1));
        copy_commit();
        const Stage& stage = shared.stage[read];
        read = read == kStages - 1 ? 0 : read + 1;
        write = write == kStages - 1 ? 0 : write + 1;
        const s32 j0 = tile_at(i) * kBc;
        if (j0 > warp_row + 16 * kM - 1 + p.causal_offset) continue;  // no row of this warp sees the tile

        s32 s[kM][kNs][4];
        first_product(s, q, stage.k, lane);
        if constexpr (kKToken) {
#pragma unroll
            for (s32 m = 0; m < kM; ++m) scale_by_token(s[m], stage.k_scale, t);
        }
        if (needs_mask(p, j0, warp_row)) {
#pragma unroll
            for (s32 n = 0; n < kNs; ++n)
#pragma unroll
                for (s32 e = 0; e < 2; ++e) {
                    s32 j = 8 * n + 2 * t + e, place = head.place ? stage.place[j] : j % 64;
#pragma unroll
                    for (s32 m = 0; m < kM; ++m)
#pragma unroll
                        for (s32 r = 0; r < 2; ++r)
                            if (is_hidden(p, j0 + j, place, warp_row + 16 * m + g + 8 * r))
                                s[m][n][2 * r + e] = (s32)kMinusInfinity;
                }
        }

        u32 pr[kM][kPSteps][4];
        float weight[kM][2];
#pragma unroll
        for (s32 m = 0; m < kM; ++m) {
            float scale[kBc / 64][2], sum[2];
#pragma unroll
            for (s32 h = 0; h < kBc / 64; ++h)
#pragma unroll
                for (s32 r = 0; r < 2; ++r)
                    scale[h][r] = kKToken ? rows[m].c[r] : fmaxf(rows[m].c[r] * stage.k_scale[4 * h + t], kFltMin);
            TileMax top = tile_max(s[m], rows[m], scale);
            if constexpr (kTileRef) probabilities(s[m], scale, top.tile, p.log2_top, pr[m], sum);
            else probabilities(s[m], scale, top.m, p.log2_top, pr[m], sum);
#pragma unroll
            for (s32 r = 0; r < 2; ++r) {
                const bool grew = top.m[r] > rows[m].m[r];
                const float m0 = top.m[r] == -INTFA_INF ? 0.0f : top.m[r];
                weight[m][r] = kTileRef ? exp2_approx(top.tile[r] - m0) : 1.0f;
                if (__any_sync(0xffffffffu, grew)) {
                    const float alpha = grew ? exp2_approx(rows[m].m[r] - m0) : 1.0f;
                    rescale(o[m], r, alpha);
                    rows[m].l[r] *= alpha;
                    rows[m].m[r] = top.m[r];
                }
                rows[m].l[r] = fmaf(sum[r], weight[m][r], rows[m].l[r]);
            }
        }
        if constexpr (kIntegerPv && kFloatO) second_product_scaled(o, pr, stage, weight, lane);
        else second_product(o, pr, stage.v, lane);

        if constexpr (kLong && !kFloatO) {
            if (i % kFlushTiles == kFlushTiles - 1) {
#pragma unroll
                for (s32 m = 0; m < kM; ++m)
#pragma unroll
                    for (s32 r = 0; r < 2; ++r)
                        flush(p.o_flush + (warp_index + 16 * m + g + 8 * r) * kD, reference[m][r], rows[m].m[r], r, t, o[m]);
            }
        }
    }

    copy_wait<0>();
    __syncthreads();  // the stages are free: each warp turns its O in them, 8 rows at a time, to store whole rows
    float* turned = (float*)shared_bytes + threadIdx.x / 32 * 8 * kD;
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
            store_rows(p, turned, bh, kv, warp_row + 16 * m + 8 * r, rows[m].c[r], rows[m].m[r], quad_sum(rows[m].l[r]),
                       reference[m][r]);
        }
}
