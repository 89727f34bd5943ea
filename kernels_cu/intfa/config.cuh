// The one place that reads -DINTFA_… of the attention kernels. Defaults are the paper's recipe at D 64, so that a
// file compiles as it stands.
#pragma once
#include "types.cuh"

#ifndef INTFA_D
#define INTFA_D 64  // head dimension, padded: 32, 64, 96, 128, 192, 256
#endif
#ifndef INTFA_QK
#define INTFA_QK 0  // format of Q and K
#endif
#ifndef INTFA_PV
#define INTFA_PV 0  // format of P and V
#endif
#ifndef INTFA_K_TOKEN
#define INTFA_K_TOKEN 1  // 1: one scale per key; 0: four per 64 keys, columns (mod 8) / 2
#endif
#ifndef INTFA_V_BLOCK
#define INTFA_V_BLOCK 0  // 1: one scale of V per (64 keys, channel)
#endif
#ifndef INTFA_TILE_REF
#define INTFA_TILE_REF 0  // 1: P relative to the row's maximum in its tile of keys
#endif
#ifndef INTFA_EXACT_SUM
#define INTFA_EXACT_SUM 0  // 1: l is the sum of P before rounding
#endif
#ifndef INTFA_LONG
#define INTFA_LONG 0  // 1: rows may have more than 65 536 keys
#endif
#ifndef INTFA_WARPS
#define INTFA_WARPS 4
#endif
#ifndef INTFA_M_TILES
#define INTFA_M_TILES 1  // 16-row MMA tiles of Q per warp
#endif
#ifndef INTFA_BC
#define INTFA_BC 64  // keys per tile
#endif
#ifndef INTFA_STEP
#define INTFA_STEP INTFA_BC  // keys per step of the running maximum, the twin's key_tile
#endif
#ifndef INTFA_Q_SHARED
#define INTFA_Q_SHARED 0  // 1: Q stays in shared memory, not in registers
#endif
#ifndef INTFA_STAGES
#define INTFA_STAGES 2  // key tiles in shared memory
#endif
#ifndef INTFA_CUBIC
#define INTFA_CUBIC 0  // n: the first of every n groups of 16 keys takes its exponentials from a polynomial
#endif
#ifndef INTFA_SERIAL
#define INTFA_SERIAL 0  // 1: a warpgroup's products do not run under its own softmax, only under the others'
#endif
#ifndef INTFA_ITEM_BUFFERS
#define INTFA_ITEM_BUFFERS 1  // blocks of rows whose Q is in shared memory
#endif
#ifndef INTFA_SLACK
#define INTFA_SLACK 0  // tiles that a warp may be behind the first of its block; 0: they meet at every tile
#endif
#ifndef INTFA_MIN_BLOCKS
#define INTFA_MIN_BLOCKS 1  // blocks per multiprocessor that ptxas must leave registers for
#endif

enum Format : s32 { kInt8 = 0, kHalf = 1, kE4M3 = 2, kE5M2 = 3 };

constexpr s32 kD = INTFA_D;
constexpr s32 kQk = INTFA_QK;
constexpr s32 kPv = INTFA_PV;
constexpr bool kKToken = INTFA_K_TOKEN;
constexpr bool kVBlock = INTFA_V_BLOCK;
constexpr bool kTileRef = INTFA_TILE_REF;
constexpr bool kExactSum = INTFA_EXACT_SUM;
constexpr bool kLong = INTFA_LONG;
constexpr s32 kWarps = INTFA_WARPS;
constexpr s32 kM = INTFA_M_TILES;
constexpr s32 kBc = INTFA_BC;
constexpr s32 kStep = INTFA_STEP;
constexpr bool kQShared = INTFA_Q_SHARED;
constexpr s32 kStages = INTFA_STAGES;
constexpr s32 kSlack = INTFA_SLACK;
constexpr s32 kCubic = INTFA_CUBIC;
constexpr bool kSerial = INTFA_SERIAL;
constexpr u32 kItemBuffers = INTFA_ITEM_BUFFERS;

constexpr s32 kThreads = 32 * kWarps;
constexpr s32 kBr = 16 * kM * kWarps;  // rows of Q per block
constexpr bool kIntegerPv = kPv == kInt8;
// O is float32 where every tile brings its own factor, int32 where P is relative to the running maximum.
constexpr bool kFloatO = !kIntegerPv || kTileRef || kVBlock;
constexpr bool kVOffset =
    kIntegerPv && kTileRef && !kVBlock;  // codes of V are stored 128 too large, as bytes without a sign
constexpr u32 kVSigns = 0x80808080;      // what makes four of them signed again

static_assert(kD % 32 == 0 && kD <= 256,
              "INTFA_D: 32, 64, 96, 128, 192 or 256, a multiple of the MMA's depth");
static_assert(kBc % 32 == 0 && kBc <= 192, "INTFA_BC: 64 to 192, a multiple of the depth of P V");
static_assert(kStep == 32 || kStep == 64 || kStep == kBc, "INTFA_STEP: 32 or 64 keys, or all of a tile");
static_assert(kBc == 64 || !kVBlock, "INTFA_BC: V with a scale per block has one tile per block");
static_assert(kQk == kInt8 || kQk == kPv, "INTFA_QK: a float Q and K go with P and V of the same format");
static_assert(kIntegerPv || !kVBlock, "INTFA_V_BLOCK: a float V has one scale");
static_assert(kQk == kInt8 || !kKToken, "INTFA_K_TOKEN: a float K has one scale");
static_assert(kCubic == 0 || (kIntegerPv && kExactSum),
              "INTFA_CUBIC: a polynomial that is good to 8 bits, and is 0 where P is");
static_assert(kStages >= 2 + kSlack, "INTFA_STAGES: a tile is copied while another is read");
