// Inputs of any float type and any strides as float32, N neighbouring channels at a time.
#pragma once
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

__device__ __forceinline__ float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ __forceinline__ float to_float(u16 bits) {
    return kInput == kFloat16 ? half_to_float(bits) : __uint_as_float((u32)bits << 16);
}
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(double x) { return __double2float_rn(x); }

// Element i of a group that was read as 4-byte words.
template <s32 kWords>
__device__ __forceinline__ float element_of(const u32 (&words)[kWords], s32 i) {
    if constexpr (sizeof(Element) == 2) return to_float((u16)(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu));
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
            words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
        }
    }
}

__device__ __forceinline__ const Element* head_of(const Input& input, s32 b, s32 h) {
    return (const Element*)input.data + b * input.stride[0] + h * input.stride[1];
}

// Channels [channel, channel + N) of a token; 0 beyond head_dim, and all 0 where `wanted` is false.
template <s32 N>
__device__ __forceinline__ void load_channels(const Input& input, const Element* head, s32 token, s32 channel,
                                              s32 head_dim, bool wanted, float (&x)[N]) {
    const Element* from = head + token * input.stride[2];
    if constexpr (kVector) {
        constexpr s32 kWords = N * (s32)sizeof(Element) / 4;
        u32 words[kWords] = {};
        if (wanted && channel < head_dim) load_words(from + channel, words);
#pragma unroll
        for (s32 i = 0; i < N; ++i) x[i] = element_of(words, i);
    } else {
#pragma unroll
        for (s32 i = 0; i < N; ++i) {
            Element element = 0;
            if (wanted && channel + i < head_dim) element = __ldg(from + (channel + i) * input.stride[3]);
            x[i] = to_float(element);
        }
    }
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
