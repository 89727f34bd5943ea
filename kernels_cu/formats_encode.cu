// Computes    codes of 4 bits of the nearest levels of a codebook (NF4), and a scale per 64 elements.
// Grid/Block  1-D grid; 256 threads, 8192 elements a block (float32: 4096).
// Inputs      x (count,), float16, bfloat16 or float32. table: of a codebook whose levels are in
//             [-1, 1], with one cut between levels in a sixteenth at most.
// Outputs     codes (ceil(count / 2),): two to a byte, the first in the lower half. scale (ceil(count / 64),): the absolute
//             maximum, at least 2^-126, NaN where it is above 2^126 or an element is not finite.
// Tiles       none.
// Fragments   a thread has 16 neighbours (float32: 8) in each of 2 pieces, a block's width apart; 4 lanes (8) have the 64
//             elements of a scale.
// Shared map  the table: cuts, then codes, 64 words each, of which 34 are in use; lanes that look up different words
//             meet different banks but for the two at the ends.
// Pipeline    none: the loads of a thread are in flight together, behind them the table is copied.
// Sync        1 barrier behind the table; shuffles among 4 lanes (8).
// Numerics    bit for bit quantize_blockwise: x times the rounded reciprocal of the scale, and comparisons.
// Edges       elements beyond count are 0; the upper half of an odd last byte is 0.
// Limits      x and codes aligned to 16 bytes. Of float16 instructions bound it, not memory: 14.7 an element on sm_90. In
//             pieces of 8, and with the maximum of floats, they were 21.3, and it ran at 80 % of a device copy on an H200.
// Twin        cupy_intfa.quantize.blockwise.quantize_blockwise on NumPy arrays.
#include "intfa/formats_float.cuh"
#include "intfa/formats_table.cuh"

constexpr s32 kPieces = 2;
constexpr s32 kWords = kNeighbours / 8;       // of codes, a piece
constexpr s32 kLanes = kGroup / kNeighbours;  // that share a scale
constexpr u32 kIndices = 64;                  // what is not finite finds a bucket of its own, or another's
constexpr u32 kLargestScale = 0x7e800000u;    // 2^126: the reciprocal of a larger one is subnormal
constexpr float kBucketMagic = 8388608.0f + 4.0f * 17.0f;  // adding 2^23 leaves the integer in the low bits

#define INTFA_MARK __int_as_float(0x7fc00000)  // the NaN of a mark, as NumPy writes it

extern "C" __global__ void __launch_bounds__(kThreads)
    formats_encode(const Element* __restrict__ x, u8* __restrict__ codes, float* __restrict__ scale,
                   const Table table, s64 count) {
    const s64 start = ((s64)blockIdx.x * kPieces * kThreads + threadIdx.x) * kNeighbours;
    Neighbours in[kPieces];
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) in[i].load(x, start + i * kThreads * kNeighbours, count);
    __shared__ float cut[kIndices];
    __shared__ u32 code[kIndices];
    if (threadIdx.x < kIndices) {
        cut[threadIdx.x] = threadIdx.x < kBuckets ? table.cut[threadIdx.x] : 0.0f;
        code[threadIdx.x] = threadIdx.x < kBuckets ? table.code[threadIdx.x] : 0;
    }
    __syncthreads();
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) {
        const s64 first = start + i * kThreads * kNeighbours;
        u32 absmax = in[i].absmax();
#pragma unroll
        for (s32 lane = 1; lane < kLanes; lane *= 2) absmax = max(absmax, __shfl_xor_sync(~0u, absmax, lane));
        const bool is_bad = absmax > kLargestScale;
        const float found = __uint_as_float(max(absmax, 0x00800000u));  // 2^-126, for a block of zeros
        const float inverse = __frcp_rn(found);
        u32 word[kWords] = {};
#pragma unroll
        for (s32 k = 0; k < kNeighbours; ++k) {
            const float y = __fmul_rn(in[i][k], inverse);
            // Four times the bucket, with its lower bits cut off: the offset of its word in bytes.
            const u32 offset = __float_as_uint(__fmaf_rd(y, 64.0f, kBucketMagic)) & (4 * kIndices - 4);
            const float border = *(const float*)((const char*)cut + offset);
            word[k / 8] += *(const u32*)((const char*)code + offset) << (4 * (k % 8));
            if (y > border) word[k / 8] += 1u << (4 * (k % 8));
        }
#pragma unroll
        for (s32 w = 0; w < kWords; ++w)
            if (is_bad) word[w] = table.zeros;
        if (first + kNeighbours <= count) {
            if constexpr (kWords == 1) ((u32*)codes)[first / 8] = word[0];
            if constexpr (kWords == 2) ((uint2*)codes)[first / 16] = make_uint2(word[0], word[kWords - 1]);
        } else {
#pragma unroll
            for (s32 k = 0; k < kNeighbours / 2; ++k) {
                const s64 at = first + 2 * k;
                const u32 byte = word[k / 4] >> (8 * (k % 4));
                if (at < count) codes[at / 2] = (u8)(at + 1 < count ? byte : byte & 15u);
            }
        }
        if (threadIdx.x % kLanes == 0 && first < count) scale[first / kGroup] = is_bad ? INTFA_MARK : found;
    }
}
