// Key tiles on their way through shared memory: what a stage holds, and which
// part of it each thread copies and reads.
#pragma once
#include "config.cuh"
#include "params.cuh"
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
};
// Offsets in a stage (NVRTC has no <cstddef>).
constexpr u32 kStageV = kBc * kQkRow, kStageKScale = kStageV + kVBytes,
              kStageVScale = kStageKScale + 4 * kScales;

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

// Rows that follow each other in device memory to swizzled rows, a unit of one
// row in each pass. `from` is at the thread's first unit, `to` at copy_place().
template <u32 kRows, u32 kRow>
__device__ __forceinline__ void copy_tile(u32 to, const u8* from) {
    using P = Pass<kRow>;
    const u32 row = threadIdx.x / P::kUnits, unit = threadIdx.x % P::kUnits;
#pragma unroll
    for (u32 first = 0; first < kRows; first += P::kRows)
        if ((kThreads == P::kRows * P::kUnits || row < P::kRows) &&
            (kRows % P::kRows == 0 || first + row < kRows))
            copy16(to + (P::kConstant ? first * kRow : swizzled<kRow>(first + row, unit)),
                   from + first * kRow);
}

// Addresses in the first stage: what this lane reads, and what this thread
// copies.
struct Places {
    u32 k, v, k_scale, copy_k, copy_v, copy_scale;
};

// With integer P and O in floats at D 256 no register is left: there the
// addresses are worked out again.
__device__ __forceinline__ u32 hold(u32 address) {
    return kFloatO && kIntegerPv && kD == 256 ? address : keep(address);
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

// Where this thread's share of the next key tile lies in device memory, and the
// direction of the one after it.
struct Source {
    const u8* k;
    const u8* v;
    const float* k_scale;
    const float* v_scale;
    s32 step;  // 1 or -1 tile
};

__device__ __forceinline__ Source first_source(const AttentionParams& p, s64 kv, s32 tile) {
    const s64 index = kv * (p.kv_pad / kBc) + tile;
    const u32 i = threadIdx.x;
    Source from;
    from.k = (const u8*)p.k + index * (kBc * kQkRow) + 16 * i;
    from.v = (const u8*)p.v + index * kVBytes + 16 * i;
    from.k_scale = p.k_scale + index * kScales + 4 * i;
    from.v_scale = p.v_scale + index * kD + 4 * i;  // read where V has a scale per block
    from.step = p.last_to_first ? -1 : 1;
    return from;
}

// Without `more` tiles the source stays, and the last tile is copied again, to
// stages that nobody reads: cheaper than a branch in every tile.
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
