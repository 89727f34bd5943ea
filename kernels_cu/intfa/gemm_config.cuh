// The one place that reads -DINTFA_... of the gemm_*.cu kernels. A kernel is given those that it uses.
#pragma once
#include "types.cuh"

#ifndef INTFA_OUT
#define INTFA_OUT 4  // Dtype of the output, or 4: the integers themselves
#endif
#ifndef INTFA_TILE_M
#define INTFA_TILE_M 128  // rows of the output per block
#endif
#ifndef INTFA_TILE_N
#define INTFA_TILE_N 128  // columns of the output per block
#endif
#ifndef INTFA_TILE_K
#define INTFA_TILE_K 64  // bytes of depth per stage
#endif
#ifndef INTFA_RING
#define INTFA_RING 3  // stages in shared memory
#endif
#ifndef INTFA_WARPS_M
#define INTFA_WARPS_M 4  // warps side by side along the rows of a tile
#endif
#ifndef INTFA_WARPS_N
#define INTFA_WARPS_N 2  // and along its columns
#endif
#ifndef INTFA_TRANSPOSE
#define INTFA_TRANSPOSE 0  // gemm_pack: 1: the rows of the source are what lies side by side
#endif
#ifndef INTFA_VECTOR
#define INTFA_VECTOR 0  // gemm_pack: 1: four rows of the source are an aligned word
#endif

constexpr s32 kInt32 = 4;  // beside the Dtypes
constexpr s32 kOut = INTFA_OUT;
constexpr s32 kBm = INTFA_TILE_M;
constexpr s32 kBn = INTFA_TILE_N;
constexpr s32 kBk = INTFA_TILE_K;
constexpr s32 kRing = INTFA_RING;
constexpr s32 kWarpsM = INTFA_WARPS_M;
constexpr s32 kWarpsN = INTFA_WARPS_N;
constexpr bool kTranspose = INTFA_TRANSPOSE;
constexpr bool kWords = INTFA_VECTOR;

constexpr s32 kBlock = 32 * kWarpsM * kWarpsN;                 // threads that compute
constexpr u32 kPartA = kBm * kBk, kPart = kPartA + kBn * kBk;  // bytes of A, and of both, in a stage
constexpr u32 kRingBytes = kRing * kPart;

static_assert(kOut == kFloat16 || kOut == kBFloat16 || kOut == kFloat32 || kOut == kInt32,
              "INTFA_OUT: float16, bfloat16, float32 or int32");
static_assert(kBk % 32 == 0, "INTFA_TILE_K: whole instructions of 32 bytes of depth");
static_assert(kRing >= 2, "INTFA_RING: a stage is filled while another is read");
