// Computes    codes of 4 or 2 bits, one to a byte, into bytes of two or four.
// Grid/Block  1-D grid; 256 threads. By vectors 64 codes a thread, otherwise one byte of output a thread.
// Inputs      codes (rows, length), any byte whose lower bits are the code.
// Outputs     packed (rows, bytes), bytes = ceil(length * kBits / 8): the first code in the lowest bits.
// Tiles       none.
// Fragments   a thread has 4 pieces of 16 codes, each a block's width from the next: loads and stores are coalesced.
// Shared map  none.
// Pipeline    none: the 4 loads of a thread are in flight together.
// Sync        none.
// Numerics    integers.
// Edges       codes beyond a row's end are zero bits; pieces beyond the last are skipped.
// Limits      by vectors length a multiple of 16 and both arrays aligned to 16 bytes.
// Twin        cupy_intfa.quantize.bits.pack_codes on NumPy arrays.
#include "intfa/formats_config.cuh"

constexpr s32 kPieces = 4;
constexpr u32 kFlip =
    kEncoding == kOffset ? kSign : 0;  // the bit in which offset and two's complement differ

// Four codes in the lower bits of the bytes of a word: of 4 bits in bytes 0 and 2, of 2 bits in byte 0.
__device__ __forceinline__ u32 squeeze(u32 word) {
    word = (word ^ four_times(kFlip)) & four_times(kCodeMask);
    word |= word >> (8 - kBits);
    return kBits == 4 ? word : word | word >> 12;
}

extern "C" __global__ void __launch_bounds__(kThreads)
    formats_pack(const u8* __restrict__ codes, u8* __restrict__ packed, s64 rows, s64 length) {
    if constexpr (kVector) {
        const s64 pieces = rows * length / 16, first = (s64)blockIdx.x * kPieces * kThreads + threadIdx.x;
        uint4 in[kPieces];
#pragma unroll
        for (s32 i = 0; i < kPieces; ++i)
            if (first + i * kThreads < pieces) in[i] = __ldg((const uint4*)codes + first + i * kThreads);
#pragma unroll
        for (s32 i = 0; i < kPieces; ++i) {
            const s64 piece = first + i * kThreads;
            if (piece >= pieces) continue;
            const u32 a = squeeze(in[i].x), b = squeeze(in[i].y), c = squeeze(in[i].z), d = squeeze(in[i].w);
            if constexpr (kBits == 4) {
                ((uint2*)packed)[piece] = make_uint2(__byte_perm(a, b, 0x6420), __byte_perm(c, d, 0x6420));
            } else {
                ((u32*)packed)[piece] =
                    __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
            }
        }
    } else {
        const s64 bytes = (length + kPerByte - 1) / kPerByte, i = (s64)blockIdx.x * kThreads + threadIdx.x;
        if (i >= rows * bytes) return;
        const s64 row = i / bytes, first = i % bytes * kPerByte;
        u32 byte = 0;
#pragma unroll
        for (s32 k = 0; k < kPerByte; ++k)
            if (first + k < length)
                byte |= ((codes[row * length + first + k] ^ kFlip) & kCodeMask) << (kBits * k);
        packed[i] = (u8)byte;
    }
}
