// Neighbouring floats of the dtype of a formats_*.cu kernel: loads of 32 bytes, stores of 16.
#pragma once
#include "formats_config.cuh"
#include "ptx_half.cuh"

template <s32 kDtype>
struct ElementOf {
    typedef u16 type;
};
template <>
struct ElementOf<kFloat32> {
    typedef float type;
};
typedef ElementOf<kDtype>::type Element;

__device__ __forceinline__ float to_float(u16 bits) {
    return kDtype == kBFloat16 ? bfloat_to_float(bits) : half_to_float(bits);
}

// Two elements in a word; overflow to infinity, subnormal bfloat16 are 0 already.
__device__ __forceinline__ u32 round_pair(float low, float high) {
    return kDtype == kBFloat16 ? bfloat2_bits(low, high) : half2_bits(low, high);
}

// Neighbours as they are stored, 32 bytes of them, so that many can be on their way.
constexpr s32 kNeighbours = 32 / sizeof(Element);

struct Neighbours {
    u32 words[8];

    // Elements `first` to `first + kNeighbours - 1` of `count`; 0 beyond.
    __device__ __forceinline__ void load(const Element* from, s64 first, s64 count) {
        if (first + kNeighbours <= count) {
#pragma unroll
            for (s32 k = 0; k < 2; ++k) {
                const uint4 four = __ldg((const uint4*)(from + first) + k);
                words[4 * k] = four.x, words[4 * k + 1] = four.y;
                words[4 * k + 2] = four.z, words[4 * k + 3] = four.w;
            }
            return;
        }
#pragma unroll
        for (s32 k = 0; k < 8; ++k) words[k] = 0;
#pragma unroll
        for (s32 k = 0; k < kNeighbours; ++k) {
            if (first + k >= count) continue;
            if constexpr (kDtype == kFloat32) words[k] = __float_as_uint(from[first + k]);
            if constexpr (kDtype != kFloat32) words[k / 2] |= (u32)from[first + k] << (16 * (k % 2));
        }
    }

    __device__ __forceinline__ float operator[](s32 k) const {
        if constexpr (kDtype == kFloat32) return __uint_as_float(words[k]);
        return to_float((u16)(k % 2 ? words[k / 2] >> 16 : words[k / 2]));
    }

    // The largest magnitude, as the bits of a float: the order of integers is that of floats, infinity and NaN above
    // all. Shifting drops the sign; of two elements in a word the lower one only breaks ties of the upper.
    __device__ __forceinline__ u32 absmax() const {
        u32 found = 0;
#pragma unroll
        for (s32 k = 0; k < 8; ++k) {
            found = max(found, words[k] << 1);
            if constexpr (kDtype != kFloat32) found = max(found, words[k] << 17);
        }
        return kDtype == kFloat32 ? found >> 1 : __float_as_uint(to_float((u16)(found >> 17)));
    }
};

// 16 bytes of them.
template <s32 kWidth>
__device__ __forceinline__ void store(Element* to, s64 first, s64 count, const float (&x)[kWidth]) {
    if (first + kWidth > count) {
#pragma unroll
        for (s32 k = 0; k < kWidth; ++k) {
            if (first + k >= count) continue;
            if constexpr (kDtype == kFloat32) to[first + k] = x[k];
            if constexpr (kDtype != kFloat32) to[first + k] = (u16)round_pair(x[k], 0.0f);
        }
    } else if constexpr (kDtype == kFloat32) {
        *(float4*)(to + first) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
        u32 words[4];
#pragma unroll
        for (s32 k = 0; k < 4; ++k) words[k] = round_pair(x[2 * k], x[2 * k + 1]);
        *(uint4*)(to + first) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
