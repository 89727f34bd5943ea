// Computes    per chunk of 128 tokens and channel: the sums of K and V that are smoothed, minimum and maximum of a V
//             whose scale is per channel or tensor.
// Grid/Block  1-D grid, one block per chunk of a head, those of K first where K is smoothed, then those of V where it
//             needs anything; 2 kD threads.
// Inputs      k, v of any float type and strides.
// Outputs     scratch k_sum, v_sum, v_low, v_high (B, Hkv, chunks, kD).
// Tiles       128 tokens x kD channels.
// Fragments   thread (pair, slot) has the tokens slot + 4 i, i = 0 ... 31, of two neighbouring channels.
// Shared map  Shared: one row of channels per slot, for the sum, the minimum and the maximum.
// Pipeline    none: blocks overlap each other. Sixteen loads of a thread are in flight together.
// Sync        1 barrier, before the four slots are combined.
// Numerics    the tree of mean_over_tokens: halves of the chunk are added up, the halves of that, ... The bits 6 to 2 of
//             a token's place are folded in a thread, bits 1 and 0 across the slots.
// Edges       a short chunk reads its last token again: that changes no extreme, and 0 is added in its stead.
// Limits      none.
// Twin        cupy_intfa.quantize.arithmetic.mean_over_tokens, absmax of the centred values (see quantize_combine.cu).
#include "intfa/quantize_fold.cuh"
#include "intfa/quantize_load.cuh"

constexpr s32 kThreads = 2 * kD;
constexpr s32 kPairs = kD / 2;

struct Shared {
    float sum[4][kD], low[4][kD], high[4][kD];
};

// Of two channels of a thread's 32 tokens.
struct Statistics {
    float sum[2], low[2], high[2];
};

// Trusting, it takes all tokens to exist and to be finite.
template <bool kTrusting>
__device__ __forceinline__ void read_tokens(const Reader& reader, s32 slot, s32 count, Statistics& of) {
#pragma unroll
    for (s32 c = 0; c < 2; ++c) of.low[c] = INTFA_INF, of.high[c] = -INTFA_INF;
    // Sixteen loads are in flight at a time: all 32 would take the registers that keep the other blocks running.
#pragma unroll 1
    for (s32 half = 0; half < 2; ++half) {
        float part[2][2];
#pragma unroll
        for (s32 n = 0; n < 2; ++n) {
            const s32 first = slot + 4 * half + 8 * n;
            float x[8][2], column[2][8];
#pragma unroll
            for (s32 i = 0; i < 8; ++i) {
                reader.read(kTrusting ? first + 16 * i : min(first + 16 * i, count - 1), x[i]);
            }
#pragma unroll
            for (s32 i = 0; i < 8; ++i) {
                if (!kTrusting) clean(x[i]);
#pragma unroll
                for (s32 c = 0; c < 2; ++c) {
                    of.low[c] = fminf(of.low[c], x[i][c]);
                    of.high[c] = fmaxf(of.high[c], x[i][c]);
                    column[c][i] = kTrusting || first + 16 * i < count ? x[i][c] : 0.0f;
                }
            }
#pragma unroll
            for (s32 c = 0; c < 2; ++c) part[n][c] = fold8(column[c]);
        }
#pragma unroll
        for (s32 c = 0; c < 2; ++c) {
            const float sum = __fadd_rn(part[0][c], part[1][c]);
            of.sum[c] = half == 0 ? sum : __fadd_rn(of.sum[c], sum);
        }
    }
}

template <bool kSum, bool kRange>
__device__ __forceinline__ void chunk_statistics(const QuantizeParams& p, const Input& input, s32 bh,
                                                 s32 chunk, float* sum_out, float* low_out, float* high_out,
                                                 Shared& shared) {
    const s32 channel = 2 * (threadIdx.x % kPairs), slot = threadIdx.x / kPairs;
    const s32 count = p.kv_len - chunk * kChunk;
    const Reader reader(input, bh / p.kv_heads, bh % p.kv_heads, chunk * kChunk, channel, p.head_dim);
    Statistics of = {};
    if (reader.channels > 0) {
        bool trusted = count >= kChunk;
        if (trusted) {
            read_tokens<true>(reader, slot, count, of);
            trusted =
                fabsf(of.sum[0]) < INTFA_INF && fabsf(of.sum[1]) < INTFA_INF;  // then all of its terms are
        }
        if (!trusted) read_tokens<false>(reader, slot, count, of);
    }
#pragma unroll
    for (s32 c = 0; c < 2; ++c) {
        if constexpr (kSum) shared.sum[slot][channel + c] = of.sum[c];
        if constexpr (kRange)
            shared.low[slot][channel + c] = of.low[c], shared.high[slot][channel + c] = of.high[c];
    }
    __syncthreads();
    const s32 d = threadIdx.x;
    if (d >= kD) return;
    const s64 at = ((s64)bh * chunks_of(p.kv_len) + chunk) * kD + d;
    if constexpr (kSum)
        sum_out[at] = fold4(shared.sum[0][d], shared.sum[1][d], shared.sum[2][d], shared.sum[3][d]);
    if constexpr (kRange) {
        low_out[at] =
            fminf(fminf(shared.low[0][d], shared.low[1][d]), fminf(shared.low[2][d], shared.low[3][d]));
        high_out[at] =
            fmaxf(fmaxf(shared.high[0][d], shared.high[1][d]), fmaxf(shared.high[2][d], shared.high[3][d]));
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    quantize_statistics(const QuantizeParams p) {
    __shared__ Shared shared;
    const u32 chunks = chunks_of(p.kv_len), per_input = (u32)p.batch * p.kv_heads * chunks;
    const bool keys = kSmoothK && blockIdx.x < per_input;
    const u32 index = blockIdx.x % per_input;
    const s32 bh = (s32)(index / chunks), chunk = (s32)(index % chunks);
    if (keys) {
        if constexpr (kSmoothK)
            chunk_statistics<true, false>(p, p.k, bh, chunk, p.k_sum, nullptr, nullptr, shared);
    } else {
        if constexpr (kSmoothV || kRangeV) {
            chunk_statistics<kSmoothV, kRangeV>(p, p.v, bh, chunk, p.v_sum, p.v_low, p.v_high, shared);
        }
    }
}
