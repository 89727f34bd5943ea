// The one place that reads -DINTFA_... of the formats_*.cu kernels. A kernel is given those that it uses.
#pragma once
#include "types.cuh"

#ifndef INTFA_BITS
#define INTFA_BITS 4  // of a code: 4 or 2
#endif
#ifndef INTFA_ENCODING
#define INTFA_ENCODING 0  // Encoding of the packed codes
#endif
#ifndef INTFA_VECTOR
#define INTFA_VECTOR \
    1  // 1: rows of a multiple of 16 codes, so that all of them are one row of 16-byte pieces
#endif
#ifndef INTFA_DTYPE
#define INTFA_DTYPE 0  // Dtype of the floats: float16, bfloat16 or float32
#endif

enum Encoding : s32 { kTwosComplement = 0, kOffset = 1, kUnsigned = 2 };

constexpr s32 kBits = INTFA_BITS;
constexpr s32 kEncoding = INTFA_ENCODING;
constexpr bool kVector = INTFA_VECTOR;
constexpr s32 kDtype = INTFA_DTYPE;

constexpr s32 kThreads = 256;
constexpr s32 kPerByte = 8 / kBits;
constexpr u32 kCodeMask = (1u << kBits) - 1;
constexpr u32 kSign = 1u << (kBits - 1);

static_assert(kBits == 4 || kBits == 2, "INTFA_BITS: 4 or 2; codes of 8 bits are bytes already");
static_assert(kEncoding >= kTwosComplement && kEncoding <= kUnsigned,
              "INTFA_ENCODING: an Encoding of formats_config.cuh");
static_assert(kDtype == kFloat16 || kDtype == kBFloat16 || kDtype == kFloat32,
              "INTFA_DTYPE: float16, bfloat16 or float32");

// A byte in each of the four bytes of a word.
__device__ __forceinline__ constexpr u32 four_times(u32 byte) { return 0x01010101u * byte; }
