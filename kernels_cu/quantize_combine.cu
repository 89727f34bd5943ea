// Computes    from the statistics of the chunks: means of K and V, and scales of a V that has one per channel or tensor.
//             And the start values of what later launches collect: k_scale_max, kv_mark, q_absmax, k_absmax.
// Grid/Block  1-D grid, one block per kWidth channels of a head of K and V: 32, or all where they share a scale; about
//             512 threads.
// Inputs      scratch k_sum, v_sum (overwritten), v_low, v_high.
// Outputs     k_mean, v_mean, v_scale; k_scale_max = 0, kv_mark = 0, q_absmax = 0, k_absmax = 0.
// Tiles       all chunks x kWidth channels.
// Fragments   thread (channel, slot) has every kSlots-th chunk.
// Shared map  Shared: minimum and maximum of each slot; absolute maximum of all channels.
// Pipeline    none.
// Sync        1 barrier per step of the fold, 1 for the extremes, 1 for a scale per tensor.
// Numerics    the tree of mean_over_tokens over the chunks, three of its levels a step: chunks are thought of as padded
//             with zeros to a power of 8, which adds 0 to whole values. |x - mean| is largest at the minimum or at the
//             maximum of x, also after rounding, which is monotonic. Where it leaves float32 the head is marked by
//             quantize_values; a mean that is not finite leaves absmax 0, any other its largest finite value.
// Edges       channels beyond head_dim: mean 0, scale 1.
// Limits      one block reads all chunks of its channels.
// Twin        cupy_intfa.quantize.arithmetic.mean_over_tokens and scale_from_absmax.
#include "intfa/quantize_codes.cuh"
#include "intfa/quantize_fold.cuh"

constexpr s32 kWidth = kVSpan == kTensor ? kD : 32;
constexpr s32 kSlots = 512 / kWidth;
constexpr s32 kThreads = kWidth * kSlots;

struct Shared {
    float low[kSlots][kWidth], high[kSlots][kWidth];
    u32 absmax;
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

// Absolute maximum of the centred values of one channel over all chunks; of use in slot 0.
__device__ __forceinline__ float absmax_of_chunks(const float* low, const float* high, s32 chunks, s32 slot,
                                                  s32 channel, float mean, Shared& shared) {
    float least = INTFA_INF, most = -INTFA_INF;
#pragma unroll 4
    for (s32 c = slot; c < chunks; c += kSlots) {
        least = fminf(least, low[(s64)c * kD]);
        most = fmaxf(most, high[(s64)c * kD]);
    }
    shared.low[slot][channel] = least;
    shared.high[slot][channel] = most;
    __syncthreads();
#pragma unroll
    for (s32 s = 0; s < kSlots; ++s) {
        least = fminf(least, shared.low[s][channel]);
        most = fmaxf(most, shared.high[s][channel]);
    }
    return absmax_of_range(least, most, mean);
}

// Start values of what later launches collect with atomicMax, and the mark that they may set.
__device__ __forceinline__ void initialise(const QuantizeParams& p, s32 bh) {
    const s32 group = p.heads / p.kv_heads, i = threadIdx.x;
    if (i == 0) p.k_scale_max[bh] = p.kv_mark[bh] = 0.0f;
    if (kKSpan == kTensor && i == 0) p.k_absmax[bh] = 0;
    if (kQSpan == kTensor) {
        for (s32 h = i; h < group; h += kThreads) p.q_absmax[bh * group + h] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks) quantize_combine(const QuantizeParams p) {
    __shared__ Shared shared;
    const s32 channel = threadIdx.x % kWidth, slot = threadIdx.x / kWidth, bh = blockIdx.x / (kD / kWidth);
    const s32 part = blockIdx.x % (kD / kWidth), d = part * kWidth + channel, chunks = chunks_of(p.kv_len);
    const s64 from = (s64)bh * chunks * kD + d, at = (s64)bh * kD + d;
    const bool inside = d < p.head_dim;
    if (part == 0) initialise(p, bh);

    if constexpr (kSmoothK || kSmoothV) {
        s32 stride = 1;
        while (stride * 8 < chunks) stride *= 8;
        for (; stride > 0; stride /= 8) {
            if constexpr (kSmoothK) fold_step(p.k_sum + from, chunks, stride, slot);
            if constexpr (kSmoothV) fold_step(p.v_sum + from, chunks, stride, slot);
            __syncthreads();
        }
    }
    float mean = 0.0f;
    if constexpr (kSmoothV) mean = inside ? mean_of(p.v_sum[from], p.kv_len) : 0.0f;
    if constexpr (kSmoothV)
        if (slot == 0) p.v_mean[at] = mean;
    if constexpr (kSmoothK)
        if (slot == 0) p.k_mean[at] = inside ? mean_of(p.k_sum[from], p.kv_len) : 0.0f;

    if constexpr (kRangeV) {
        if (threadIdx.x == 0) shared.absmax = 0;
        float absmax = absmax_of_chunks(p.v_low + from, p.v_high + from, chunks, slot, channel, mean, shared);
        if constexpr (kVSpan == kTensor) {
            if (slot == 0) atomicMax(&shared.absmax, __float_as_uint(absmax));
            __syncthreads();
            absmax = __uint_as_float(shared.absmax);
        }
        if (slot == 0) p.v_scale[at] = inside ? scale_of<kV>(absmax, kVLargest) : 1.0f;
    }
}
