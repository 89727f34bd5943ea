"""Planted bugs in the quantise kernels, as those of `ptxsim.mutations`."""

from __future__ import annotations

from ptxsim.mutations import Mutation

_ROWS, _VALUES = "quantize_rows.cu", "quantize_values.cu"
_STATISTICS, _COMBINE = "quantize_statistics.cu", "quantize_combine.cu"
_ORDER, _LANES = "intfa/quantize_order.cuh", "intfa/quantize_lanes.cuh"

MUTATIONS = (
    Mutation(
        "codes of V keep their sign",
        _VALUES,
        "kVFlip ^ pack_bytes(code[0]",
        "pack_bytes(code[0]",
        "twin",
        "quantise-tile",
    ),
    Mutation(
        "sums without a barrier",
        _STATISTICS,
        "    __syncthreads();\n    const s32 d = threadIdx.x;",
        "    const s32 d = threadIdx.x;",
        "race|uninitialised",
        "quantise",
    ),
    Mutation(
        "tokens beyond the end", _STATISTICS, "min(first + 16 * i, count - 1)", "first + 16 * i", "bounds", "quantise"
    ),
    Mutation(
        "another tree of sums",
        "intfa/quantize_fold.cuh",
        "__fadd_rn(__fadd_rn(a, c), __fadd_rn(b, d))",
        "__fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d))",
        "twin",
        "quantise",
    ),
    Mutation(
        "extremes without a barrier",
        _COMBINE,
        "    shared.high[slot][channel] = most;\n    __syncthreads();",
        "    shared.high[slot][channel] = most;",
        "race|uninitialised",
        "quantise",
    ),
    Mutation(
        "a scale that is not divided",
        _COMBINE,
        "scale_of<kV>(absmax, kVLargest)",
        "scale_of<kV>(absmax, 1.0f)",
        "twin",
        "quantise",
    ),
    Mutation(
        "codes that are truncated",
        "intfa/quantize_codes.cuh",
        "__fadd_rn(__fmul_rn(x, inverse), kRoundingMagic)",
        "__fadd_rz(__fmul_rn(x, inverse), kRoundingMagic)",
        "twin",
        "quantise",
    ),
    Mutation(
        "maxima without a barrier", _ROWS, "magnitude);\n    __syncthreads();\n}", "magnitude);\n}", "race", "quantise"
    ),
    Mutation(
        "spans are cleared after they are used",
        _ROWS,
        "    } else if constexpr (kSpan != kToken || kKeys) {\n        __syncthreads();\n    }",
        "    }",
        "race|uninitialised",
        "quantise",
    ),
    Mutation(
        "rows of the padding",
        _ROWS,
        "if (channel < kD) store_codes(",
        "store_codes(",
        "bounds|race|twin",
        "quantise-96",
    ),
    Mutation(
        "a maximum over too few lanes",
        "intfa/quantize_lanes.cuh",
        "mine = Op::of(mine, __shfl_xor_sync(kAllLanes, mine, step));",
        "mine = Op::of(mine, mine);",
        "twin",
        "quantise",
    ),
    Mutation(
        "values turned without a barrier",
        _VALUES,
        "        __syncthreads();\n        uint4* out",
        "        uint4* out",
        "race|uninitialised",
        "quantise",
    ),
    Mutation(
        "inverse scales without a barrier",
        _VALUES,
        "    __syncthreads();\n    const float2 inverse",
        "    const float2 inverse",
        "race|uninitialised",
        "quantise",
    ),
    Mutation(
        "keys in their own order",
        _VALUES,
        "pack_bytes(code[0], code[1], code[8], code[9])",
        "pack_bytes(code[0], code[1], code[2], code[3])",
        "twin",
        "quantise",
    ),
    Mutation(
        "two threads write the same",
        _VALUES,
        "for (s32 i = threadIdx.x; i < 8 * kPairs; i += kThreads)",
        "for (s32 i = threadIdx.x / 2; i < 8 * kPairs; i += kThreads / 2)",
        "",
        "quantise",
    ),
    Mutation(
        "a barrier that nobody needs",
        _VALUES,
        "        __syncthreads();\n        uint4* out",
        "        __syncthreads();\n        __syncthreads();\n        uint4* out",
        "",
        "quantise",
    ),
    Mutation(
        "a block too far",
        _VALUES,
        "p.v_codes + ((s64)bh * p.kv_pad + block * kBlockRows) * kD",
        "p.v_codes + ((s64)bh * p.kv_pad + block * kBlockRows + 64) * kD",
        "bounds|twin",
        "quantise",
    ),
    # sorted keys, rotation, two heads of K and V
    Mutation("a key is behind itself", _ORDER, "(other < row)", "(other <= row)", "twin|bounds", "quantise-rotate"),
    Mutation(
        "ranks of half the lanes",
        _ORDER,
        "for (s32 step = 4; step < kLanes; step *= 2) rank",
        "for (s32 step = 8; step < kLanes; step *= 2) rank",
        "twin|race",
        "quantise-rotate",
    ),
    Mutation("groups side by side", _ORDER, "rank / 2 * 8 + 2 * g", "rank / 2 * 8 + g", "twin|race", "quantise-rotate"),
    Mutation("no minus in a butterfly", _LANES, "upper ? -x[i] : x[i]", "x[i]", "twin", "quantise-rotate"),
    Mutation(
        "a rotation that lengthens",
        _LANES,
        "__fmul_rn(x[i], rotation_norm(kRotate))",
        "x[i]",
        "twin",
        "quantise-rotate",
    ),
    Mutation(
        "the mean of the first head", _ROWS, "mean + head * kD + channel", "mean + channel", "twin", "quantise-rotate"
    ),
    Mutation(
        "a mean over the padding",
        _COMBINE,
        "mean_of(p.k_sum[from], p.kv_len)",
        "mean_of(p.k_sum[from], p.kv_pad)",
        "twin",
        "quantise-rotate",
    ),
    Mutation(
        "a largest scale of nothing",
        _COMBINE,
        "p.k_scale_max[bh] = p.kv_mark[bh] = 0.0f",
        "p.kv_mark[bh] = 0.0f",
        "twin",
        "quantise-rotate",
    ),
    # what is not finite
    Mutation("no mark", "intfa/quantize_load.cuh", "bad |= !finite;", "", "twin", "quantise-spoilt"),
    Mutation(
        "all are taken for finite",
        "intfa/quantize_load.cuh",
        "probe[0] + probe[1] + (probe[2] + probe[3]) == 0.0f",
        "true",
        "twin",
        "quantise-spoilt",
    ),
    Mutation(
        "marks of some lanes",
        _LANES,
        "rows |= __shfl_xor_sync(kAllLanes, rows, step)",
        "rows |= 0",
        "twin|race",
        "quantise-spoilt",
    ),
)
