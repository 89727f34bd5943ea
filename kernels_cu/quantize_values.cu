// Computes    codes and scales of V, in the order of the stored keys: 8-bit codes transposed for the tensor cores.
// Grid/Block  1-D grid, one block per 64 keys of a head; 2 kD threads.
// Inputs      v of any float type and strides; v_mean and, where they are per channel or tensor, v_scale from
//             quantize_combine; key_index from quantize_rows.
// Outputs     v: 8 bits (kD, 64) per block, the keys of each 16 in packing.V_ORDER, 128 too large with V_OFFSET; float16 rows.
//             v_scale per block.
//             kv_mark (NaN where there is one).
// Tiles       64 keys x kD channels.
// Fragments   a thread holds 16 neighbouring stored positions of two neighbouring channels: the codes of one channel are
//             16 bytes of the transposed tile, packed without a shuffle.
// Shared map  Shared: the transposed tile in lines of 128 bytes (two channels), pieces of 16 bytes swizzled by the line;
//             maxima of the four quarters of the block; 1 / scale of each channel.
// Pipeline    none: blocks overlap each other. The 16 loads of a thread are in flight together.
// Sync        1 barrier before the codes, 1 before the transposed tile is copied out, 1 more for a scale per block.
// Numerics    bit for bit quantize_arrays. Where centring V leaves float32 (the head is marked, its output NaN) and the
//             scale is per channel or tensor, codes and scale are not NumPy's.
// Edges       keys beyond kv_len and channels beyond head_dim: codes 0, scale 1, written here.
// Limits      key_block 64; key_window 0 or 64.
// Twin        cupy_intfa.packing.pack(quantize_arrays(...)).
#include "intfa/quantize_codes.cuh"

constexpr s32 kThreads = 2 * kD;
constexpr s32 kPairs = kD / 2;
constexpr bool kBlockScale = kVSpan == kBlock || kVSpan == kBlockChannel;

struct Shared {
    uint4 tile[kV == kHalf ? 1 : kPairs][8];  // [line][piece ^ line % 8]
    float2 quarter[4][kPairs];
    float2 inverse[kPairs];
    u32 absmax;
};

// Reads and centres the keys at 16 stored positions. Trusting, it takes all to exist and to be finite; else it tells
// whether any is not.
template <bool kTrusting>
__device__ __forceinline__ bool read_keys(const Reader& reader, const u32 (&index)[4], s32 quarter, s32 count,
                                          const float (&mean)[2], float (&x)[16][2]) {
    bool bad = false;
    if (kTrusting ? reader.channels <= 0 : true) set_zero(x);
    if (reader.channels > 0) {
#pragma unroll
        for (s32 i = 0; i < 16; ++i) {
            const s32 key = kSort ? (s32)__byte_perm(index[i / 4], 0, 0x4440 | i % 4) : 16 * quarter + i;
            if (kTrusting || i < count) reader.read(key, x[i]);
        }
    }
#pragma unroll
    for (s32 i = 0; i < 16; ++i) {
        if (!kTrusting) bad |= clean(x[i]);
        if (kSmoothV && (kTrusting || i < count)) subtract(x[i], mean);
        if (!kTrusting && kSmoothV) bad |= clean(x[i]);
    }
    return bad;
}

// Absolute maximum of the thread's 16 keys, for each of its two channels.
__device__ __forceinline__ float2 absmax_of(const float (&x)[16][2]) {
    float2 absmax = make_float2(0.0f, 0.0f);
#pragma unroll
    for (s32 i = 0; i < 16; ++i) {
        absmax.x = fmaxf(absmax.x, fabsf(x[i][0]));
        absmax.y = fmaxf(absmax.y, fabsf(x[i][1]));
    }
    return absmax;
}

__device__ __forceinline__ float2 larger(float2 a, float2 b) {
    return make_float2(fmaxf(a.x, b.x), fmaxf(a.y, b.y));
}

// Scales of two channels; those of a block are found, and written, here.
__device__ __forceinline__ float2 scales_of_pair(const QuantizeParams& p, Shared& shared, s32 pair, s64 bh,
                                                 s32 block) {
    if constexpr (!kBlockScale) return *(const float2*)(p.v_scale + bh * kD + 2 * pair);
    float2 absmax;
    if constexpr (kVSpan == kBlockChannel) {
        absmax = larger(larger(shared.quarter[0][pair], shared.quarter[1][pair]),
                        larger(shared.quarter[2][pair], shared.quarter[3][pair]));
    } else {
        absmax.x = absmax.y = __uint_as_float(shared.absmax);
    }
    float2 scale;
    scale.x = 2 * pair < p.head_dim ? scale_of<kV>(absmax.x, kVLargest) : 1.0f;
    scale.y = 2 * pair + 1 < p.head_dim ? scale_of<kV>(absmax.y, kVLargest) : 1.0f;
    *(float2*)(p.v_scale + (bh * (p.kv_pad / kBlockRows) + block) * kD + 2 * pair) = scale;
    return scale;
}

// Codes of 16 keys of one channel, the keys in V_ORDER: 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15.
__device__ __forceinline__ uint4 codes_of_channel(const float (&x)[16][2], s32 c, float inverse) {
    u32 code[16];
#pragma unroll
    for (s32 i = 0; i < 16; ++i) code[i] = encode<kV>(x[i][c], inverse);
    return make_uint4(kVFlip ^ pack_bytes(code[0], code[1], code[8], code[9]),
                      kVFlip ^ pack_bytes(code[2], code[3], code[10], code[11]),
                      kVFlip ^ pack_bytes(code[4], code[5], code[12], code[13]),
                      kVFlip ^ pack_bytes(code[6], code[7], code[14], code[15]));
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks) quantize_values(const QuantizeParams p) {
    __shared__ Shared shared;
    const s32 pair = threadIdx.x % kPairs, quarter = threadIdx.x / kPairs;
    const u32 blocks = (u32)p.kv_pad / kBlockRows;
    const s32 bh = (s32)(blockIdx.x / blocks), block = (s32)(blockIdx.x % blocks);
    const s64 first =
        (s64)bh * p.kv_pad + block * kBlockRows + 16 * quarter;      // stored position, all heads counted
    const s32 count = p.kv_len - block * kBlockRows - 16 * quarter;  // positions that hold a key

    u32 index[4] = {};  // original places of the 16 keys, a byte each
    if constexpr (kSort) load_words(p.key_index + first, index);
    float x[16][2], mean[2] = {};
    if constexpr (kSmoothV) {
        const float2 two = *(const float2*)(p.v_mean + (s64)bh * kD + 2 * pair);
        mean[0] = two.x, mean[1] = two.y;
    }
    const Reader reader(p.v, bh / p.kv_heads, bh % p.kv_heads, block * kBlockRows, 2 * pair, p.head_dim);
    bool trusted = count >= 16;
    if (trusted) {
        read_keys<true>(reader, index, quarter, count, mean, x);
        trusted = all_finite(x);  // what is not finite when it is read is not finite after centring
    }
    if (!trusted && read_keys<false>(reader, index, quarter, count, mean, x)) {
        p.kv_mark[bh] = INTFA_MARK;  // every writer writes the same
    }

    if constexpr (kVSpan == kBlock) {
        if (threadIdx.x == 0) shared.absmax = 0;
        __syncthreads();
        const float2 absmax = absmax_of(x);
        atomicMax(&shared.absmax, __float_as_uint(fmaxf(absmax.x, absmax.y)));
    }
    if constexpr (kVSpan == kBlockChannel) shared.quarter[quarter][pair] = absmax_of(x);
    if constexpr (kBlockScale) __syncthreads();
    if (threadIdx.x < kPairs) {
        const float2 scale = scales_of_pair(p, shared, pair, bh, block);
        shared.inverse[pair] = make_float2(__frcp_rn(scale.x), __frcp_rn(scale.y));
    }
    __syncthreads();
    const float2 inverse = shared.inverse[pair];

    if constexpr (kV == kHalf) {
#pragma unroll
        for (s32 i = 0; i < 16; ++i) {
            const u32 two = pack_halves(encode<kV>(x[i][0], inverse.x), encode<kV>(x[i][1], inverse.y));
            ((u32*)p.v_codes)[(first + i) * kPairs + pair] = two;
        }
    } else {
        shared.tile[pair][quarter ^ pair % 8] = codes_of_channel(x, 0, inverse.x);
        shared.tile[pair][(4 + quarter) ^ pair % 8] = codes_of_channel(x, 1, inverse.y);
        __syncthreads();
        uint4* out = (uint4*)(p.v_codes + ((s64)bh * p.kv_pad + block * kBlockRows) * kD);
#pragma unroll
        for (s32 i = threadIdx.x; i < 8 * kPairs; i += kThreads)
            out[i] = shared.tile[i / 8][i % 8 ^ i / 8 % 8];
    }
}
