// Inputs of any float type and any strides as float32, N neighbouring channels at a time.
#pragma once
#include "ptx_half.cuh"
#include "quantize_config.cuh"
#include "quantize_params.cuh"

template <s32 kDtype>
struct ElementOf {
    typedef u16 type;
};
template <>
struct ElementOf<kFloat32> {
    typedef float type;
};
template <>
struct ElementOf<kFloat64> {
    typedef double type;
};
typedef ElementOf<kInput>::type Element;

__device__ __forceinline__ float to_float(u16 bits) {
    return kInput == kFloat16 ? half_to_float(bits) : bfloat_to_float(bits);
}
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(double x) { return __double2float_rn(x); }

// Element i of a group that was read as 4-byte words.
template <s32 kWords>
__device__ __forceinline__ float element_of(const u32 (&words)[kWords], s32 i) {
    if constexpr (sizeof(Element) == 2)
        return to_float((u16)(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu));
    if constexpr (sizeof(Element) == 4) return __uint_as_float(words[i]);
    return to_float(__hiloint2double((s32)words[2 * i + 1], (s32)words[2 * i]));
}

// Reads 4, 8 or n * 16 aligned bytes with as few instructions as there can be.
template <s32 kWords>
__device__ __forceinline__ void load_words(const void* from, u32 (&words)[kWords]) {
    if constexpr (kWords == 1) {
        words[0] = __ldg((const u32*)from);
    } else if constexpr (kWords == 2) {
        const uint2 two = __ldg((const uint2*)from);
        words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
        for (s32 i = 0; i < kWords / 4; ++i) {
            const uint4 four = __ldg((const uint4*)from + i);
            words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z,
                      words[4 * i + 3] = four.w;
        }
    }
}

// base + a * b, by the one instruction that there is for it.
__device__ __forceinline__ const u8* at_offset(const u8* base, s32 a, s32 b) {
    const u8* address;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(address) : "r"(a), "r"(b), "l"(base));
    return address;
}

// Some neighbouring channels of the tokens of one head, from some token on.
struct Reader {
    const u8* base;  // first token, first channel
    s64 token_stride, channel_stride;
    s32 channels;  // how many there are from the first on: 0 or less beyond head_dim

    __device__ __forceinline__ Reader(const Input& input, s32 b, s32 h, s32 token, s32 channel, s32 head_dim)
        : base((const u8*)input.data + b * input.stride[0] + h * input.stride[1] + token * input.stride[2] +
               channel * input.stride[3]),
          token_stride(input.stride[2]),
          channel_stride(input.stride[3]),
          channels(head_dim - channel) {}

    // N channels of a token, 0 for those beyond head_dim; the first must exist.
    template <s32 N>
    __device__ __forceinline__ void read(s32 token, float (&x)[N]) const {
        if constexpr (kVector) {  // with the first exist all, and the host has seen that strides have 32 bits
            u32 words[N * (s32)sizeof(Element) / 4];
            load_words(at_offset(base, token, (s32)token_stride), words);
#pragma unroll
            for (s32 i = 0; i < N; ++i) x[i] = element_of(words, i);
        } else {
            const u8* from = base + token * token_stride;
#pragma unroll
            for (s32 i = 0; i < N; ++i) {
                Element element = 0;
                if (i < channels) element = __ldg((const Element*)(from + i * channel_stride));
                x[i] = to_float(element);
            }
        }
    }
};

// Whether all values are finite: 0 times any other is NaN. One FMA a value, in four chains.
template <s32 M, s32 N>
__device__ __forceinline__ bool all_finite(const float (&x)[M][N]) {
    float probe[4] = {};
#pragma unroll
    for (s32 i = 0; i < M * N; ++i) probe[i % 4] = __fmaf_rn(x[i / N][i % N], 0.0f, probe[i % 4]);
    return probe[0] + probe[1] + (probe[2] + probe[3]) == 0.0f;
}

// Puts 0 where a value is not finite, and tells whether it had to.
template <s32 N>
__device__ __forceinline__ bool clean(float (&x)[N]) {
    bool bad = false;
#pragma unroll
    for (s32 i = 0; i < N; ++i) {
        const bool finite = fabsf(x[i]) < INTFA_INF;
        bad |= !finite;
        x[i] = finite ? x[i] : 0.0f;
    }
    return bad;
}

template <s32 N>
__device__ __forceinline__ void subtract(float (&x)[N], const float (&mean)[N]) {
#pragma unroll
    for (s32 i = 0; i < N; ++i) x[i] = __fsub_rn(x[i], mean[i]);
}

template <s32 M, s32 N>
__device__ __forceinline__ void set_zero(float (&x)[M][N]) {
#pragma unroll
    for (s32 m = 0; m < M; ++m) {
#pragma unroll
        for (s32 n = 0; n < N; ++n) x[m][n] = 0.0f;
    }
}
