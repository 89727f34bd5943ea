"""Planted bugs in the GEMM kernels, as those of `ptxsim.mutations`."""

from __future__ import annotations

from ptxsim.mutations import Mutation

_NAIVE, _DP4A, _WMMA, _SM80 = "gemm_naive.cu", "gemm_dp4a.cu", "gemm_wmma.cu", "gemm_sm80.cu"
_SM90, _PACK = "gemm_sm90.cu", "gemm_pack.cu"
_STAGES, _END, _PARAMS = "intfa/gemm_stages.cuh", "intfa/gemm_epilogue.cuh", "intfa/gemm_params.cuh"

MUTATIONS = (
    # gemm_naive
    Mutation("a row too many", _NAIVE, "row >= p.m", "row > p.m", "bounds", "gemm-naive"),
    Mutation("a step of depth too many", _NAIVE, "k < p.k", "k <= p.k", "bounds|twin", "gemm-naive"),
    Mutation(
        "columns a byte apart", _NAIVE, "column * p.b_stride[0]", "column * p.b_stride[1]", "bounds|twin", "gemm-naive"
    ),
    # what the kernels share
    Mutation("no bias", _END, "p.bias ? __fadd_rn(x, column.bias) : x", "x", "twin", "gemm-naive"),
    Mutation(
        "both scales multiplied first",
        _END,
        "__fmul_rn(__fmul_rn(__int2float_rn(sum), row.scale), column.scale)",
        "__fmul_rn(__int2float_rn(sum), __fmul_rn(row.scale, column.scale))",
        "twin",
        "gemm-naive",
    ),
    Mutation("one scale for all rows", _END, "p.scale_a[row * p.scale_a_step]", "p.scale_a[0]", "twin", "gemm-naive"),
    Mutation(
        "pairs in a matrix of an odd width", _END, "if (p.n % 2) {", "if (false) {", "alignment|bounds", "gemm-sm80"
    ),
    Mutation(
        "the neighbour of the last column",
        _END,
        "if (column + 1 < p.n)",
        "if (column < p.n)",
        "bounds|twin",
        "gemm-sm80",
    ),
    Mutation("the scale of a row beyond the end", _END, "min(top + 8, p.m - 1)", "top + 8", "bounds", "gemm-sm80"),
    Mutation("a band as high as all of them", _PARAMS, "rest % height", "rest % p.raster", "twin|bounds", "gemm-sm80"),
    Mutation(
        "steps are read before they have arrived", _STAGES, "        copy_wait<kRing - 2>();\n", "", "copy", "gemm-dp4a"
    ),
    Mutation(
        "steps are read while they are refilled",
        _STAGES,
        "        __syncthreads();  // step i has arrived",
        "        // step i has arrived",
        "race|uninitialised|copy",
        "gemm-dp4a",
    ),
    Mutation("a copy of a row beyond the end", _STAGES, "first + r < rows", "first + r <= rows", "bounds", "gemm-dp4a"),
    Mutation("nothing is zero", _STAGES, '"r"(is_there ? 16 : 0)', '"r"(16)', "twin", "gemm-dp4a"),
    Mutation(
        "the ring is one stage shorter",
        _STAGES,
        "next = next + kPart == kRingBytes ? 0 : next + kPart;",
        "next = next + 2 * kPart == kRingBytes ? 0 : next + kPart;",
        "bounds|race|twin|uninitialised|copy",
        "gemm-dp4a",
    ),
    Mutation(
        "copies that are none are not waited for at the end", _STAGES, "    copy_wait<0>();\n", "", "", "gemm-dp4a"
    ),
    # gemm_dp4a
    Mutation("rows without gaps", _DP4A, "tile.row + first + 2 * r", "tile.row + first + r", "twin", "gemm-dp4a"),
    Mutation("a row too many is stored", _DP4A, "if (row < p.m)", "if (row <= p.m)", "bounds", "gemm-dp4a"),
    Mutation("the first columns twice", _DP4A, "rows, columns + kBn / 2)", "rows, columns)", "twin", "gemm-dp4a"),
    Mutation("a unit of B of A's height", _DP4A, "columns += kBn)", "columns += kBm)", "twin", "gemm-dp4a"),
    # gemm_wmma
    Mutation(
        "sums over stages that others read",
        _WMMA,
        "    __syncthreads();  // the stages are free\n",
        "",
        "race",
        "gemm-wmma",
    ),
    Mutation(
        "sums are read before they are there",
        _WMMA,
        "wmma_store(shared + 1024 * warp, sum[m][n]);\n            __syncwarp();\n",
        "wmma_store(shared + 1024 * warp, sum[m][n]);\n",
        "race",
        "gemm-wmma",
    ),
    Mutation(
        "sums over those that are read",
        _WMMA,
        "            __syncwarp();\n            wmma_store(",
        "            wmma_store(",
        "race",
        "gemm-wmma",
    ),
    Mutation("warps share a place", _WMMA, "shared + 1024 * warp", "shared + 512 * warp", "race|twin", "gemm-wmma"),
    Mutation("A twice", _WMMA, "stage + kPartA + 16 * (u * kBn", "stage + 16 * (u * kBn", "twin", "gemm-wmma"),
    Mutation(
        "lines of a fragment are farther apart",
        "intfa/gemm_wmma.cuh",
        "shared.s8 {%0,%1}, [%2], 16;",
        "shared.s8 {%0,%1}, [%2], 32;",
        "twin|bounds|copy|race|uninitialised",
        "gemm-wmma",
    ),
    # gemm_sm80
    Mutation(
        "the first step is read before it has arrived",
        _SM80,
        "    copy_wait<kRing - 2>();\n    __syncthreads();\n",
        "    __syncthreads();\n",
        "copy",
        "gemm-sm80",
    ),
    Mutation(
        "a step is read before it has arrived",
        _SM80,
        "                copy_wait<kRing - 2>();\n",
        "",
        "copy",
        "gemm-sm80",
    ),
    Mutation(
        "a step is refilled while it is read",
        _SM80,
        "                __syncthreads();  // the next",
        "                // the next",
        "race|copy",
        "gemm-sm80",
    ),
    Mutation("copies are not committed", _SM80, "                copy_commit();\n", "", "copy", "gemm-sm80"),
    Mutation("threads end before their copies", _SM80, "    copy_wait<0>();\n", "", "copy", "gemm-sm80"),
    Mutation("the same step again", _SM80, "                now = after(now);\n", "", "twin|race|copy", "gemm-sm80"),
    Mutation("the same fragments again", _SM80, "now, (pair + 1) % kPairs", "now, pair % kPairs", "twin", "gemm-sm80"),
    Mutation(
        "units of B exchanged",
        _SM80,
        "lane / 16 * 8, lane / 8 % 2",
        "lane / 16 * 8, lane / 8 % 2 ^ 1",
        "twin",
        "gemm-sm80",
    ),
    Mutation("depth beyond the end", _SM80, " && k + 16 * (unit + along) < depth", "", "bounds|twin", "gemm-sm80"),
    Mutation(
        "a share is left out",
        _SM80,
        "fill(next, k, pair, kPairs - 1)",
        "fill(next, k, pair, kPairs)",
        "twin|uninitialised",
        "gemm-sm80",
    ),
    # gemm_sm90
    Mutation("copies do not know of the barriers", _SM90, "        barrier_init_done();\n", "", "proxy", "gemm-sm90"),
    Mutation(
        "nobody waits for the barriers",
        _SM90,
        "    __syncthreads();\n    if (warp < 4)",
        "    if (warp < 4)",
        "race|mbarrier",
        "gemm-sm90",
    ),
    Mutation(
        "the producer does not wait for a stage",
        _SM90,
        "            barrier_wait(stage_empty(shared, stage), turn / kRing % 2 ^ 1);\n",
        "",
        "race|mbarrier",
        "gemm-sm90",
    ),
    Mutation(
        "the producer waits for the wrong phase",
        _SM90,
        "kRing % 2 ^ 1)",
        "kRing % 2)",
        "deadlock|divergence",
        "gemm-sm90",
    ),
    Mutation(
        "the consumer does not wait for its step",
        _SM90,
        "            barrier_wait(stage_full(shared, stage), turn / kRing % 2);\n",
        "",
        "race|uninitialised",
        "gemm-sm90",
    ),
    Mutation(
        "too few bytes are announced",
        _SM90,
        "barrier_expect(full, kPart)",
        "barrier_expect(full, kPartA)",
        "race|mbarrier|deadlock",
        "gemm-sm90",
    ),
    Mutation("no fence before products", _SM90, "            wgmma_fence();\n", "", "wgmma", "gemm-sm90"),
    Mutation("products are not committed", _SM90, "            wgmma_commit();\n", "", "wgmma|race", "gemm-sm90"),
    Mutation("a stage is given back too early", _SM90, "wgmma_wait<1>()", "wgmma_wait<2>()", "race", "gemm-sm90"),
    Mutation(
        "sums are read while they are computed", _SM90, "        wgmma_wait<0>();\n", "", "wgmma|race", "gemm-sm90"
    ),
    Mutation(
        "the last stage is not given back",
        _SM90,
        "        wgmma_wait<0>();\n        if (is_first) barrier_arrive(stage_empty(shared, (turn - 1) % kRing));\n",
        "        wgmma_wait<0>();\n",
        "deadlock|divergence",
        "gemm-sm90",
    ),
    Mutation(
        "a barrier for one warp more",
        _SM90,
        "stage_empty(shared, i), kConsumerWarps)",
        "stage_empty(shared, i), kConsumerWarps + 1)",
        "deadlock|divergence",
        "gemm-sm90",
    ),
    Mutation(
        "sums of the last tile",
        _SM90,
        "moved(b_tiles, at), step + k > 0)",
        "moved(b_tiles, at), true)",
        "twin",
        "gemm-sm90",
    ),
    Mutation("the same rows for both", _SM90, "shared + warp / 4 * 64 * kBk", "shared", "twin", "gemm-sm90"),
    Mutation("the same depth again", _SM90, "stage * kPart + 32 * k", "stage * kPart", "twin", "gemm-sm90"),
    Mutation(
        "more registers than there are",
        _SM90,
        "kConsumerRegisters = 240",
        "kConsumerRegisters = 248",
        "registers",
        "gemm-sm90",
    ),
    # gemm_pack
    Mutation("turned without a barrier", _PACK, "        __syncthreads();\n", "", "race|uninitialised", "gemm-pack"),
    Mutation("bytes turned the other way", _PACK, "w[1], 0x5140)", "w[1], 0x4150)", "twin", "gemm-pack"),
    Mutation(
        "a row too many is stored", _PACK, "if (row < rows && unit", "if (row <= rows && unit", "bounds", "gemm-pack"
    ),
    Mutation("a unit too many is stored", _PACK, "unit < units)", "unit <= units)", "bounds|twin", "gemm-pack"),
    Mutation(
        "bytes beyond the matrix",
        _PACK,
        "        if (row >= rows || column >= columns) return 0;\n        return matrix",
        "        return matrix",
        "bounds|twin",
        "gemm-pack",
    ),
    Mutation("columns that meet in one bank", _PACK, "[kWordsOfRow + 1]", "[kWordsOfRow]", "", "gemm-pack"),
)
