// Computes    a copy of an int8 matrix by rows of depth, padded with zeros to a multiple of 16 bytes: what the kernels
//             above gemm_naive read, where the caller's matrix lies in another way.
// Grid/Block  1-D grid of blocks of 256 threads. Transposing: a block per 128 rows x 64 bytes; else 16 bytes a thread.
// Inputs      matrix (rows, columns) by any strides in bytes; transposing, rows lie side by side.
// Outputs     packed (rows, pitch).
// Tiles       128 x 64 where it transposes.
// Fragments   a thread loads words of 4 rows for 4 columns and turns them to words of 4 columns for 4 rows.
// Shared map  transposing, [128][17] words: 64 columns and one word: a warp writes to 8 banks, not to one.
// Pipeline    none: the loads of a thread are in flight together.
// Sync        one __syncthreads.
// Numerics    none.
// Edges       bytes beyond the matrix are zero.
// Limits      by words: rows a multiple of 4, columns at multiples of 4 bytes.
// Twin        a NumPy copy.
#include "intfa/gemm_config.cuh"

struct Source {
    const u8* matrix;
    s64 row_stride, column_stride;
    s32 rows, columns;

    __device__ __forceinline__ u32 byte(s32 row, s32 column) const {
        if (row >= rows || column >= columns) return 0;
        return matrix[row * row_stride + column * column_stride];
    }
    // Rows row to row + 3 of a column.
    __device__ __forceinline__ u32 four_rows(s32 row, s32 column) const {
        if constexpr (kWords) {
            if (row >= rows || column >= columns) return 0;
            return *(const u32*)(matrix + row + column * column_stride);
        }
        return byte(row, column) | byte(row + 1, column) << 8 | byte(row + 2, column) << 16 |
               byte(row + 3, column) << 24;
    }
};

// 4 x 4 bytes: word i of the result has byte i of every word.
__device__ __forceinline__ void transpose(u32 (&w)[4]) {
    const u32 a = __byte_perm(w[0], w[1], 0x5140), b = __byte_perm(w[2], w[3], 0x5140);
    const u32 c = __byte_perm(w[0], w[1], 0x7362), d = __byte_perm(w[2], w[3], 0x7362);
    w[0] = __byte_perm(a, b, 0x5410), w[1] = __byte_perm(a, b, 0x7632);
    w[2] = __byte_perm(c, d, 0x5410), w[3] = __byte_perm(c, d, 0x7632);
}

constexpr s32 kThreadCount = 256, kRowsOfBlock = 128, kWordsOfRow = 16;

extern "C" __global__ void __launch_bounds__(kThreadCount)
    gemm_pack(const u8* matrix, u8* packed, s64 row_stride, s64 column_stride, s32 rows, s32 columns) {
    const Source source = {matrix, row_stride, column_stride, rows, columns};
    const s32 units = (columns + 15) / 16;
    if constexpr (kTranspose) {
        __shared__ u32 turned[kRowsOfBlock][kWordsOfRow + 1];
        const s32 blocks = (units + 3) / 4;
        const s32 first_row = blockIdx.x / blocks * kRowsOfBlock, first_column = blockIdx.x % blocks * 64;
        const s32 lane = threadIdx.x % 32;
#pragma unroll
        for (s32 quad = threadIdx.x / 32; quad < kWordsOfRow; quad += kThreadCount / 32) {
            u32 words[4];
#pragma unroll
            for (s32 i = 0; i < 4; ++i)
                words[i] = source.four_rows(first_row + 4 * lane, first_column + 4 * quad + i);
            transpose(words);
#pragma unroll
            for (s32 i = 0; i < 4; ++i) turned[4 * lane + i][quad] = words[i];
        }
        __syncthreads();
#pragma unroll
        for (s32 i = threadIdx.x; i < kRowsOfBlock * 4; i += kThreadCount) {
            const s32 row = first_row + i / 4, unit = first_column / 16 + i % 4;
            const u32* words = turned[i / 4] + i % 4 * 4;
            if (row < rows && unit < units)
                ((uint4*)packed)[(s64)row * units + unit] =
                    make_uint4(words[0], words[1], words[2], words[3]);
        }
    } else {
        const s64 i = (s64)blockIdx.x * kThreadCount + threadIdx.x;
        const s32 row = i / units, column = i % units * 16;
        if (row >= rows) return;
        u32 words[4] = {0, 0, 0, 0};
#pragma unroll
        for (s32 e = 0; e < 16; ++e) words[e / 4] |= source.byte(row, column + e) << (8 * (e % 4));
        ((uint4*)packed)[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
