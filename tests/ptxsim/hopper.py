"""CUDA of small Hopper kernels: one wgmma, one copy, named barriers, and a ring of tiles brought by copies."""

from __future__ import annotations

import numpy as np
from ptxsim.small import Array

PRELUDE = """
typedef unsigned char u8; typedef unsigned int u32; typedef unsigned long long u64;
struct alignas(64) Map { u64 opaque[16]; };
__device__ __forceinline__ u32 at(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 swizzled(u32 offset, u32 span) { return offset ^ (offset >> 7 & (span / 16 - 1)) << 4; }
__device__ __forceinline__ u64 tile(u32 address, u32 span, u32 leading, u32 stride) {
    const u64 mode = span == 128 ? 1 : span == 64 ? 2 : span == 32 ? 3 : 0;
    return mode << 62 | (u64)(stride / 16) << 32 | (u64)(leading / 16) << 16 | address / 16;
}
__device__ __forceinline__ void init(u32 b, u32 n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(n) : "memory");
}
__device__ __forceinline__ void init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void expect(u32 b, u32 n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(n) : "memory");
}
__device__ __forceinline__ void arrive(u32 b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory");
}
__device__ __forceinline__ void wait(u32 b, u32 parity) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}"
                 :: "r"(b), "r"(parity) : "memory");
}
__device__ __forceinline__ void copy_line(u32 to, const void* from, u32 bytes, u32 b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(b) : "memory");
}
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n> __device__ __forceinline__ void retire() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(n) : "memory");
}
"""


def wgmma(kind: str, count: int, registers: bool, tail: str = "") -> str:
    """CUDA of a function ``product(d, a, b, add)`` for one shape; ``count`` registers of D."""
    letter, ctype = ("f", "float") if ".f32." in kind else ("r", "int")
    d = ", ".join(f"%{i}" for i in range(count))
    n = count + (4 if registers else 1)
    a = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}" if registers else f"%{count}"
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4)) if registers else '"l"(a)'
    outputs = ", ".join(f'"+{letter}"(d[{i}])' for i in range(count))
    first = "const u32 (&a)[4]" if registers else "u64 a"
    return f"""
__device__ __forceinline__ void product({ctype} (&d)[{count}], {first}, u64 b, int add) {{
    asm volatile("{{.reg .pred p; setp.ne.b32 p, %{n + 1}, 0;"
                 "wgmma.mma_async.sync.aligned.{kind} {{{d}}}, {a}, %{n}, p{tail};}}"
                 : {outputs} : {inputs}, "l"(b), "r"(add));
}}
"""


# The ring of a warp-specialised kernel: a producer warpgroup brings 64 keys of 64 bytes at a time to two stages, a
# consumer warpgroup multiplies 64 rows with them and adds up. What tests take away or change has a line of its own.
RING = (
    PRELUDE
    + wgmma("m64n64k32.s32.s8.s8", 32, False)
    + """
constexpr u32 kTile = 64 * 64, kStages = 2;
extern "C" __global__ void __launch_bounds__(256)
small(const u8* q, const u8* k, u32 tiles, int* out) {
    extern __shared__ __align__(1024) u8 bytes[];
    const u32 base = at(bytes), q_at = base, stages = base + kTile, barriers = stages + kStages * kTile;
    const u32 full = barriers, empty = barriers + 8 * kStages;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < kStages; ++i) {
            init(full + 8 * i, 1);
            init(empty + 8 * i, 128);
        }
        init_done();
    }
    for (u32 i = threadIdx.x; i < kTile; i += 256)
        bytes[swizzled(i, 64)] = q[i];
    proxy_fence();
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0)
            for (u32 i = 0; i < tiles; ++i) {
                const u32 s = i % kStages, phase = i / kStages & 1;
                wait(empty + 8 * s, phase ^ 1);
                expect(full + 8 * s, kTile);
                copy_line(stages + s * kTile, k + i * kTile, kTile, full + 8 * s);
            }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int d[32];
        for (int i = 0; i < 32; ++i) d[i] = 0;
        for (u32 i = 0; i < tiles; ++i) {
            const u32 s = i % kStages, phase = i / kStages & 1;
            wait(full + 8 * s, phase);
            wgmma_fence();
            product(d, tile(q_at, 64, 16, 512), tile(stages + s * kTile, 64, 16, 512), i > 0);
            product(d, tile(q_at + 32, 64, 16, 512), tile(stages + s * kTile + 32, 64, 16, 512), 1);
            commit();
            retire<0>();
            arrive(empty + 8 * s);
        }
        const u32 t = threadIdx.x - 128, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
        for (int i = 0; i < 32; ++i)
            out[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = d[i];
    }
}
"""
)


def place_of_d(count: int) -> tuple[Array, Array]:
    """Row and column of each thread's registers of D (128, count): "Matrix D" of wgmma in the PTX ISA."""
    t, i = np.arange(128)[:, None], np.arange(count)[None]
    return 16 * (t // 32) + t % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (t % 4) + i % 2


def held_of_a(a: Array) -> Array:
    """Give what the threads of a warpgroup hold of A (64, 32 bytes): in each warp what it would be for mma.sync.

    Registers hold rows g and g + 8 of the warp's 16, 4 bytes from 4t on and the same 16 bytes on, lane = 4g + t.
    """
    thread, register = np.ogrid[:128, :4]
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register % 2)
    words = np.ascontiguousarray(a).view(np.uint32)
    held: Array = words[row, thread % 4 + 4 * (register // 2)]
    return held


def tile_kernel(kind: str, count: int, span: int, columns: int, add: bool, ctype: str = "int") -> str:
    """One step of depth from shared memory, both tiles K-major; without a swizzle cores of 8 x 16 bytes, 128 apart."""
    rows_a, leading, stride = 64, (128 if span == 16 else 16), (256 if span == 16 else 8 * span)
    width = max(span, 32)
    return (
        PRELUDE
        + wgmma(kind, count, False, ", 1, 1, 0, 0" if ".f16." in kind or ".bf16." in kind else "")
        + f"""
__device__ u32 place(u32 i) {{
    const u32 r = i / {width}, c = i % {width};
    return {span} == 16 ? r / 8 * {stride} + c / 16 * {leading} + r % 8 * 16 + c % 16 : swizzled(i, {span});
}}
extern "C" __global__ void small(const u8* a, const u8* b, u32 step, {ctype}* out) {{
    __shared__ __align__(1024) u8 sa[{rows_a * width}];
    __shared__ __align__(1024) u8 sb[{columns * width}];
    for (u32 i = threadIdx.x; i < {rows_a * width}; i += 128) sa[place(i)] = a[i];
    for (u32 i = threadIdx.x; i < {columns * width}; i += 128) sb[place(i)] = b[i];
    proxy_fence();
    __syncthreads();
    {ctype} d[{count}];
    for (int i = 0; i < {count}; ++i) d[i] = threadIdx.x + i;
    wgmma_fence();
    const u64 first = tile(at(sa) + 32 * step, {span}, {leading}, {stride});
    product(d, first, tile(at(sb) + 32 * step, {span}, {leading}, {stride}), {int(add)});
    commit();
    retire<0>();
    for (int i = 0; i < {count}; ++i) out[threadIdx.x * {count} + i] = d[i];
}}
"""
    )


def registers_kernel(types: str, span: int) -> str:
    """Multiply A in registers with B (64, span) K-major: one step of depth."""
    return (
        PRELUDE
        + wgmma(f"m64n64k32.s32.{types}", 32, True)
        + f"""
extern "C" __global__ void small(const u32* a, const u8* b, int* out) {{
    __shared__ __align__(1024) u8 staged[{64 * span}];
    for (u32 i = threadIdx.x; i < {64 * span}; i += 128) staged[swizzled(i, {span})] = b[i];
    proxy_fence();
    __syncthreads();
    u32 x[4];
    for (int i = 0; i < 4; ++i) x[i] = a[threadIdx.x * 4 + i];
    int d[32];
    wgmma_fence();
    product(d, x, tile(at(staged), {span}, 16, {8 * span}), 0);
    commit();
    retire<0>();
    for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}}"""
    )


def transposed_kernel(columns: int, span: int) -> str:
    """Multiply A in registers with B as float16 V lies: a row per key, cut into columns as wide as the swizzle."""
    count = columns // 2
    return (
        PRELUDE
        + wgmma(f"m64n{columns}k16.f32.f16.f16", count, True, ", 1, 1, 1")
        + f"""
extern "C" __global__ void small(const u32* a, const u8* b, float* out) {{
    __shared__ __align__(1024) u8 sb[{16 * 2 * columns}];
    for (u32 i = threadIdx.x; i < {16 * 2 * columns}; i += 128) {{
        const u32 r = i / {2 * columns}, c = i % {2 * columns};
        sb[swizzled(c / {span} * {16 * span} + r * {span} + c % {span}, {span})] = b[i];
    }}
    proxy_fence();
    __syncthreads();
    u32 x[4];
    for (int i = 0; i < 4; ++i) x[i] = a[threadIdx.x * 4 + i];
    float d[{count}];
    wgmma_fence();
    product(d, x, tile(at(sb), {span}, {16 * span}, {8 * span}), 0);
    commit();
    retire<0>();
    for (int i = 0; i < {count}; ++i) out[threadIdx.x * {count} + i] = d[i];
}}
"""
    )


def ring_data(tiles: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(tiles)
    q, k = rng.integers(-128, 128, (64, 64)).astype(np.int8), rng.integers(-128, 128, (tiles, 64, 64)).astype(np.int8)
    swizzled = np.arange(4096) ^ (np.arange(4096) >> 7 & 3) << 4
    stored = np.zeros((tiles, 4096), np.int8)
    stored[:, swizzled] = k.reshape(tiles, -1)
    return q, stored, q.astype(int) @ k.astype(int).sum(axis=0).T


TMA = (
    PRELUDE
    + """
extern "C" __global__ void small(const __grid_constant__ Map map, int x, int y, int z, int w, u32 bytes, u8* out) {
    __shared__ __align__(1024) u8 box[SIZE];
    __shared__ __align__(8) u64 barrier;
    if (threadIdx.x == 0) {
        init(at(&barrier), 1);
        init_done();
        expect(at(&barrier), bytes);
        asm volatile("cp.async.bulk.tensor.RANKd.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {COORDINATES}], [%2];"
                     :: "r"(at(box)), "l"((u64)&map), "r"(at(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
    }
    __syncthreads();
    wait(at(&barrier), 0);
    for (u32 i = threadIdx.x; i < bytes; i += 128) out[i] = box[i];
}
"""
)

NAMED = """
extern "C" __global__ void small(int* out) {
    __shared__ int x[64];
    int t = threadIdx.x;
    if (t < 64) {
        x[t] = t;
        asm volatile("bar.arrive 1, 128;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 128;" ::: "memory");
        out[t - 64] = x[127 - t];
    }
}
"""

CP_ASYNC = """
typedef unsigned int u32; typedef unsigned long long u64;
extern "C" __global__ void small(const int* in, int* out) {
    __shared__ __align__(16) int x[512];
    __shared__ u64 barrier;
    u32 t = threadIdx.x, b = (u32)__cvta_generic_to_shared(&barrier);
    if (t == 0) asm volatile("mbarrier.init.shared.b64 [%0], 128;" :: "r"(b) : "memory");
    __syncthreads();
    u32 to = (u32)__cvta_generic_to_shared(x + 4 * t);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(in + 4 * t) : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(b) : "memory");
    asm volatile("{.reg .pred p; again: mbarrier.test_wait.parity.shared.b64 p, [%0], 0; @!p bra again;}" ::"r"(b));
    out[t] = x[511 - 4 * t];
}
"""
