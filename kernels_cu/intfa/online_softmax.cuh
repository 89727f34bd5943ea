// The softmax of one tile: scores of 16 rows x kBc keys per MMA tile, in the registers of one warp.
//
// A lane holds, of rows g and g + 8, the columns 8n + 2t and 8n + 2t + 1: s[n][0..1] and s[n][2..3]. Integer scores
// arrive with 0x4B400000 added: as floats they read 12582912 + S, so that one FADD, and no conversion on the slow
// unit, gives S (|S| < 2^22 for D <= 256).
#pragma once
#include "config.cuh"
#include "ptx_math.cuh"

constexpr s32 kScoreBias = 0x4B400000;
constexpr float kScoreBiasFloat = 12582912.0f;
constexpr u32 kMinusInfinity = 0xff800000u;  // below every biased score, as a float and as an integer

constexpr s32 kNs = kBc / 8;  // 8-column MMA tiles per key tile

// Running state of the two rows of one MMA tile that a lane serves.
struct Rows {
    float c[2];  // scale_log2 s_q, never 0
    float m[2];  // running maximum, in units of log2
    float l[2];  // row sum over this lane's columns
};

__device__ __forceinline__ float score(s32 bits) {
    return kQk == kInt8 ? __int_as_float(bits) - kScoreBiasFloat : __int_as_float(bits);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Token scales: replace every score by Y = s_k S.
__device__ __forceinline__ void scale_by_token(s32 (&s)[kNs][4], const float* k_scale, s32 t) {
#pragma unroll
    for (s32 n = 0; n < kNs; ++n) {
        float2 k = *(const float2*)(k_scale + 8 * n + 2 * t);
        s[n][0] = __float_as_int(score(s[n][0]) * k.x);
        s[n][1] = __float_as_int(score(s[n][1]) * k.y);
        s[n][2] = __float_as_int(score(s[n][2]) * k.x);
        s[n][3] = __float_as_int(score(s[n][3]) * k.y);
    }
}

// Largest score of row r (0 or 1) over the 64 columns of block `half` that this lane holds.
__device__ __forceinline__ float lane_max(const s32 (&s)[kNs][4], s32 r, s32 half) {
    if constexpr (kKToken || kQk != kInt8) {
        float top = __int_as_float(s[8 * half][2 * r]);
#pragma unroll
        for (s32 n = 8 * half; n < 8 * half + 8; ++n)
            top = fmaxf(top, fmaxf(__int_as_float(s[n][2 * r]), __int_as_float(s[n][2 * r + 1])));
        return top;
    } else {  // biased scores order as integers: one three-input maximum for two of them where the chip has it
        s32 top = s[8 * half][2 * r];
#pragma unroll
        for (s32 n = 8 * half; n < 8 * half + 8; ++n) top = max(top, max(s[n][2 * r], s[n][2 * r + 1]));
        return score(top);
    }
}

__device__ __forceinline__ float y_of(s32 bits) { return kKToken ? __int_as_float(bits) : score(bits); }

// One MMA tile: maximum, P and row sum. `t_scale` are this lane's factors of Y per block of 64 and row; returns the
// reference of P, m_ref, and the tile's maximum for the caller to fold into the state.
struct TileMax {
    float tile[2];  // maximum of the tile, rounded up
    float m[2];     // new running maximum
};

__device__ __forceinline__ TileMax tile_max(const s32 (&s)[kNs][4], const Rows& rows, const float (&t)[kBc / 64][2]) {
    TileMax top;
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        float x = __fmul_ru(lane_max(s, r, 0), t[0][r]);
        if constexpr (kBc == 128) x = fmaxf(x, __fmul_ru(lane_max(s, r, kBc / 64 - 1), t[kBc / 64 - 1][r]));
        top.tile[r] = quad_max(x);
        top.m[r] = fmaxf(rows.m[r], top.tile[r]);
    }
    return top;
}

// R 2^(x - m_ref) for all columns: P packed as A fragments, p[k step][a0..a3]; returns the lane's row sums.
constexpr s32 kPSteps = kPv == kHalf ? kBc / 16 : kBc / 32;

__device__ __forceinline__ void probabilities(const s32 (&s)[kNs][4], const float (&t)[kBc / 64][2], const float (&m_ref)[2],
                                              float log2_top, u32 (&p)[kPSteps][4], float (&sum)[2]) {
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        float m = m_ref[r] == -INTFA_INF ? 0.0f : m_ref[r];  // no key seen yet: every score is -inf
        float constant = __fsub_rd(log2_top, m);             // rounded down: P never exceeds R
        float total = 0.0f;
        u32 count = 0;
#pragma unroll
        for (s32 n = 0; n < kNs; n += 2) {
            float q[4];
#pragma unroll
            for (s32 e = 0; e < 4; ++e) {
                q[e] = exp2_approx(fmaf(y_of(s[n + e / 2][2 * r + e % 2]), t[n / 8][r], constant));
                if constexpr (kExactSum) total += q[e];
            }
            if constexpr (kPv == kHalf) {
                u32 low = half2_bits(q[0], q[1]), high = half2_bits(q[2], q[3]);
                p[n / 2][r] = low;
                p[n / 2][2 + r] = high;
                if constexpr (!kExactSum) total += sum_pair<kHalf>(low) + sum_pair<kHalf>(high);
            } else {
                u32 packed;
                if constexpr (kPv == kInt8) packed = pack_bytes(q[0], q[1], q[2], q[3]);
                else packed = pack_float8<kPv>(q[0], q[1], q[2], q[3]);
                p[n / 4][n % 4 + r] = packed;
                if constexpr (!kExactSum && kPv == kInt8) count = sum_bytes(packed, count);
                if constexpr (!kExactSum && kPv != kInt8) total += sum_pair<kPv>(packed) + sum_pair<kPv>(packed >> 16);
            }
        }
        sum[r] = !kExactSum && kPv == kInt8 ? (float)count : total;
    }
}
