// Key tiles on their way through shared memory: what a stage holds, and which
// part of it each thread copies and reads.
#pragma once
#include "config.cuh"
#include "params.cuh"
#include "ptx_barrier.cuh"
#include "ptx_copy.cuh"
#include "swizzle.cuh"

constexpr s32 kQkRow = kD * (kQk == kHalf ? 2 : 1);  // bytes of a row of Q or K
constexpr s32 kVRow =
    kPv == kHalf ? 2 * kD : 64;  // float16 V: a row per key; 8 bits: a row per channel and 64 keys
constexpr s32 kVBytes = kBc * kD * (kPv == kHalf ? 2 : 1);
constexpr s32 kScales = kKToken ? kBc : kBc / 16;

struct alignas(128) Stage {
    u8 k[kBc * kQkRow];
    u8 v[kVBytes];
    float k_scale[kScales];
    float v_scale[kVBlock ? kD : 4];
    u64 full, empty;  // barriers: its tile has arrived; every warp has left its tile
};
// Offsets in a stage (NVRTC has no <cstddef>).
constexpr u32 kStageV = kBc * kQkRow, kStageKScale = kStageV + kVBytes,
              kStageVScale = kStageKScale + 4 * kScales, kStageFull = kStageVScale + 4 * (kVBlock ? kD : 4),
              kStageEmpty = kStageFull + 8, kLastStage = (kStages - 1) * sizeof(Stage);
static_assert(kBc == 64 || kBc == 128, "INTFA_BC: 64 or 128, whole blocks of V");
static_assert(kSlack == 0 || __CUDA_ARCH__ >= 800, "INTFA_SLACK: mbarriers come with sm_80");
static_assert(kBr <= 128, "INTFA_WARPS, INTFA_M_TILES: the packing pads Q to 128 rows");
static_assert(kStep == 64 || !kTileRef, "INTFA_STEP: a tile reference is that of 64 keys");
constexpr s32 kAhead = kStages - 1 - kSlack;  // tiles that are on their way while one is read

constexpr u32 kStagesBytes = kStages * sizeof(Stage);
constexpr u32 kQBytes = kQShared ? kBr * kQkRow : 0;  // behind the stages
static_assert(kStagesBytes >= kWarps * 8 * kD * 4, "the epilogue turns 8 rows of every warp in the stages");
#ifdef INTFA_SHARED_BYTES
static_assert(kStagesBytes + kQBytes == INTFA_SHARED_BYTES, "cupy_intfa counts other bytes of shared memory");
#endif

// A pass of all threads over a tile of rows: whole groups of 8 rows where the
// threads are enough, so that the places of a thread's units are constants
// apart (the last threads may idle).
template <u32 kRow>
struct Pass {
    static constexpr u32 kUnits = kRow / 16, kAtOnce = kThreads / kUnits;
    static constexpr u32 kRows = kAtOnce < 8 ? kAtOnce : kAtOnce / 8 * 8;
    static constexpr bool kConstant = kRows % 8 == 0;
};

// Where a thread's first unit goes, if the others are constants away.
template <u32 kRow>
__device__ __forceinline__ u32 copy_place() {
    using P = Pass<kRow>;
    return P::kConstant ? swizzled<kRow>(threadIdx.x / P::kUnits, threadIdx.x % P::kUnits) : 0;
}

// Rows that follow each other in device memory to swizzled rows, a unit of one row in each pass. `from` is at the
// thread's first unit, `to` at copy_place(). The instruction holds an offset of -2048 to 2047 bytes.
template <u32 kRows, u32 kRow, u32 kFirst = 0>
__device__ __forceinline__ void copy_tile(u32 to, const u8* from) {
    using P = Pass<kRow>;
    if constexpr (kFirst < kRows) {
        const u32 row = threadIdx.x / P::kUnits, unit = threadIdx.x % P::kUnits;
        constexpr s32 kOffset = kFirst * kRow, kNear = kOffset / 4096 * 4096 + 2048;
        if ((kThreads == P::kRows * P::kUnits || row < P::kRows) &&
            (kRows % P::kRows == 0 || kFirst + row < kRows)) {
            if constexpr (P::kConstant)
                copy16<kOffset, kOffset - kNear>(to, from + kNear);
            else
                copy16<0, kOffset - kNear>(to + swizzled<kRow>(kFirst + row, unit), from + kNear);
        }
        copy_tile<kRows, kRow, kFirst + P::kRows>(to, from);
    }
}

// Addresses in the first stage: what this lane reads, and what this thread
// copies.
struct Places {
    u32 k, v, k_scale, copy_k, copy_v, copy_scale;
};

// With integer P and O in floats no register is left at D 256, nor at D 192 before sm_90: there the addresses are worked
// out again.
__device__ __forceinline__ u32 hold(u32 address) {
    constexpr s32 kFull = __CUDA_ARCH__ < 900 ? 192 : 256;
    return kFloatO && kIntegerPv && kD >= kFull ? address : keep(address);
}

__device__ __forceinline__ Places places_in(u32 stages) {
    const u32 lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8, unit = lane / 8 % 2;
    Places at;
    at.k = hold(stages + swizzled<kQkRow>(row, unit));
    if constexpr (kPv == kHalf)
        at.v = hold(stages + kStageV + swizzled<kVRow>(lane % 16, lane / 16));
    else
        at.v = kQkRow == kVRow ? at.k + kStageV : hold(stages + kStageV + swizzled<kVRow>(row, unit));
    at.k_scale = hold(stages + kStageKScale + lane % 4 * (kKToken ? 8 : 4));
    at.copy_k = hold(stages + copy_place<kQkRow>());
    at.copy_v = kQkRow == kVRow ? at.copy_k + kStageV : hold(stages + kStageV + copy_place<kVRow>());
    at.copy_scale = hold(stages + kStageKScale + threadIdx.x * 16);
    return at;
}

// Where this thread's share of the next key tile lies in device memory.
struct Source {
    const u8* k;
    const u8* v;
    const float* k_scale;
    const float* v_scale;
    s32 step;  // 1 or -1 tile to the next one
};

__device__ __forceinline__ Source source_of(const AttentionParams& p, s32 kv, s32 tiles) {
    const s64 index = (s64)kv * (p.kv_pad / kBc) + (p.last_to_first ? tiles - 1 : 0);
    const u32 i = threadIdx.x;
    Source from;
    from.k = (const u8*)p.k + index * (kBc * kQkRow) + 16 * i;
    from.v = (const u8*)p.v + index * kVBytes + 16 * i;
    from.k_scale = p.k_scale + index * kScales + 4 * i;
    from.v_scale = p.v_scale + index * kD + 4 * i;  // read where V has a scale per block
    from.step = p.last_to_first ? -1 : 1;
    return from;
}

// Without `more` tiles the source stays, and the last tile is copied again, to stages that nobody reads: cheaper than a
// branch in every tile.
__device__ __forceinline__ void copy_stage(u32 stage, const Places& at, Source& from, bool more) {
    const s32 step = more ? from.step : 0;
    copy_tile<kBc, kQkRow>(stage + at.copy_k, from.k);
    copy_tile<kVBytes / kVRow, kVRow>(stage + at.copy_v, from.v);
    if (threadIdx.x < kScales / 4) copy16(stage + at.copy_scale, from.k_scale);
    if constexpr (kVBlock) {
        if (threadIdx.x < kD / 4) copy16(stage + at.copy_scale + (kStageVScale - kStageKScale), from.v_scale);
        from.v_scale += step * kD;
    }
    from.k += step * (kBc * kQkRow);
    from.v += step * kVBytes;
    from.k_scale += step * kScales;
}

// A place in the ring of stages: its offset, and the parity of the barriers' phase that is waited for there.
struct Slot {
    u32 offset, parity;
};

__device__ __forceinline__ Slot next(Slot slot) {
    const bool last = slot.offset == kLastStage;
    return {last ? 0 : slot.offset + (u32)sizeof(Stage), slot.parity ^ last};
}

__device__ __forceinline__ void init_barriers(u32 stages) {
    if (threadIdx.x < kStages) {
        barrier_init(stages + threadIdx.x * sizeof(Stage) + kStageFull, kWarps);
        barrier_init(stages + threadIdx.x * sizeof(Stage) + kStageEmpty, kWarps);
    }
    __syncthreads();
}

// Copy the next tile to a slot; `more` tells whether there is one after it.
__device__ __forceinline__ void fill_stage(Slot slot, const Places& at, Source& from, bool more) {
    copy_stage(slot.offset, at, from, more);
    copy_commit();
}

// This warp's share of the tile in a slot has arrived: the oldest that is on its way.
__device__ __forceinline__ void publish_stage(u32 stages, Slot slot) {
    copy_wait<kAhead - 1>();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(stages + slot.offset + kStageFull);
}

// This warp has read the last of a slot.
__device__ __forceinline__ void leave_stage(u32 stages, Slot slot) {
    if constexpr (kSlack > 0) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(stages + slot.offset + kStageEmpty);
    }
}
