// Arguments of every quantise kernel, passed by value: one struct for all of a call's launches. The host packs the same
// fields in the same order (cupy_intfa/quantize/cuda.py); -DINTFA_PARAMS_BYTES holds its count of bytes.
#pragma once
#include "types.cuh"

struct Input {
    const void* data;  // (B, H, S, D)
    s64 stride[4];     // bytes, of any sign: batch, head, token, channel
};

struct QuantizeParams {
    Input q, k, v;
    // The packing (cupy_intfa/packing.py), null where the recipe has no such array.
    u8* q_codes;
    u8* k_codes;
    u8* v_codes;
    float* q_scale;
    float* q_mark;
    float* k_scale;
    float* k_scale_max;
    float* kv_mark;
    float* v_scale;
    float* k_mean;
    float* q_kmean;
    float* v_mean;
    u8* key_index;
    // Scratch, null likewise: per chunk of 128 tokens (B, Hkv, chunks, D), and per head.
    float* k_sum;
    float* v_sum;
    float* v_low;
    float* v_high;
    u32* q_absmax;  // (B, Hq), bits of float32: the order of integers is that of floats >= 0
    u32* k_absmax;  // (B, Hkv)
    s32 batch, heads, kv_heads, q_len, kv_len, head_dim;  // as the user gave them
    s32 q_pad, kv_pad;
};
#ifdef INTFA_PARAMS_BYTES
static_assert(sizeof(QuantizeParams) == INTFA_PARAMS_BYTES,
              "cupy_intfa/quantize/cuda.py packs another struct");
#endif
