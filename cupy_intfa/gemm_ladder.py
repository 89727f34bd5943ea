"""The rungs of the INT8 GEMM ladder: what each needs of a GPU, and the tile that it takes for a problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

from cupy_intfa.device import DeviceInfo

UNIT = 16  # bytes of a copy: what rows of depth begin at, and are padded to
FEW_ROWS = 64  # up to which a tile of 128 rows is mostly padding
_IDLE = 0.75  # of the multiprocessors: 2048^3 takes an H200 27 us in a single round of large tiles, 37 us in small ones


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """An int8 operand as the kernels see it: A, or B as its columns.

    Parameters
    ----------
    rows, depth : int
        Its shape.
    row_stride, depth_stride : int
        Bytes between neighbours.
    offset : int
        Of its address behind a multiple of 16.
    """

    rows: int
    depth: int
    row_stride: int
    depth_stride: int
    offset: int = 0

    @property
    def pitch(self) -> int:
        """Bytes of a padded row."""
        return -(-self.depth // UNIT) * UNIT


@dataclass(frozen=True, kw_only=True)
class GemmProblem:
    """A product: its operands and what becomes of the sums.

    Parameters
    ----------
    a : Matrix
        A, (m, k).
    b : Matrix
        The columns of B, (n, k).
    out_dtype : str
        One of `DTYPES`.
    """

    a: Matrix
    b: Matrix
    out_dtype: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Give m, n and k."""
        return self.a.rows, self.b.rows, self.a.depth


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What a block works on.

    Parameters
    ----------
    m, n, k : int
        Rows, columns, and bytes of depth in a stage.
    warps_m, warps_n : int
        Warps that compute.
    ring : int
        Stages in shared memory.
    """

    m: int
    n: int
    k: int = 0
    warps_m: int = 0
    warps_n: int = 0
    ring: int = 0

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage."""
        return (self.m + self.n) * self.k


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A kernel of the ladder that can run a problem.

    Parameters
    ----------
    source : str
        File name of the kernel without ``.cu``, and its entry point.
    tile : Tile
        What a block works on.
    threads, shared_bytes : int
        Of a block.
    reason : str
        Why it runs.
    boxes : bool
        Whether it reads by tensor maps, and runs one block per multiprocessor.
    """

    source: str
    tile: Tile
    threads: int
    shared_bytes: int
    reason: str
    boxes: bool = False


def _naive(problem: GemmProblem, device: DeviceInfo) -> Rung | str:
    return Rung(
        source="gemm_naive",
        tile=Tile(m=16, n=16),
        threads=256,
        shared_bytes=0,
        reason=f"plain CUDA, which {device.arch} runs like any other",
    )


def _ringed(source: str, tile: Tile, device: DeviceInfo, reason: str) -> Rung | str:
    shared = tile.ring * tile.stage_bytes
    if tile.ring < 2 or shared > device.shared_per_block:
        return f"{source} needs two stages of {tile.stage_bytes} bytes, a block has {device.shared_per_block}"
    threads = 32 * tile.warps_m * tile.warps_n
    return Rung(source=source, tile=tile, threads=threads, shared_bytes=shared, reason=reason)


def _tiles(problem: GemmProblem, rows: int, columns: int) -> int:
    return -(-problem.a.rows // rows) * -(-problem.b.rows // columns)


def _deepest(tile: Tile, room: int) -> Tile:
    """Halve the depth of a stage until three of them fit, and take up to ``tile.ring``."""
    while tile.k > 64 and 3 * tile.stage_bytes > room:
        tile = replace(tile, k=tile.k // 2)
    return replace(tile, ring=min(tile.ring, room // tile.stage_bytes))


def _dp4a(problem: GemmProblem, device: DeviceInfo) -> Rung | str:
    if device.capability < (6, 1):
        return f"gemm_dp4a needs compute capability 6.1, {device.name} has {device.arch}"
    columns = 128 if device.capability > (8, 0) else 64  # 128 spill up to 32 bytes a thread on sm_61 to sm_80
    tile = Tile(m=128, n=columns, k=64, warps_m=8, warps_n=1, ring=3)
    return _ringed("gemm_dp4a", tile, device, f"{device.arch} has DP4A")


def _wmma(problem: GemmProblem, device: DeviceInfo) -> Rung | str:
    if device.capability < (7, 2):
        return f"gemm_wmma needs compute capability 7.2, {device.name} has {device.arch}"
    tile = Tile(m=128, n=128, k=64, warps_m=2, warps_n=4, ring=3)
    return _ringed("gemm_wmma", tile, device, f"{device.arch} has tensor cores for int8")


def _sm80(problem: GemmProblem, device: DeviceInfo) -> Rung | str:
    if device.capability < (7, 5):
        return f"gemm_sm80 needs compute capability 7.5, {device.name} has {device.arch}"
    m, room = problem.a.rows, device.shared_per_block
    # Of two tiles that are as fast the one that pads less: it is the one that there are fewer of.
    rows, columns = min((256, 128), (128, 256), key=lambda shape: _tiles(problem, *shape))
    large = _tiles(problem, rows, columns)
    if m <= 16:
        tile = _deepest(Tile(m=16, n=32, k=256, warps_m=1, warps_n=2, ring=8), room // 2)
        reason = "few rows: B streams through many small blocks"
    elif m <= FEW_ROWS:
        tile = _deepest(Tile(m=64, n=64, k=256, warps_m=4, warps_n=2, ring=6), room)
        reason = "few rows: B streams through all the shared memory there is"
    elif large < _IDLE * device.multiprocessors:
        tile = _deepest(Tile(m=64, n=64, k=128, warps_m=2, warps_n=2, ring=4), room)
        reason = f"{large} tiles of {rows} x {columns} would leave multiprocessors idle"
    else:
        tile = Tile(m=rows, n=columns, k=128, warps_m=rows // 64, warps_n=columns // 64, ring=4)
        tile = _deepest(tile, room)
        reason = "a warp's 64 x 64 are as many sums as registers hold"
    return _ringed("gemm_sm80", tile, device, f"{device.arch} has mma.sync; {reason}")


def _sm90(problem: GemmProblem, device: DeviceInfo) -> Rung | str:
    if device.capability != (9, 0):
        return f"gemm_sm90 is for compute capability 9.0 alone, {device.name} has {device.arch}"
    tile = Tile(m=128, n=256, k=128, warps_m=8, warps_n=1, ring=4)
    return Rung(
        source="gemm_sm90",
        tile=tile,
        threads=32 * 8 + 128,
        shared_bytes=tile.ring * (tile.stage_bytes + 16),
        reason=f"{device.arch} has wgmma, the fastest tensor-core instructions for int8 there are",
        boxes=True,
    )


RUNGS: MappingProxyType[str, Callable[[GemmProblem, DeviceInfo], Rung | str]] = MappingProxyType(
    {
        "naive": _naive,
        "dp4a": _dp4a,
        "wmma": _wmma,
        "sm80": _sm80,
        "sm90": _sm90,
    }
)
"""The ladder, from the first rung up."""
