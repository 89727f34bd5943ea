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

constexpr s32 kNs = kBc / 8;                    // 8-column MMA tiles per tile
constexpr s32 kSpan = kBc % 64 == 0 ? 64 : 32;  // keys that have the same four scales, wherever a tile starts
constexpr s32 kSpans = kBc / kSpan;
constexpr s32 kPSteps = kPv == kHalf ? kBc / 16 : kBc / 32;  // depth of P V in instructions

typedef s32 Scores[kNs][4];
typedef u32 Probabilities[kPSteps][4];

// Running state of the two rows that a lane serves.
struct Rows {
    float c[2];     // scale_log2 s_q, never 0
    float m[2];     // running maximum, in units of log2
    float l[2];     // this lane's part of the row sum
    float zero[2];  // O of a channel whose V is 0, where V has an offset (products_wgmma.cuh)
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

// Largest score of row r over the columns of a span that this lane holds, in two chains: half the latency.
template <bool kFloats>
__device__ __forceinline__ float lane_max(const Scores& s, s32 r, s32 span) {
    constexpr s32 kTiles = kSpan / 8;
    s32 top[2] = {s[kTiles * span][2 * r], s[kTiles * span][2 * r + 1]};
#pragma unroll
    for (s32 n = kTiles * span + 1; n < kTiles * (span + 1); ++n) {
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
__device__ __forceinline__ float tile_max(const Scores& s, s32 r, const float (&t)[kSpans][2]) {
    float x = __fmul_ru(lane_max<kFloats>(s, r, 0), t[0][r]);
#pragma unroll
    for (s32 h = 1; h < kSpans; ++h) x = fmaxf(x, __fmul_ru(lane_max<kFloats>(s, r, h), t[h][r]));
    return quad_max(x);
}

// A float16 P has two sets of registers, as its product is long; P in bytes has one, which leaves room for larger tiles.
constexpr bool kTwoP = kPv == kHalf && kD > 64 && !kSerial;
// Groups of 16 keys whose exponentials are taken before P V of the tile before must be done with the one set.
constexpr s32 kHeld = kTwoP || kSerial ? 0 : kBc / (kD > 64 || kPv == kHalf ? 32 : 64);

// Groups of 16 keys whose P are added in float16: 16 numbers of 255 at most, which it holds exactly where they are whole.
constexpr s32 kAdded = 8;
static_assert(kNs / 2 <= 2 * kAdded, "INTFA_BC: two sums of P at most");

// P = R 2^(x - m_ref) for all columns, as A fragments of the second product; and this lane's parts of the row sums, of P
// as the recipe has it and, where those are counted, of P in bytes.
// `release` waits until P V of the tile before, whose P may lie in the same registers, is done.
template <bool kFloats, class Release>
__device__ __forceinline__ void probabilities(const Scores& s, const float (&t)[kSpans][2],
                                              const float (&m_ref)[2], float log2_top, Probabilities& p,
                                              float (&sum)[2], u32 (&count)[2], Release release) {
    constexpr bool kHalfSum = kExactSum || kPv == kHalf;
    constexpr bool kCounts = kPv != kHalf && (!kExactSum || kVOffset);
    const float constant[2] = {__fsub_rd(log2_top, m_ref[0]),
                               __fsub_rd(log2_top, m_ref[1])};  // P never exceeds R
    const float at_zero = fmaf(-log2_top, 1.0f / kCubicReach, 1.0f);
    u32 total[2];
    count[0] = count[1] = 0;
    float before[2] = {0.0f, 0.0f};  // sums of the tile's first kAdded groups
    // As A fragments of 16 keys: rows g and g + 8 of two MMA tiles side by side. A float16 P is held as floats: as halves
    // it would be moved to P, and every product would wait (C7513).
    u32 half[kNs / 2][4];
    float y[kNs / 2][4][2];
    auto add = [&](s32 i) {
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            const u32 pair = add_half2(half[i][r], half[i][2 + r]);
            total[r] = i % kAdded == 0 ? pair : add_half2(total[r], pair);
            if (i == kAdded - 1 && kNs / 2 > kAdded) {
                const float2 both = floats_of(total[r]);
                before[r] = both.x + both.y;
            }
        }
    };
    auto pack = [&](s32 i) {
        if constexpr (kPv == kHalf) {
#pragma unroll
            for (s32 a = 0; a < 4; ++a) p[i][a] = half[i][a] = half2_bits(y[i][a][0], y[i][a][1]);
            add(i);
        } else {
#pragma unroll
            for (s32 r = 0; r < 2; ++r) {
                p[i / 2][i % 2 * 2 + r] = round_to_bytes(half[i][r], half[i][2 + r]);
                if (kCounts && i % 2 == 1)
                    count[r] = sum_bytes(p[i / 2][r], sum_bytes(p[i / 2][2 + r], count[r]));
            }
        }
    };
#pragma unroll
    for (s32 i = 0; i < kNs / 2; ++i) {
        if (!kTwoP && i == kHeld) {
            release();
#pragma unroll
            for (s32 h = 0; h < i; ++h) pack(h);
        }
#pragma unroll
        for (s32 a = 0; a < 4; ++a) {
            const bool cubic = kCubic != 0 && i % kCubic == 0;
            const float scale = t[16 * i / kSpan][a % 2], zero = constant[a % 2];
#pragma unroll
            for (s32 e = 0; e < 2; ++e) {
                const s32 bits = s[2 * i + a / 2][a % 2 * 2 + e];
                const float x = kFloats ? __int_as_float(bits) : (float)bits;
                y[i][a][e] = cubic ? fma_saturated(x, scale * (1.0f / kCubicReach),
                                                   fmaf(zero, 1.0f / kCubicReach, at_zero))
                                   : exp2_approx(fmaf(x, scale, zero));
            }
            if (kPv != kHalf) half[i][a] = half2_bits(y[i][a][0], y[i][a][1]);
            if (cubic) half[i][a] = exp2_cubic(half[i][a]);
        }
        if (kHalfSum && kPv != kHalf) add(i);
        if (i >= kHeld) pack(i);
    }
    if (kTwoP) release();
    if constexpr (kHalfSum) {
#pragma unroll
        for (s32 r = 0; r < 2; ++r) {
            const float2 both = floats_of(total[r]);
            sum[r] = kNs / 2 > kAdded ? before[r] + (both.x + both.y) : both.x + both.y;
        }
    } else {
        sum[0] = (float)count[0], sum[1] = (float)count[1];
    }
}
