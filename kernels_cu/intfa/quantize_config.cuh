// The one place that reads -DINTFA_... of the quantise kernels. Defaults are the paper's recipe on float16 at D 128, so
// that a file compiles as it stands; a kernel is given those that it uses.
#pragma once
#include "types.cuh"

#ifndef INTFA_D
#define INTFA_D 128  // head dimension, padded: 32, 64, 96, 128, 192, 256
#endif
#ifndef INTFA_INPUT
#define INTFA_INPUT 0  // Dtype of q, k, v
#endif
#ifndef INTFA_VECTOR
#define INTFA_VECTOR 1  // 1: channels side by side, 8 of them and every row at multiples of 16 bytes
#endif
#ifndef INTFA_QK
#define INTFA_QK 0  // format of the codes of Q and K
#endif
#ifndef INTFA_QK_LARGEST
#define INTFA_QK_LARGEST 127  // the code of an absolute maximum
#endif
#ifndef INTFA_V
#define INTFA_V 0  // format of the codes of V
#endif
#ifndef INTFA_V_LARGEST
#define INTFA_V_LARGEST 127
#endif
#ifndef INTFA_Q_SPAN
#define INTFA_Q_SPAN 0  // what shares a scale of Q, K, V
#endif
#ifndef INTFA_K_SPAN
#define INTFA_K_SPAN 0
#endif
#ifndef INTFA_V_SPAN
#define INTFA_V_SPAN 3
#endif
#ifndef INTFA_V_OFFSET
#define INTFA_V_OFFSET 0  // 1: 8-bit codes of V are stored 128 too large, as bytes without a sign
#endif
#ifndef INTFA_SMOOTH_K
#define INTFA_SMOOTH_K 0  // 1: subtract the mean key
#endif
#ifndef INTFA_SMOOTH_V
#define INTFA_SMOOTH_V 0  // 1: subtract the mean value
#endif
#ifndef INTFA_ROTATE
#define INTFA_ROTATE 1  // channels of one Hadamard block of Q and K; 1: none
#endif
#ifndef INTFA_SORT
#define INTFA_SORT 0  // 1: keys of a block are stored in order of magnitude
#endif
#ifndef INTFA_ABSMAX
#define INTFA_ABSMAX 0  // 1: the pass that finds the absolute maximum of a head, and writes no codes
#endif
#ifndef INTFA_MIN_BLOCKS
#define INTFA_MIN_BLOCKS 1  // blocks per multiprocessor that ptxas must leave registers for
#endif

enum Format : s32 { kInt8 = 0, kHalf = 1, kE4M3 = 2, kE5M2 = 3 };
enum Span : s32 { kToken = 0, kGroup = 1, kBlock = 2, kTensor = 3, kChannel = 4, kBlockChannel = 5 };

constexpr s32 kD = INTFA_D;
constexpr s32 kInput = INTFA_INPUT;
constexpr bool kVector = INTFA_VECTOR;
constexpr s32 kQk = INTFA_QK;
constexpr s32 kV = INTFA_V;
constexpr float kQkLargest = INTFA_QK_LARGEST;
constexpr float kVLargest = INTFA_V_LARGEST;
constexpr s32 kQSpan = INTFA_Q_SPAN;
constexpr s32 kKSpan = INTFA_K_SPAN;
constexpr s32 kVSpan = INTFA_V_SPAN;
constexpr u32 kVFlip = INTFA_V_OFFSET ? 0x80808080 : 0;  // of four codes
constexpr bool kSmoothK = INTFA_SMOOTH_K;
constexpr bool kSmoothV = INTFA_SMOOTH_V;
constexpr s32 kRotate = INTFA_ROTATE;
constexpr bool kSort = INTFA_SORT;
constexpr bool kAbsmaxPass = INTFA_ABSMAX;
constexpr s32 kMinBlocks = INTFA_MIN_BLOCKS;

constexpr bool kRangeV = kVSpan == kTensor || kVSpan == kChannel;  // needs minimum and maximum over the head
constexpr s32 kBlockRows = 64;  // rows of Q, keys of K and V per block: key_block
constexpr s32 kChunk = 128;     // tokens per leaf of the summation tree (quantize/arithmetic.py)

static_assert(kD % 32 == 0 && kD <= 256, "INTFA_D: 32, 64, 96, 128, 192 or 256");
static_assert(kInput >= kFloat16 && kInput <= kFloat64, "INTFA_INPUT: a Dtype of types.cuh");
static_assert(kRotate > 0 && (kRotate & (kRotate - 1)) == 0, "INTFA_ROTATE: a power of two");
static_assert(kQSpan == kToken || kQSpan == kBlock || kQSpan == kTensor,
              "INTFA_Q_SPAN: token, block or tensor");
static_assert(kKSpan <= kTensor, "INTFA_K_SPAN: token, group, block or tensor");
static_assert(kVSpan >= kBlock, "INTFA_V_SPAN: block, tensor, channel or block_channel");
