// Computes    out = softmax(scale Q K^T) V and its log-sum-exp on quantised inputs, in plain C++: the kernel to read
//             first, and the yardstick of the others. Every recipe that has a packing; sm_61 and later.
// Grid/Block  1-D grid, one block per query row, 64 threads.
// Inputs      the packing (cupy_intfa/packing.py) through AttentionParams.
// Outputs     out, any strides and float type; lse where asked for.
// Tiles       B_r = 1 row, B_c = 64 keys, D padded to kD.
// Fragments   none: thread j owns key j of the tile in the first product, channels j, j + 64, ... in the second.
// Shared map  Shared: the row of Q as floats, then 64 floats each of x, P and the terms of the row sum.
// Pipeline    tile j     | Copy | Q K^T | softmax + quantise P | P V
//             iteration  | none | j     | j                    | j
// Sync        two barriers a tile: after x is written and after P is written. The next tile's x waits for nobody: all
//             have left the maximum before they write P.
// Numerics    all sums in float32: integer products stay exact, |S| < 2^22 and |P V| < 2^21 in a tile. O float32.
// Edges       keys beyond kv_len are hidden like those of the mask; rows beyond q_len have no block.
// Limits      key_block 64; key_window 0 or 64. No speed: each key's codes are read by a thread of their own.
// Twin        cupy_intfa.reference.emulator.attention(key_tile=64).
#include "intfa/config.cuh"
#include "intfa/decode.cuh"
#include "intfa/epilogue.cuh"
#include "intfa/masking.cuh"
#include "intfa/params.cuh"
#include "intfa/score.cuh"

static_assert(kBc == 64, "INTFA_BC: one thread per key of a block of 64");

constexpr s32 kChannels = (kD + 63) / 64;  // of O per thread

struct Shared {
    float q[kD];
    float x[64];      // scores in units of log2, rounded up
    float p[64];      // R 2^(x - m_ref), rounded to the format of P
    float terms[64];  // what the row sum adds: P, or P before it was rounded
};
#ifdef INTFA_SHARED_BYTES
static_assert(sizeof(Shared) == INTFA_SHARED_BYTES,
              "cupy_intfa/kernel_table.py counts other bytes of shared memory");
#endif

// Place of key `key` of a block of 64 in the order that the packing gives 8-bit values.
__device__ __forceinline__ s32 value_position(s32 key) {
    return key / 16 * 16 + key % 8 / 2 * 4 + key % 16 / 8 * 2 + key % 2;
}

// Code of V for a key of tile `tile` and a channel.
__device__ __forceinline__ float value(const AttentionParams& p, s64 kv, s32 tile, s32 key, s32 d) {
    s64 block = kv * p.kv_pad / 64 + tile;
    s64 place = kPv == kHalf ? (block * 64 + key) * kD + d : (block * kD + d) * 64 + value_position(key);
    return kVOffset ? (float)((const u8*)p.v)[place] - 128.0f : decode<kPv>(p.v, place);
}

__device__ __forceinline__ float largest(const float (&x)[64]) {
    float top = x[0];
#pragma unroll 4
    for (s32 j = 1; j < 64; ++j) top = fmaxf(top, x[j]);
    return top;
}

__device__ __forceinline__ float sum(const float (&x)[64]) {
    float total = 0.0f;
#pragma unroll 4
    for (s32 j = 0; j < 64; ++j) total += x[j];
    return total;
}

extern "C" __global__ void __launch_bounds__(64, INTFA_MIN_BLOCKS) attention_naive(const AttentionParams p) {
    extern __shared__ __align__(16) u8 shared_bytes[];
    Shared& shared = *(Shared*)shared_bytes;
    const s32 j = threadIdx.x;
    const s32 row = blockIdx.x % p.q_len, bh = blockIdx.x / p.q_len, b = bh / p.heads, h = bh % p.heads;
    const s64 kv = (s64)b * p.kv_heads + h / (p.heads / p.kv_heads);
    const s64 row_index = (s64)bh * p.q_pad + row;

    for (s32 d = j; d < kD; d += 64) shared.q[d] = decode<kQk>(p.q, row_index * kD + d);
    const float c = fmaxf(__fmul_rn(p.scale_log2, p.q_scale[row_index]), kFltMin);
    float m = -INTFA_INF, l = 0.0f, o[kChannels] = {};
    __syncthreads();

    const s32 tiles = visible_tiles(p, row, 1);
    for (s32 i = 0; i < tiles; ++i) {
        const s32 tile = p.last_to_first ? tiles - 1 - i : i;
        const s64 key = kv * p.kv_pad + tile * 64 + j;

        // S = Q K^T: the score of this thread's key, as y t in units of log2.
        float y = 0.0f, t = c;
#pragma unroll 4
        for (s32 d = 0; d < kD; ++d) y = fmaf(shared.q[d], decode<kQk>(p.k, key * kD + d), y);
        if (kKToken)
            y = __fmul_rn(y, p.k_scale[key]);
        else
            t = fmaxf(__fmul_rn(c, p.k_scale[key / 64 * 4 + j % 8 / 2]), kFltMin);
        if (is_hidden(p, tile * 64 + j, p.key_index ? p.key_index[key] : j, row)) y = -INTFA_INF;

        // m and the reference of P: the running maximum, or the tile's own.
        shared.x[j] = __fmul_ru(y, t);
        __syncthreads();
        const float m_tile = largest(shared.x), m_new = fmaxf(m, m_tile);
        const float past = exp2_approx(m - finite(m_new));
        const float weight = kTileRef ? exp2_approx(m_tile - finite(m_new)) : 1.0f;
        m = m_new;

        // P = R 2^(x - m_ref), the constant rounded down: never above R.
        const float constant = __fsub_rd(p.log2_top, finite(kTileRef ? m_tile : m_new));
        const float exact = exp2_approx(fmaf(y, t, constant)), rounded = round_p(exact);
        shared.p[j] = rounded;
        shared.terms[j] = kExactSum ? exact : rounded;
        __syncthreads();

        // l and O = P V, brought to the new maximum.
        l = fmaf(sum(shared.terms), weight, l * past);
#pragma unroll
        for (s32 n = 0; n < kChannels; ++n) {
            const s32 d = min(j + 64 * n, kD - 1);
            float pv = 0.0f;
#pragma unroll 4
            for (s32 other = 0; other < 64; ++other)
                pv = fmaf(shared.p[other], value(p, kv, tile, other, d), pv);
            if (kVBlock) pv *= p.v_scale[(kv * p.kv_pad / 64 + tile) * kD + d];
            o[n] = fmaf(pv, weight, o[n] * past);
        }
    }

    const RowEnd end = end_row(p, row_index, kv, c, m, l);
#pragma unroll
    for (s32 n = 0; n < kChannels; ++n) {
        const s32 d = j + 64 * n;
        if (d >= p.head_dim) continue;
        const float v_scale = kVBlock ? 1.0f : p.v_scale[kv * kD + d],
                    v_mean = p.v_mean ? p.v_mean[kv * kD + d] : 0.0f;
        const s64 offset =
            b * p.out_stride[0] + h * p.out_stride[1] + row * p.out_stride[2] + d * p.out_stride[3];
        store_element(p, offset, end_element(end, o[n], v_scale, v_mean));
    }
    if (p.lse && j == 0) p.lse[(s64)bh * p.q_len + row] = end_lse(p, end, row_index, m, l);
}
