// Computes    codes, scales and marks of Q and K, the places of sorted keys, and s_q Q8 k_mean; compiled with
//             INTFA_ABSMAX=1, only the absolute maximum of each head whose scale is one per tensor.
// Grid/Block  1-D grid, one block per 64 rows of a head, those of Q first, then those of K; 16 kLanes threads.
// Inputs      q, k of any float type and strides; k_mean from quantize_combine; q_absmax, k_absmax of the first pass.
// Outputs     q, q_scale, q_mark, q_kmean; k, k_scale, k_scale_max, kv_mark (NaN where there is one), key_index.
// Tiles       64 rows x kD channels.
// Fragments   quantize_lanes.cuh: a lane holds 8 channels of four rows.
// Shared map  Shared: magnitudes of the 64 rows, maxima of the four groups (or of the block in the first), largest scale.
// Pipeline    none: blocks overlap each other. The four rows' loads of a thread are in flight together.
// Sync        none for a scale per token; 1 barrier for other spans, 2 more for sorted keys.
// Numerics    bit for bit quantize_arrays: centre, rotate, zero what is not finite, round half to even.
// Edges       rows beyond the length and channels beyond head_dim: codes 0, scale 1, mark 0, written here.
// Limits      key_block 64; key_window 0 or 64. k_scale_max by integer atomicMax, which has no order.
// Twin        cupy_intfa.packing.pack(quantize_arrays(...)).
#include "intfa/quantize_codes.cuh"
#include "intfa/quantize_lanes.cuh"
#include "intfa/quantize_order.cuh"

constexpr s32 kCodeBytes = kQk == kHalf ? 2 : 1;

struct Shared {
    u32 magnitude[kBlockRows];
    u32 span[4];
    u32 scale_max;
};

// The block's 64 rows: of which head, from which row, how many of them are inside the sequence (it may be none).
struct Tile {
    s32 bh, b, h, start, count;
};

__device__ __forceinline__ Tile tile_of(u32 index, s32 heads, s32 length, s32 padded) {
    const u32 tiles = (u32)padded / kBlockRows;
    Tile tile;
    tile.bh = (s32)(index / tiles);
    tile.b = tile.bh / heads;
    tile.h = tile.bh % heads;
    tile.start = (s32)(index % tiles) * kBlockRows;
    tile.count = min(length - tile.start, kBlockRows);
    return tile;
}

// 8 channels of a (.., kD) float32 array of the workspace.
__device__ __forceinline__ void load_mean(const float* mean, s64 head, s32 channel, float (&x)[8]) {
    u32 words[8] = {};
    if (channel < kD) load_words(mean + head * kD + channel, words);
#pragma unroll
    for (s32 i = 0; i < 8; ++i) x[i] = __uint_as_float(words[i]);
}

// Reads, centres and rotates this thread's four rows. Trusting, it takes all rows to exist and to be finite; else it
// returns which rows hold what is not finite: bit j for row j.
template <bool kKeys, bool kTrusting>
__device__ __forceinline__ u32 read_rows(const Reader& reader, const Tile& tile, s32 first,
                                         const float* k_mean, float (&x)[4][8]) {
    constexpr bool kCentre = kKeys && kSmoothK;
    u32 bad = 0;
    if (kTrusting ? reader.channels <= 0 : true) set_zero(x);
    if (reader.channels > 0) {
#pragma unroll
        for (s32 j = 0; j < 4; ++j) {
            if (kTrusting || first + 16 * j < tile.count) reader.read(first + 16 * j, x[j]);
        }
    }
    float mean[8];
    if constexpr (kCentre) load_mean(k_mean, tile.bh, 8 * (threadIdx.x % kLanes), mean);
#pragma unroll
    for (s32 j = 0; j < 4; ++j) {
        if (!kTrusting) bad |= (u32)clean(x[j]) << j;
        if (kCentre && (kTrusting || first + 16 * j < tile.count)) subtract(x[j], mean);
        if (kRotate > 1) rotate(x[j]);
        if (!kTrusting && (kCentre || kRotate > 1)) bad |= (u32)clean(x[j]) << j;
    }
    return kTrusting ? 0 : any_lane(bad);
}

__device__ __forceinline__ float absmax_of(const float (&x)[8]) {
    float absmax = 0.0f;
#pragma unroll
    for (s32 i = 0; i < 8; ++i) absmax = fmaxf(absmax, fabsf(x[i]));
    return absmax;
}

// Leaves the maxima of the spans in shared.span: four groups of places, or all rows in the first.
template <s32 kSpan>
__device__ __forceinline__ void reduce_spans(Shared& shared, u32 magnitude, s32 place) {
    if (threadIdx.x % kLanes < 4) atomicMax(&shared.span[kSpan == kGroup ? place % 8 / 2 : 0], magnitude);
    __syncthreads();
}

// Scales of K that rows share, and the largest scale of the head.
template <s32 kSpan>
__device__ __forceinline__ void store_key_scales(const QuantizeParams& p, const Tile& tile, Shared& shared,
                                                 float scale, s32 row, s32 place) {
    if constexpr (kSpan == kToken) {
        if (threadIdx.x % kLanes < 4) {
            p.k_scale[(s64)tile.bh * p.kv_pad + tile.start + place] = scale;
            if (row < tile.count) atomicMax(&shared.scale_max, __float_as_uint(scale));
        }
        __syncthreads();
        if (threadIdx.x == 0) atomicMax((u32*)p.k_scale_max + tile.bh, shared.scale_max);
    } else if (threadIdx.x < 4) {
        const u32 span =
            kSpan == kTensor ? p.k_absmax[tile.bh] : shared.span[kSpan == kGroup ? threadIdx.x : 0];
        const float of_span = tile.count > 0 ? scale_of<kQk>(__uint_as_float(span), kQkLargest) : 1.0f;
        p.k_scale[((s64)tile.bh * p.kv_pad + tile.start) / 16 + threadIdx.x] = of_span;
        if (tile.count > 0) atomicMax((u32*)p.k_scale_max + tile.bh, __float_as_uint(of_span));
    }
}

// One row's 8 channels.
__device__ __forceinline__ void store_codes(u8* to, const u32 (&code)[8]) {
    if constexpr (kQk == kHalf) {
        *(uint4*)to = make_uint4(pack_halves(code[0], code[1]), pack_halves(code[2], code[3]),
                                 pack_halves(code[4], code[5]), pack_halves(code[6], code[7]));
    } else {
        *(uint2*)to = make_uint2(pack_bytes(code[0], code[1], code[2], code[3]),
                                 pack_bytes(code[4], code[5], code[6], code[7]));
    }
}

// Sum of codes x mean over 8 channels, neighbours first.
__device__ __forceinline__ float dot_mean(const u32 (&code)[8], const float (&mean)[8]) {
    float term[8];
#pragma unroll
    for (s32 i = 0; i < 8; ++i) term[i] = __fmul_rn(decode<kQk>(code[i]), mean[i]);
#pragma unroll
    for (s32 step = 1; step < 8; step *= 2) {
#pragma unroll
        for (s32 i = 0; i < 8; i += 2 * step) term[i] = __fadd_rn(term[i], term[i + step]);
    }
    return term[0];
}

template <bool kKeys>
__device__ __forceinline__ void quantise_rows(const QuantizeParams& p, const Tile& tile, Shared& shared) {
    constexpr s32 kSpan = kKeys ? kKSpan : kQSpan;
    if constexpr (kAbsmaxPass && kSpan != kTensor) return;
    const s32 lane = threadIdx.x % kLanes, channel = 8 * lane, first = threadIdx.x / kLanes;
    const s32 row = first + 16 * (lane % 4);  // the row whose numbers this lane keeps

    float x[4][8], absmax[4];
    const Reader reader(kKeys ? p.k : p.q, tile.b, tile.h, tile.start, channel, p.head_dim);
    u32 bad = 0;
    bool trusted = tile.count == kBlockRows;
    if (trusted) {
        read_rows<kKeys, true>(reader, tile, first, p.k_mean, x);
        // What is not finite when it is read is not finite after centring and rotating.
        trusted = __all_sync(kAllLanes, all_finite(x));
    }
    if (!trusted) bad = read_rows<kKeys, false>(reader, tile, first, p.k_mean, x);
#pragma unroll
    for (s32 j = 0; j < 4; ++j) absmax[j] = absmax_of(x[j]);
    const u32 magnitude = __float_as_uint(combine_rows<Larger>(absmax));

    if (threadIdx.x < 4) shared.span[threadIdx.x] = shared.scale_max = 0;
    s32 place = row;
    if constexpr (kKeys && kSort && !kAbsmaxPass) {
        if (lane < 4) shared.magnitude[row] = row < tile.count ? magnitude : 0x7f800000u;
        __syncthreads();
        place = place_of_rank(rank_of(shared.magnitude, row), tile.count);
    } else if constexpr (kSpan != kToken || kKeys) {
        __syncthreads();
    }

    u32 span = magnitude;
    if constexpr (kSpan == kTensor && !kAbsmaxPass) span = (kKeys ? p.k_absmax : p.q_absmax)[tile.bh];
    if constexpr (kSpan == kGroup || kSpan == kBlock || kAbsmaxPass) {
        reduce_spans<kSpan>(shared, magnitude, place);
        span = shared.span[kSpan == kGroup ? place % 8 / 2 : 0];
    }
    if constexpr (kAbsmaxPass) {
        if (threadIdx.x == 0) atomicMax((kKeys ? p.k_absmax : p.q_absmax) + tile.bh, span);
        return;
    }
    const float scale = row < tile.count ? scale_of<kQk>(__uint_as_float(span), kQkLargest) : 1.0f;
    const float inverse = __frcp_rn(scale);

    float dot[4], mean[8];
    if constexpr (!kKeys && kSmoothK) {
        load_mean(p.k_mean, (s64)tile.b * p.kv_heads + tile.h / (p.heads / p.kv_heads), channel, mean);
        if constexpr (kRotate > 1) rotate(mean);
    }
    const s64 base = (s64)tile.bh * (kKeys ? p.kv_pad : p.q_pad) + tile.start;
    u8* codes = (kKeys ? p.k_codes : p.q_codes) + (base * kD + channel) * kCodeBytes;
#pragma unroll
    for (s32 j = 0; j < 4; ++j) {
        const float inverse_j = of_row(inverse, j);
        const s32 place_j = kKeys && kSort ? of_row(place, j) : first + 16 * j;
        u32 code[8];
#pragma unroll
        for (s32 i = 0; i < 8; ++i) code[i] = encode<kQk>(x[j][i], inverse_j);
        if (channel < kD) store_codes(codes + place_j * (kD * kCodeBytes), code);
        if constexpr (!kKeys && kSmoothK) dot[j] = dot_mean(code, mean);
    }

    if constexpr (kKeys) {
        store_key_scales<kSpan>(p, tile, shared, scale, row, place);
        if (kSort && lane < 4) p.key_index[base + place] = row < tile.count ? (u8)row : 0;
        if (bad) p.kv_mark[tile.bh] = INTFA_MARK;  // every writer writes the same
    } else {
        float kmean = 0.0f;
        if constexpr (kSmoothK) kmean = combine_rows<Sum>(dot);
        if (lane < 4) {
            p.q_scale[base + row] = scale;
            p.q_mark[base + row] = bad >> lane & 1 ? INTFA_MARK : 0.0f;
            if (kSmoothK)
                p.q_kmean[base + row] = row < tile.count ? __fadd_rn(__fmul_rn(scale, kmean), 0.0f) : 0.0f;
        }
    }
}

extern "C" __global__ void __launch_bounds__(kRowThreads, kMinBlocks) quantize_rows(const QuantizeParams p) {
    __shared__ Shared shared;
    const u32 q_tiles = (u32)p.batch * p.heads * (p.q_pad / kBlockRows);
    if (blockIdx.x < q_tiles) {
        quantise_rows<false>(p, tile_of(blockIdx.x, p.heads, p.q_len, p.q_pad), shared);
    } else {
        quantise_rows<true>(p, tile_of(blockIdx.x - q_tiles, p.kv_heads, p.kv_len, p.kv_pad), shared);
    }
}
