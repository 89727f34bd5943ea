// Arguments of every attention kernel, passed by value. The host packs the same fields in the same order
// (cupy_intfa/launch.py); -DINTFA_PARAMS_BYTES holds its count of bytes.
#pragma once
#include "types.cuh"

struct AttentionParams {
    // The packing (cupy_intfa/packing.py). Sq, Skv, D stand for the padded lengths q_pad, kv_pad, kD here.
    const void* q;  // (B, Hq, Sq, D) codes
    const void* k;  // (B, Hkv, Skv, D) codes, stored order
    const void* v;  // 8 bits: (B, Hkv, Skv/64, D, 64), keys of each 16 permuted; float16: (B, Hkv, Skv, D)
    const float* q_scale;      // (B, Hq, Sq)
    const float* q_mark;       // (B, Hq, Sq) 0 or NaN
    const float* k_scale;      // token: (B, Hkv, Skv); else (B, Hkv, Skv/64, 4)
    const float* k_scale_max;  // (B, Hkv)
    const float* kv_mark;      // (B, Hkv) 0 or NaN
    const float* v_scale;      // per block: (B, Hkv, Skv/64, D); else (B, Hkv, D)
    const float* v_mean;       // (B, Hkv, D), or null
    const float* q_kmean;      // (B, Hq, Sq) s_q Q8 k_mean, or null
    const u8* key_index;       // (B, Hkv, Skv) original place in its block of 64, or null
    void* out;                 // (B, Hq, q_len, head_dim), type out_dtype, any strides
    float* lse;                // (B, Hq, q_len), or null
    float* o_flush;            // (B, Hq, Sq, D) partial sums of rows of more than 65 536 keys, or null
    s64 out_stride[4];         // elements: batch, head, row, channel
    s32 heads, kv_heads, q_len, kv_len, head_dim;  // as the user gave them
    s32 q_pad, kv_pad;
    s32 causal_offset;  // row i sees keys j <= i + causal_offset; kNoMask for all
    s32 last_to_first;  // order of the key tiles
    s32 out_dtype;
    s32 all_heads;      // batch times heads
    s32 section;        // heads that are worked on side by side, their K and V in the L2 cache together
    float scale;        // softmax scale
    float scale_log2;   // scale * log2(e), rounded on the host
    float score_reach;  // largest code of Q times largest code of K times head_dim
    float log2_top;     // log2 R
};
#ifdef INTFA_PARAMS_BYTES
static_assert(sizeof(AttentionParams) == INTFA_PARAMS_BYTES,
              "cupy_intfa/launch.py packs another AttentionParams");
#endif
