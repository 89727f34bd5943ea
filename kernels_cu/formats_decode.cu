// Computes    what codes of 4 bits and a scale per 64 elements stand for: level * scale.
// Grid/Block  1-D grid; 256 threads, 4096 elements a block.
// Inputs      codes (ceil(count / 2),): two to a byte, the first in the lower half. scale (ceil(count / 64),). table: its
//             levels of the 16 codes.
// Outputs     x (count,), float16, bfloat16 or float32.
// Tiles       none.
// Fragments   a thread has 16 bytes of output in each of 2 pieces (float32: 4), a block's width apart: stores are
//             coalesced.
// Shared map  the levels: 16 words in 16 banks, so that no two lanes meet.
// Pipeline    none: the loads of a thread are in flight together, behind them the levels are copied.
// Sync        1 barrier behind the levels.
// Numerics    bit for bit QuantizedTensor.dequantize: one rounded product, then one rounding to the dtype.
// Edges       elements beyond count are not written.
// Limits      x and codes aligned to 16 bytes.
// Twin        cupy_intfa.quantize.tensor.QuantizedTensor.dequantize on NumPy arrays.
#include "intfa/formats_float.cuh"
#include "intfa/formats_table.cuh"

constexpr s32 kWidth = kDtype == kFloat32 ? 4 : 8;  // elements in 16 bytes
constexpr s32 kPieces = 16 / kWidth;

extern "C" __global__ void __launch_bounds__(kThreads)
    formats_decode(const u8* __restrict__ codes, const float* __restrict__ scale, Element* __restrict__ x,
                   const Table table, s64 count) {
    const s64 start = ((s64)blockIdx.x * kPieces * kThreads + threadIdx.x) * kWidth;
    u32 word[kPieces] = {};
    float s[kPieces] = {};
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) {
        const s64 first = start + i * kThreads * kWidth;
        if (first >= count) continue;
        s[i] = __ldg(scale + first / kGroup);
        if (first + kWidth <= count) {
            if constexpr (kWidth == 8) word[i] = __ldg((const u32*)codes + first / 8);
            if constexpr (kWidth == 4) word[i] = __ldg((const u16*)codes + first / 4);
        } else {
            for (s32 k = 0; first + 2 * k < count; ++k) word[i] |= (u32)codes[first / 2 + k] << (8 * k);
        }
    }
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = table.level[threadIdx.x];
    __syncthreads();
#pragma unroll
    for (s32 i = 0; i < kPieces; ++i) {
        float out[kWidth];
#pragma unroll
        for (s32 k = 0; k < kWidth; ++k) out[k] = __fmul_rn(levels[word[i] >> (4 * k) & 15u], s[i]);
        store(x, start + i * kThreads * kWidth, count, out);
    }
}
