// The two products of a tile by warpgroup: S = Q K^T and O += P V on tiles that the tensor memory accelerator brought.
#pragma once
#include "pipeline.cuh"
#include "ptx_wgmma.cuh"
#include "rescale.cuh"
#include "score.cuh"
#include "softmax_wgmma.cuh"
#include "swizzle.cuh"

constexpr s32 kDepth = kD / 32;  // instructions deep, Q K^T
constexpr s32 kNd = kD / 8;      // 8-channel MMA tiles of O
constexpr s32 kOut = kD / 2;     // registers of O

typedef s32 Output[kNd][4];  // the accumulators of O: integers, or the bits of floats where kFloatO
typedef u32 Queries[kQShared ? 1 : kDepth][4];

__device__ __forceinline__ u32 chunk_of(s32 depth, u32 rows) {
    return depth * 32 / kQkChunk * rows * kQkChunk + depth * 32 % kQkChunk;
}

// This warp's 16 rows of Q as A fragments, out of the swizzled tile.
__device__ __forceinline__ void load_queries(Queries& q, u32 tile, s32 warp) {
    if constexpr (!kQShared) {
        const u32 lane = threadIdx.x % 32;
        const u32 at = tile + warp * 16 * kQkChunk + swizzled<kQkChunk>(lane % 16, lane / 16);
#pragma unroll
        for (s32 k = 0; k < kDepth; ++k) {
            constexpr s32 kPairs = kQkChunk / 32;
            load_matrices(q[k], swizzled_step<kQkChunk>(at, 0, k % kPairs) + k / kPairs * kBr * kQkChunk);
        }
    }
}

// S = Q K^T of a tile, in flight when it returns.
__device__ __forceinline__ void start_scores(Scores& s, const Queries& q, u64 q_tile, u64 k_tile) {
    s32(&d)[4 * kNs] = (s32(&)[4 * kNs]) s;
    wgmma_fence();
#pragma unroll
    for (s32 k = 0; k < kDepth; ++k) {
        const u64 b = moved(k_tile, chunk_of(k, kBc));
        if constexpr (kQShared)
            wgmma_s8(d, moved(q_tile, chunk_of(k, kBr)), b, k > 0);
        else
            wgmma_s8(d, q[k], b, k > 0);
    }
}

// The first of the two channels that a lane holds of MMA tile n of O. The copies of V in bytes bring its rows so that a
// lane has eight channels in a row, and stores 16 bytes.
__device__ __forceinline__ s32 channel_of(s32 n, s32 t) {
    return kPv == kHalf ? 8 * n + 2 * t : n / 4 * 32 + 8 * t + n % 4 * 2;
}

// V of 32 keys in a tile, where P V takes it in bytes.
__device__ __forceinline__ u64 values_at(u64 v_tile, s32 k) {
    return moved(v_tile, kVKeys == 64 ? k / 2 * kD * 64 + k % 2 * 32 : k * kD * 32);
}

// O += P V of a tile, in flight when it returns; behind a fence.
__device__ __forceinline__ void start_output(Output& o, const Probabilities& p, u64 v_tile) {
#pragma unroll
    for (s32 k = 0; k < kPSteps; ++k) {
        if constexpr (kPv == kHalf)
            wgmma_f16((s32(&)[kOut])o, p[k], moved(v_tile, k * 16 * kVChunk), true);
        else
            wgmma_u8_s8((s32(&)[kOut])o, p[k], values_at(v_tile, k), true);
    }
}

// O in floats takes integer products in parts, of as many channels as registers are left for: in series those of S are.
constexpr s32 kPartChannels = !kSerial || kVBlock ? (kD == 64 || (kWarps == 8 && !kKToken) ? 64 : 32)
                              : kD == 128         ? 64
                              : kD == 256         ? 128
                                                  : kD;
constexpr s32 kParts = kIntegerPv && kFloatO ? kD / kPartChannels : 0;  // 0: O is the accumulator
typedef s32 Part[kPartChannels / 8][4];

__device__ __forceinline__ void start_part_of_output(Part& d, const Probabilities& p, u64 v_tile) {
#pragma unroll
    for (s32 k = 0; k < kPSteps; ++k)
        if constexpr (kVOffset)
            wgmma_u8_u8((s32(&)[kPartChannels / 2]) d, p[k], values_at(v_tile, k), k > 0);
        else
            wgmma_u8_s8((s32(&)[kPartChannels / 2]) d, p[k], values_at(v_tile, k), k > 0);
}

// V that is 128 too large makes sums below 2^24 that are never negative: their bits are floats of 2^-149 a unit, subnormal
// or just above, and need no conversion. O has 2^-49 a unit then. Rows.zero is what a channel of zeros would have, by the
// same steps, and so takes the 128 off exactly.
static_assert(!kVOffset || 255 * 255 * kBc < 1 << 24,
              "INTFA_BC: too many keys for sums that are read as floats");
constexpr float kPartUnit = kVOffset ? 0x1p100f : 1.0f, kOutputUnit = kVOffset ? 0x1p49f : 1.0f;

// O += w s_v P V of part i, or w P V where s_v waits for the end; v_scales are those of the lane's first channel.
__device__ __forceinline__ void add_part(Output& o, const Part& d, const float (&w)[2], u32 v_scales, s32 i) {
#pragma unroll
    for (s32 n = 0; n < kPartChannels / 8; ++n) {
        const s32 tile = i * (kPartChannels / 8) + n;
        const float2 v_scale =
            kVBlock ? load_float2(v_scales + 4 * channel_of(tile, 0)) : make_float2(1.0f, 1.0f);
#pragma unroll
        for (s32 e = 0; e < 4; ++e) {
            s32& x = o[tile][e];
            x = __float_as_int(fma_exact(kVOffset ? __int_as_float(d[n][e]) : (float)d[n][e],
                                         w[e / 2] * (e % 2 ? v_scale.y : v_scale.x), __int_as_float(x)));
        }
    }
}

// The same for a channel of zeros: `counts` are sums of this lane's P, of row 1 in the upper half.
__device__ __forceinline__ u32 quad_sums(u32 counts) {
    counts += __shfl_xor_sync(0xffffffffu, counts, 1);
    return counts + __shfl_xor_sync(0xffffffffu, counts, 2);
}
__device__ __forceinline__ void add_zero(Rows& rows, u32 counts, const float (&w)[2]) {
#pragma unroll
    for (s32 r = 0; r < 2; ++r)
        rows.zero[r] = fma_exact(__int_as_float(128 * (counts >> 16 * r & 0xffff)), w[r], rows.zero[r]);
}

// Registers that a product in flight has written: nothing that reads them moves above this.
template <s32 kCount>
__device__ __forceinline__ void settle(s32 (&x)[kCount][4]) {
#pragma unroll
    for (s32 i = 0; i < kCount; ++i)
#pragma unroll
        for (s32 e = 0; e < 4; ++e) asm volatile("" : "+r"(x[i][e])::"memory");
}

// An integer O starts here: as floats its registers are 12582912 + O while |O| < 2^22, and so they come out of one FMA, times
// alpha plus 12582912 (1 - alpha). The error is half a unit, and half at most by which the addend is rounded; with alpha 1
// no bit changes.
constexpr s32 kZero = kFloatO ? 0 : kScoreBias;

// O of an element, without what V's offset adds.
__device__ __forceinline__ float float_of(s32 o, float zero) {
    if constexpr (kVOffset) return (__int_as_float(o) - zero) * kOutputUnit;
    return kFloatO ? __int_as_float(o) : (float)(o - kZero);
}

// Whether row r's |O| is below 2^22 in this lane: by its share l of the row sum, for 127 times the sum of rounded P is at
// least as much, and that at most the sum of P and half of the keys; or by the registers, whose first nine bits then agree.
__device__ __forceinline__ bool is_near(float l, s32 keys) { return l < 8192.0f - 0.125f * (float)keys; }
__device__ __forceinline__ bool is_seen_near(const Output& o, s32 r) {
    s32 other = 0;
#pragma unroll
    for (s32 n = 0; n < kNd; ++n) other |= (o[n][2 * r] ^ kZero) | (o[n][2 * r + 1] ^ kZero);
    return (u32)other < 0x800000u;
}

// Every register of row r.
template <class Scaled>
__device__ __forceinline__ void scale_row(Output& o, s32 r, Scaled scaled) {
#pragma unroll
    for (s32 n = 0; n < kNd; ++n)
#pragma unroll
        for (s32 e = 2 * r; e < 2 * r + 2; ++e) o[n][e] = scaled(o[n][e]);
}

// The maximum of some of the warp's rows r has grown: bring O to the new references. `l` are lanes' parts of the row sums so
// far, of so many keys; alpha is 1 where a maximum has not grown.
__device__ __forceinline__ void rescale(Output& o, s32 r, float alpha, float l, s32 keys) {
    if constexpr (kFloatO) {
        scale_row(o, r, [&](s32 x) { return __float_as_int(__int_as_float(x) * alpha); });
        return;
    }
    bool near = __all_sync(0xffffffffu, is_near(l, keys));
    if (!near) near = __all_sync(0xffffffffu, is_seen_near(o, r));
    if (near) {
        const float addend = fmaf(-alpha, kScoreBiasFloat, kScoreBiasFloat);
        scale_row(o, r, [&](s32 x) { return __float_as_int(fmaf(__int_as_float(x), alpha, addend)); });
    } else {
        const Rescale by = rescale_by(alpha, quad_sum(l));
        if (alpha < 1.0f) scale_row(o, r, [&](s32 x) { return rescaled(x - kZero, by) + kZero; });
    }
}
