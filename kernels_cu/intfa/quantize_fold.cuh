// Pieces of the summation tree of cupy_intfa/quantize/arithmetic.py: the second half is added to the first until one
// value is left.
#pragma once
#include "quantize_config.cuh"

__device__ __forceinline__ float fold4(float a, float b, float c, float d) {
    return __fadd_rn(__fadd_rn(a, c), __fadd_rn(b, d));
}

__device__ __forceinline__ float fold8(const float (&x)[8]) {
    return fold4(__fadd_rn(x[0], x[4]), __fadd_rn(x[1], x[5]), __fadd_rn(x[2], x[6]), __fadd_rn(x[3], x[7]));
}

__device__ __forceinline__ s32 chunks_of(s32 length) { return (length + kChunk - 1) / kChunk; }
