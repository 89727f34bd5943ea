// Computes    codes of 4 bits of the nearest levels of a codebook (NF4), and a scale per 64 elements.
// Grid/Block  1-D grid; 256 threads, 8192 elements a block (float32: 4096).
// Inputs      x (count,), float16, bfloat16 or float32. table: of a codebook whose levels are in
//             [-1, 1], with one cut between levels in a sixteenth at most.
// Outputs     codes (ceil(count / 2),): two to a byte, the first in the lower half. scale (ceil(count / 64),): the absolute
//             maximum, at least 2^-126, NaN where it is above 2^126 or an element is not finite.
// Tiles       none.
// Fragments   a thread has 8 neighbours in each of 4 pieces (float32: 2), a block's width apart; 8 lanes have the 64
//             elements of a scale.
// Shared map  the table: cuts, then codes, 64 words each, of which 34 are in use; lanes that look up different words
//             meet different banks but for the two at the ends.
// Pipeline    none: the loads of a thread are in flight together, behind them the table is copied.
// Sync        1 barrier behind the table; shuffles among 8 lanes.
// Numerics    bit for bit quantize_blockwise: x times the rounded reciprocal of the scale, and comparisons.
// Edges       elements beyond count are 0; the upper half of an odd last byte is 0.
// Limits      x and codes aligned to 16 bytes.
// Twin        cupy_intfa.quantize.blockwise.quantize_blockwise on NumPy arrays.
#include "intfa/formats_float.cuh"
#include "intfa/formats_table.cuh"

constexpr s32 kPieces = kDtype == kFloat32 ? 2 : 4;  // 64 bytes a thread
constexpr u32 kIndices = 64;                // what is not finite finds a bucket of its own, or another's
constexpr u32 kLargestScale = 0x7e800000u;  // 2^126: the reciprocal of a larger one is subnormal
constexpr float kBucketMagic = 8388608.0f + 17.0f;  // adding 2^23 leaves the integer in the low bits

#define INTFA_MARK __int_as_float(0x7fc00000)  // the NaN of a mark, as NumPy writes it

extern "C" __global__ void __launch_bounds__(kThreads)
    formats_encode(const Element* __restrict__ x, u8* __restrict__ codes, float* __restrict__ scale,
                   const Table table, s64 count) {
    const s64 start = ((s64)blockIdx.x * kPieces * kThreads + threadIdx.x) * 8;
    Eight in[kPieces];
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) in[i].load(x, start + i * kThreads * 8, count);
    __shared__ float cut[kIndices];
    __shared__ u32 code[kIndices];
    if (threadIdx.x < kIndices) {
        cut[threadIdx.x] = threadIdx.x < kBuckets ? table.cut[threadIdx.x] : 0.0f;
        code[threadIdx.x] = threadIdx.x < kBuckets ? table.code[threadIdx.x] : 0;
    }
    __syncthreads();
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) {
        const s64 first = start + i * kThreads * 8;
        // As bits of float32: the order of integers is that of floats, infinity and NaN above all.
        u32 absmax = 0;
#pragma unroll
        for (s32 k = 0; k < 8; ++k) absmax = max(absmax, __float_as_uint(in[i][k]) & 0x7fffffffu);
#pragma unroll
        for (s32 lane = 1; lane < 8; lane *= 2) absmax = max(absmax, __shfl_xor_sync(~0u, absmax, lane));
        const bool is_bad = absmax > kLargestScale;
        const float found = __uint_as_float(max(absmax, 0x00800000u));  // 2^-126, for a block of zeros
        const float inverse = __frcp_rn(found);
        u32 word = 0;
#pragma unroll
        for (s32 k = 0; k < 8; ++k) {
            const float y = __fmul_rn(in[i][k], inverse);
            const u32 bucket = __float_as_uint(__fmaf_rd(y, 16.0f, kBucketMagic)) % kIndices;
            word += code[bucket] << (4 * k);
            if (y > cut[bucket]) word += 1u << (4 * k);
        }
        if (is_bad) word = table.zeros;
        if (first + 8 <= count) {
            ((u32*)codes)[first / 8] = word;
        } else if (first < count) {
            const s32 left = (s32)(count - first);
            word &= (1u << (4 * left)) - 1;
            for (s32 k = 0; 2 * k < left; ++k) codes[first / 2 + k] = (u8)(word >> (8 * k));
        }
        if (threadIdx.x % (kGroup / 8) == 0 && first < count)
            scale[first / kGroup] = is_bad ? INTFA_MARK : found;
    }
}
