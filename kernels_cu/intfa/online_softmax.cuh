// The softmax of one step: scores of 16 rows x kStep keys per MMA tile, in the registers of one warp.
//
// A lane holds, of rows g and g + 8, the columns 8n + 2t and 8n + 2t + 1: s[n][0..1] and s[n][2..3]. Integer scores
// arrive with 0x4B400000 added: as floats they read 12582912 + S (|S| < 2^22 for D <= 256), with no conversion on the
// slow unit. Where the scale of a score is the same for all of a lane's columns, the 12582912 leaves with the constant
// of the exponent, rounded down by less than 2^-12 for the rows that do so (may_fold).
#pragma once
#include "config.cuh"
#include "ptx_copy.cuh"
#include "ptx_math.cuh"
#include "ptx_mma.cuh"
#include "score.cuh"

constexpr float kNoKey = -3.402823466e38f;  // maximum of a row without a key yet: finite, to be subtracted

constexpr s32 kNs = kStep / 8;                                   // 8-column MMA tiles per step
constexpr s32 kBlocks = kStep > 64 ? kStep / 64 : 1;             // spans of keys with scales of their own
constexpr s32 kPSteps = kPv == kHalf ? kStep / 16 : kStep / 32;  // depths of an MMA per step
constexpr bool kBiased = kQk == kInt8 && !kKToken;               // scores stay biased up to the exponent

// Running state of the two rows of one MMA tile that a lane serves.
struct Rows {
    float c[2];     // scale_log2 s_q, never 0
    float m[2];     // running maximum, in units of log2
    float l[2];     // row sum
    float bias[2];  // what the exponent's constant takes off the scores
};

__device__ __forceinline__ float score(s32 bits) {
    return kQk == kInt8 ? unbiased(bits) : __int_as_float(bits);
}

// (12582912 + |S|) t < 2^12 for D <= 256: the constant of the exponent is known to less than 2^-12.
__device__ __forceinline__ bool may_fold(float t) { return t <= 2.4e-4f; }

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Token scales: replace every score by Y = s_k S.
__device__ __forceinline__ void scale_by_token(s32 (&s)[kNs][4], u32 k_scale) {
#pragma unroll
    for (s32 n = 0; n < kNs; ++n) {
        float2 k = load_float2(k_scale + 32 * n);
        s[n][0] = __float_as_int(score(s[n][0]) * k.x);
        s[n][1] = __float_as_int(score(s[n][1]) * k.y);
        s[n][2] = __float_as_int(score(s[n][2]) * k.x);
        s[n][3] = __float_as_int(score(s[n][3]) * k.y);
    }
}

// Take the bias off the scores of rows whose constant cannot.
__device__ __forceinline__ void take_bias_off(s32 (&s)[kM][kNs][4], const Rows (&rows)[kM]) {
#pragma unroll
    for (s32 m = 0; m < kM; ++m)
#pragma unroll
        for (s32 n = 0; n < kNs; ++n)
#pragma unroll
            for (s32 e = 0; e < 4; ++e)
                s[m][n][e] =
                    __float_as_int(__int_as_float(s[m][n][e]) - (kScoreBiasFloat - rows[m].bias[e / 2]));
}

// Largest score of row r (0 or 1) over the columns of span `block` that this lane holds.
__device__ __forceinline__ float lane_max(const s32 (&s)[kNs][4], s32 r, s32 block) {
    constexpr s32 kSpan = kNs / kBlocks;
    if constexpr (
        kBiased) {  // they order as integers: one three-input maximum for two of them where the chip has it
        s32 top[2] = {s[kSpan * block][2 * r], s[kSpan * block][2 * r + 1]};  // two chains: half the latency
#pragma unroll
        for (s32 n = kSpan * block + 1; n < kSpan * (block + 1); ++n)
            top[n % 2] = max(top[n % 2], max(s[n][2 * r], s[n][2 * r + 1]));
        return score(max(top[0], top[1]));
    } else {
        float top[2] = {__int_as_float(s[kSpan * block][2 * r]), __int_as_float(s[kSpan * block][2 * r + 1])};
#pragma unroll
        for (s32 n = kSpan * block + 1; n < kSpan * (block + 1); ++n) {
            top[0] = fmaxf(top[0], __int_as_float(s[n][2 * r]));
            top[1] = fmaxf(top[1], __int_as_float(s[n][2 * r + 1]));
        }
        return fmaxf(top[0], top[1]);
    }
}

// Maximum of row r over the step's columns, rounded up; `t` are this lane's factors of Y per span.
__device__ __forceinline__ float step_max(const s32 (&s)[kNs][4], s32 r, const float (&t)[kBlocks][2]) {
    float x = __fmul_ru(lane_max(s, r, 0), t[0][r]);
#pragma unroll
    for (s32 h = 1; h < kBlocks; ++h) x = fmaxf(x, __fmul_ru(lane_max(s, r, h), t[h][r]));
    return quad_max(x);
}

// An MMA with ones sums P over all lanes, into four registers: at D 256 with O in floats there are but two.
constexpr bool kCountByLane = kFloatO && kD == 256;

// P = R 2^(x - m_ref) for all columns, packed as A fragments of the second product, p[depth step][a0..a3]; and its row
// sums, by an MMA with ones. An `exact` sum takes P as float16, for 8-bit P the float16 sums of columns j and j + 8: an
// error of 2^-11 at most in a term, against 32 additions. A quantised one takes P as it is multiplied.
__device__ __forceinline__ void probabilities(const s32 (&s)[kNs][4], const float (&t)[kBlocks][2],
                                              const float (&m_ref)[2], const Rows& rows, float log2_top,
                                              u32 (&p)[kPSteps][4], float (&sum)[2]) {
    constexpr bool kHalfSum = kExactSum || kPv == kHalf;
    float constant[kBlocks][2];
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        float base = __fsub_rd(log2_top, m_ref[r]);  // rounded down: P never exceeds R
#pragma unroll
        for (s32 h = 0; h < kBlocks; ++h)
            constant[h][r] = kBiased ? __fmaf_rd(-rows.bias[r], t[h][r], base) : base;
    }
    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    u32 pairs[4];
    s32 count[4] = {kScoreBias, kScoreBias, kScoreBias, kScoreBias};
#pragma unroll
    for (s32 n = 0; n < kNs; n += 2) {
        float q[4][2];  // as an A fragment of 16 keys: rows g and g + 8 of MMA tile n, then of n + 1
#pragma unroll
        for (s32 a = 0; a < 4; ++a)
#pragma unroll
            for (s32 e = 0; e < 2; ++e) {
                s32 bits = s[n + a / 2][a % 2 * 2 + e];
                float y = kBiased || kKToken ? __int_as_float(bits) : score(bits);
                q[a][e] = exp2_approx(fmaf(y, t[n / 8 % kBlocks][a % 2], constant[n / 8 % kBlocks][a % 2]));
            }
        u32 half[4];
        if constexpr (kHalfSum || kPv == kInt8) {
#pragma unroll
            for (s32 a = 0; a < 4; ++a) half[a] = half2_bits(q[a][0], q[a][1]);
        }
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            if constexpr (kPv == kHalf) {
                p[n / 2][r] = half[r];
                p[n / 2][2 + r] = half[2 + r];
            } else if constexpr (kPv == kInt8) {
                p[n / 4][n % 4 + r] = round_to_bytes(half[r], half[2 + r]);
            } else {
                p[n / 4][n % 4 + r] = pack_float8<kPv>(q[r][0], q[r][1], q[2 + r][0], q[2 + r][1]);
            }
        }
        if constexpr (kHalfSum && kPv == kHalf) mma_float<kHalf>(total, half, 0x3c003c00u, 0x3c003c00u);
        if constexpr (kHalfSum && kPv != kHalf) {
            pairs[n % 4] = add_half2(half[0], half[2]);
            pairs[n % 4 + 1] = add_half2(half[1], half[3]);
            if (n % 4 == 2) mma_float<kHalf>(total, pairs, 0x3c003c00u, 0x3c003c00u);
        }
        if constexpr (!kHalfSum && kPv == kInt8) {
            if (n % 4 == 2 && !kCountByLane) mma_u8(count, p[n / 4], 0x01010101u, 0x01010101u);
#pragma unroll
            for (s32 r = 0; r < 2; ++r)
                if (n % 4 == 2 && kCountByLane)
                    count[2 * r] = (s32)sum_bytes(p[n / 4][r], sum_bytes(p[n / 4][2 + r], count[2 * r]));
        }
        if constexpr (!kHalfSum && kPv == kE4M3)
            if (n % 4 == 2) mma_float<kPv>(total, p[n / 4], 0x38383838u, 0x38383838u);
        if constexpr (!kHalfSum && kPv == kE5M2)
            if (n % 4 == 2) mma_float<kPv>(total, p[n / 4], 0x3c3c3c3cu, 0x3c3c3c3cu);
    }
#pragma unroll
    for (s32 r = 0; r < 2; ++r) {
        if constexpr (kCountByLane && !kHalfSum && kPv == kInt8) {
            count[2 * r] += __shfl_xor_sync(0xffffffffu, count[2 * r] - kScoreBias, 1);
            count[2 * r] += __shfl_xor_sync(0xffffffffu, count[2 * r] - kScoreBias, 2);
        }
        sum[r] = kHalfSum || kPv != kInt8 ? total[2 * r] : __int_as_float(count[2 * r]) - kScoreBiasFloat;
    }
}
