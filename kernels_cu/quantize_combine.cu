// Computes    from the statistics of the chunks: means of K and V, scales of V per channel, absolute maximum of V per
//             head. And the start values of what later launches collect: k_scale_max, kv_mark, q_absmax, k_absmax.
// Grid/Block  1-D grid, one block per (head of K and V, 32 channels); 512 threads.
// Inputs      scratch k_sum, v_sum (overwritten), v_low, v_high.
// Outputs     k_mean, v_mean; v_scale per channel, or v_absmax per tensor; k_scale_max = 0, kv_mark = 0, absmax = 0.
// Tiles       all chunks x 32 channels.
// Fragments   thread (channel, slot) has every 16th chunk.
// Shared map  Shared: minimum and maximum of each slot.
// Pipeline    none.
// Sync        1 barrier per step of the fold, 1 for the extremes.
// Numerics    the tree of mean_over_tokens over the chunks, three of its levels a step: chunks are thought of as padded
//             with zeros to a power of 8, which adds 0 to whole values. |x - mean| is largest at the minimum or at the
//             maximum of x, also after rounding, which is monotonic. Where it leaves float32 the head is marked by
//             quantize_values; a mean that is not finite leaves absmax 0, any other its largest finite value.
// Edges       channels beyond head_dim: mean 0, scale 1.
// Limits      one block reads all chunks of its channels: 0.1 ms at a million tokens.
// Twin        cupy_intfa.quantize.arithmetic.mean_over_tokens and scale_from_absmax.
#include "intfa/quantize_codes.cuh"
#include "intfa/quantize_fold.cuh"

constexpr s32 kThreads = 512;
constexpr s32 kSlots = kThreads / 32;

struct Shared {
    float low[kSlots][32], high[kSlots][32];
};

// Adds up chunks c, c + stride, ..., c + 7 stride in place, for all c below the stride.
__device__ __forceinline__ void fold_step(float* sums, s32 chunks, s32 stride, s32 slot) {
    for (s32 c = slot; c < min(stride, chunks); c += kSlots) {
        float x[8];
#pragma unroll
        for (s32 i = 0; i < 8; ++i) x[i] = c + i * stride < chunks ? sums[(s64)(c + i * stride) * kD] : 0.0f;
        sums[(s64)c * kD] = fold8(x);
    }
}

// Mean of one channel from the sum over all chunks; -0 and subnormals become +0.
__device__ __forceinline__ float mean_of(float total, s32 length) {
    return __fadd_rn(__fdiv_rn(total, (float)length), 0.0f);
}

// Largest |x - mean| for x in [low, high].
__device__ __forceinline__ float absmax_of_range(float low, float high, float mean) {
    if (!(fabsf(mean) < INTFA_INF)) return 0.0f;
    const float absmax = fmaxf(fabsf(__fsub_rn(low, mean)), fabsf(__fsub_rn(high, mean)));
    return fminf(absmax, __int_as_float(0x7f7fffff));
}

__device__ __forceinline__ void range_of_chunks(const float* low, const float* high, s32 chunks, s32 slot, s32 channel,
                                                Shared& shared) {
    float least = INTFA_INF, most = -INTFA_INF;
#pragma unroll 4
    for (s32 c = slot; c < chunks; c += kSlots) {
        least = fminf(least, low[(s64)c * kD]);
        most = fmaxf(most, high[(s64)c * kD]);
    }
    shared.low[slot][channel] = least;
    shared.high[slot][channel] = most;
    __syncthreads();
}

// Start values of what later launches collect with atomicMax, and the marks that they may set.
__device__ __forceinline__ void initialise(const QuantizeParams& p, s32 bh) {
    const s32 group = p.heads / p.kv_heads, i = threadIdx.x;
    if (i == 0) p.k_scale_max[bh] = p.kv_mark[bh] = 0.0f;
    if (kKSpan == kTensor && i == 0) p.k_absmax[bh] = 0;
    if (kQSpan == kTensor) {
        for (s32 h = i; h < group; h += kThreads) p.q_absmax[bh * group + h] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads) quantize_combine(const __grid_constant__ QuantizeParams p) {
    __shared__ Shared shared;
    const s32 channel = threadIdx.x % 32, slot = threadIdx.x / 32, bh = blockIdx.x / (kD / 32);
    const s32 d = blockIdx.x % (kD / 32) * 32 + channel, chunks = chunks_of(p.kv_len);
    const s64 from = (s64)bh * chunks * kD + d, at = (s64)bh * kD + d;
    if (d < 32) initialise(p, bh);
    if constexpr (kSmoothK || kSmoothV) {
        s32 stride = 1;
        while (stride * 8 < chunks) stride *= 8;
        for (; stride > 0; stride /= 8) {
            if constexpr (kSmoothK) fold_step(p.k_sum + from, chunks, stride, slot);
            if constexpr (kSmoothV) fold_step(p.v_sum + from, chunks, stride, slot);
            __syncthreads();
        }
    }
    if constexpr (kRangeV) range_of_chunks(p.v_low + from, p.v_high + from, chunks, slot, channel, shared);
    if (slot > 0) return;

    const bool inside = d < p.head_dim;
    if constexpr (kSmoothK) p.k_mean[at] = inside ? mean_of(p.k_sum[from], p.kv_len) : 0.0f;
    float mean = 0.0f;
    if constexpr (kSmoothV) p.v_mean[at] = mean = inside ? mean_of(p.v_sum[from], p.kv_len) : 0.0f;
    if constexpr (kRangeV) {
        float low = shared.low[0][channel], high = shared.high[0][channel];
#pragma unroll
        for (s32 s = 1; s < kSlots; ++s) {
            low = fminf(low, shared.low[s][channel]);
            high = fmaxf(high, shared.high[s][channel]);
        }
        const float absmax = absmax_of_range(low, high, mean);
        if constexpr (kVSpan == kChannel) p.v_scale[at] = scale_of<kV>(inside ? absmax : 0.0f, kVLargest);
        if constexpr (kVSpan == kTensor) atomicMax(p.v_absmax + bh, __float_as_uint(absmax));
    }
}
