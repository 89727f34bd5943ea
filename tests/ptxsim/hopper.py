"""CUDA of small Hopper kernels: one wgmma from plainly written tiles, and a ring of tiles brought by copies."""

from __future__ import annotations

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
