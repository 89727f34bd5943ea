// Computes    bytes of two or four codes into codes, one to a byte.
// Grid/Block  1-D grid; 256 threads. By vectors 64 codes a thread, otherwise one code a thread.
// Inputs      packed (rows, bytes), bytes = ceil(length * kBits / 8): the first code in the lowest bits.
// Outputs     codes (rows, length): signed unless the encoding is kUnsigned.
// Tiles       none.
// Fragments   a thread has 4 pieces of 16 codes, each a block's width from the next: loads and stores are coalesced.
// Shared map  none.
// Pipeline    none: the 4 loads of a thread are in flight together.
// Sync        none.
// Numerics    integers.
// Edges       the upper bits of a row's last byte may be anything; pieces beyond the last are skipped.
// Limits      by vectors length a multiple of 16 and both arrays aligned to 16 bytes.
// Twin        cupy_intfa.quantize.bits.unpack_codes on NumPy arrays.
#include "intfa/formats_config.cuh"

constexpr s32 kPieces = 4;

// Codes in the lower bits of four bytes to whole bytes. With its sign bit flipped, two's complement has the offset too;
// adding 128 - offset keeps borrows inside a byte, and flipping the upper bit takes the 128 off again.
__device__ __forceinline__ u32 extend(u32 word) {
    if constexpr (kEncoding == kUnsigned) return word;
    if constexpr (kEncoding == kTwosComplement) word ^= four_times(kSign);
    return (word + four_times(0x80u - kSign)) ^ four_times(0x80u);
}

// The codes of a byte pair (4 bits) or of a byte (2 bits), spread over the bytes of a word.
__device__ __forceinline__ u32 spread(u32 word) {
    if constexpr (kBits == 4) {
        const u32 pair = __byte_perm(word, 0, 0x4140);  // byte 0 to 0, byte 1 to 2
        return (pair | pair << 4) & four_times(kCodeMask);
    }
    const u32 byte = word & 0xffu;
    const u32 halves = (byte | byte << 12) & 0x000f000fu;
    return (halves | halves << 6) & four_times(kCodeMask);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    formats_unpack(const u8* __restrict__ packed, u8* __restrict__ codes, s64 rows, s64 length) {
    if constexpr (kVector) {
        const s64 pieces = rows * length / 16, first = (s64)blockIdx.x * kPieces * kThreads + threadIdx.x;
        u32 in[kPieces][kBits / 2];
#pragma unroll
        for (s32 i = 0; i < kPieces; ++i) {
            if (first + i * kThreads >= pieces) continue;
            if constexpr (kBits == 4) {
                const uint2 two = __ldg((const uint2*)packed + first + i * kThreads);
                in[i][0] = two.x, in[i][kBits / 2 - 1] = two.y;
            } else {
                in[i][0] = __ldg((const u32*)packed + first + i * kThreads);
            }
        }
#pragma unroll
        for (s32 i = 0; i < kPieces; ++i) {
            if (first + i * kThreads >= pieces) continue;
            u32 out[4];
#pragma unroll
            for (s32 k = 0; k < 4; ++k)
                out[k] = extend(spread(in[i][kBits / 2 * k / 4] >> (4 * kBits * (k % (8 / kBits)))));
            ((uint4*)codes)[first + i * kThreads] = make_uint4(out[0], out[1], out[2], out[3]);
        }
    } else {
        const s64 bytes = (length + kPerByte - 1) / kPerByte, i = (s64)blockIdx.x * kThreads + threadIdx.x;
        if (i >= rows * length) return;
        const s64 row = i / length, k = i % length;
        codes[i] = (u8)extend(packed[row * bytes + k / kPerByte] >> (kBits * (k % kPerByte)) & kCodeMask);
    }
}
