// O of a row whose maximum has grown, brought to the new reference: integers times alpha, rounded.
//
// A 32-bit product's high word (IMAD.HI, IMAD.WIDE) takes eight cycles of a scheduler; a conversion, an FMA and a low
// product take two each at most. The FMA adds an anchor so large that the last bit of the sum is worth 2^k, the least
// that holds O: |O| is at most 127 times the row's sum of rounded P, and that at most twice the sum of P. So the error
// is at most 2^-14 of the row's sum, or half a unit where that is more: a scale of V weighs either.
//
// A row that has not grown must not come here: it would be rounded too.
#pragma once
#include "config.cuh"

// How far a maximum may pass the reference of a float16 P before O follows: P is as exact up to 2^8 as up to 1.
constexpr float kRoom = kPv == kHalf ? 8.0f : 0.0f;

struct Rescale {
    float alpha, anchor;  // 1.5 * 2^(23 + k)
    s32 unit, back;       // 2^k; minus the anchor's bits times 2^k
};

// `sum` is the row's, of P before this tile, in units of P.
__device__ __forceinline__ Rescale rescale_by(float alpha, float sum) {
    const u32 top = max(__float_as_uint(256.0f * sum) & 0x7f800000u, 0x4a000000u);  // 2^(k + 21)
    const u32 anchor = top + 0x01400000u, k = (top >> 23) - 148;
    return {alpha, __uint_as_float(anchor), 1 << k, -(s32)(anchor << k)};
}

__device__ __forceinline__ s32 rescaled(s32 o, const Rescale& by) {
    s32 x;  // in one instruction: of a product by 2^k the compiler makes a shift and an addition
    asm("mad.lo.s32 %0, %1, %2, %3;"
        : "=r"(x)
        : "r"(__float_as_int(fmaf((float)o, by.alpha, by.anchor))), "r"(by.unit), "r"(by.back));
    return x;
}
