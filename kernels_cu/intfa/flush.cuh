// Rows of more than 65 536 keys: int32 O goes to floats in device memory on the way.
#pragma once
#include "config.cuh"
#include "ptx_math.cuh"

constexpr s32 kFlushTiles = 65536 / kBc;  // 255 · 127 · 65536 < 2^31

// Before int32 could overflow: add O to the row's floats in device memory, brought to one reference, and start anew.
// Every lane touches only elements of its own, so nothing needs to be ordered. `reference` starts as -inf, O at kZero.
template <s32 kZero>
__device__ __forceinline__ void flush(float* sums, float& reference, float m, s32 r, s32 t,
                                      s32 (&o)[kD / 8][4]) {
    float before = exp2_approx(reference - m);
#pragma unroll
    for (s32 n = 0; n < kD / 8; ++n)
#pragma unroll
        for (s32 e = 0; e < 2; ++e) {
            float* sum = sums + 8 * n + 2 * t + e;
            float past = reference == -INTFA_INF ? 0.0f : *sum * before;  // never written yet: not even 0
            *sum = past + (float)(o[n][2 * r + e] - kZero);
            o[n][2 * r + e] = kZero;
        }
    reference = m;
}
