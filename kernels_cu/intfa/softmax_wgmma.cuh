// The softmax of one tile in attention_sm90: scores of a warp's 16 rows, in registers, to P as A fragments.
//
// A lane holds, of rows g and g + 8, the columns 8n + 2t and 8n + 2t + 1: s[n][0..1] and s[n][2..3]. Where the scale of
// a score is the same for all of a lane's columns, the maximum is taken on the integers. A tile that needs a mask, and
// token scales, turn them into floats first.
#pragma once
#include "config.cuh"
#include "ptx_copy.cuh"
#include "ptx_math.cuh"

constexpr float kNoKey = -3.402823466e38f;  // maximum of a row without a key yet: finite, to be subtracted

constexpr s32 kNs = kBc / 8;                                 // 8-column MMA tiles per tile
constexpr s32 kBlocks = kBc / 64;                            // spans of keys with scales of their own
constexpr s32 kPSteps = kPv == kHalf ? kBc / 16 : kBc / 32;  // depth of P V in instructions

typedef s32 Scores[kNs][4];
typedef u32 Probabilities[kPSteps][4];

// Running state of the two rows that a lane serves.
struct Rows {
    float c[2];  // scale_log2 s_q, never 0
    float m[2];  // running maximum, in units of log2
    float l[2];  // this lane's part of the row sum
};

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Token scales: replace every score by Y = s_k S.
__device__ __forceinline__ void scale_by_token(Scores& s, u32 k_scale) {
#pragma unroll
    for (s32 n = 0; n < kNs; ++n) {
        const float2 k = load_float2(k_scale + 32 * n);
#pragma unroll
        for (s32 e = 0; e < 4; ++e) s[n][e] = __float_as_int((float)s[n][e] * (e % 2 ? k.y : k.x));
    }
}

// Largest score of row r over the columns of span `block` that this lane holds, in two chains: half the latency.
template <bool kFloats>
__device__ __forceinline__ float lane_max(const Scores& s, s32 r, s32 block) {
    s32 top[2] = {s[8 * block][2 * r], s[8 * block][2 * r + 1]};
#pragma unroll
    for (s32 n = 8 * block + 1; n < 8 * (block + 1); ++n) {
        if constexpr (kFloats) {
            top[0] = __float_as_int(fmaxf(__int_as_float(top[0]), __int_as_float(s[n][2 * r])));
            top[1] = __float_as_int(fmaxf(__int_as_float(top[1]), __int_as_float(s[n][2 * r + 1])));
        } else {  // one instruction for two scores
            top[n % 2] = max(top[n % 2], max(s[n][2 * r], s[n][2 * r + 1]));
        }
    }
    return kFloats ? fmaxf(__int_as_float(top[0]), __int_as_float(top[1])) : (float)max(top[0], top[1]);
}

// Maximum of row r over the tile, rounded up; `t` are this lane's factors of Y per span.
template <bool kFloats>
__device__ __forceinline__ float tile_max(const Scores& s, s32 r, const float (&t)[kBlocks][2]) {
    float x = __fmul_ru(lane_max<kFloats>(s, r, 0), t[0][r]);
#pragma unroll
    for (s32 h = 1; h < kBlocks; ++h) x = fmaxf(x, __fmul_ru(lane_max<kFloats>(s, r, h), t[h][r]));
    return quad_max(x);
}

// P = R 2^(x - m_ref) for all columns, as A fragments of the second product; and this lane's part of the row sums.
template <bool kFloats>
__device__ __forceinline__ void probabilities(const Scores& s, const float (&t)[kBlocks][2],
                                              const float (&m_ref)[2], float log2_top, Probabilities& p,
                                              float (&sum)[2]) {
    const float constant[2] = {__fsub_rd(log2_top, m_ref[0]),
                               __fsub_rd(log2_top, m_ref[1])};  // P never exceeds R
    u32 total[2], count[2] = {0, 0};
#pragma unroll
    for (s32 n = 0; n < kNs; n += 2) {
        u32 half[4];  // as an A fragment of 16 keys: rows g and g + 8 of MMA tile n, then of n + 1
#pragma unroll
        for (s32 a = 0; a < 4; ++a) {
            float y[2];
#pragma unroll
            for (s32 e = 0; e < 2; ++e) {
                const s32 bits = s[n + a / 2][a % 2 * 2 + e];
                y[e] = fmaf(kFloats ? __int_as_float(bits) : (float)bits, t[n / 8][a % 2], constant[a % 2]);
            }
            if (kCubic != 0 && n / 2 % kCubic == 0)
                half[a] = exp2_cubic(half2_bits(y[0], y[1]));
            else
                half[a] = half2_bits(exp2_approx(y[0]), exp2_approx(y[1]));
        }
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            if constexpr (kPv == kHalf) {
                p[n / 2][r] = half[r];
                p[n / 2][2 + r] = half[2 + r];
            } else {
                p[n / 4][n % 4 + r] = round_to_bytes(half[r], half[2 + r]);
            }
            if constexpr (kExactSum || kPv == kHalf) {
                const u32 pair = add_half2(half[r], half[2 + r]);
                total[r] = n == 0 ? pair : add_half2(total[r], pair);
            } else if (n % 4 == 2) {
                count[r] = sum_bytes(p[n / 4][r], sum_bytes(p[n / 4][2 + r], count[r]));
            }
        }
    }
    if constexpr (kExactSum || kPv == kHalf) {
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            const float2 both = floats_of(total[r]);
            sum[r] = both.x + both.y;
        }
    } else {
        sum[0] = (float)count[0], sum[1] = (float)count[1];
    }
}
