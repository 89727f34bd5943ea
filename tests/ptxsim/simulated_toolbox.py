"""Run the shipped GEMM and format kernels in the simulator, and hold them against NumPy: no bit may differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from kernels.test_formats import hard_values
from kernels.test_gemm import drawn, laid_out, planned, simulate, with_tile
from strategies import Array, dtype_of

from cupy_intfa.gemm import int8_matmul
from cupy_intfa.gemm_ladder import Tile
from cupy_intfa.gemm_plan import GemmPlan
from cupy_intfa.launch import by_value
from cupy_intfa.quantize.bits import ENCODINGS, pack_codes, unpack_codes
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.quantize.formats_launch import _table
from cupy_intfa.simulator import Simulator, simulated_device

_THREADS = 256
FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Product:
    """A product of a rung of the GEMM ladder; a tile smaller than the plan's makes blocks and rings many and short.

    Without scales and bias the output is int32.
    """

    rung: str
    arch: str
    shape: tuple[int, int, int]
    out: str = "int32"
    tile: Tile | None = None
    grid: int = 0
    layouts: tuple[str, str] = ("row", "column")

    def operands(self) -> tuple[Array, Array]:
        """Draw A and B."""
        a, b = drawn(*self.shape, seed=7)
        return laid_out(a, self.layouts[0]), laid_out(b, self.layouts[1])

    def ends(self) -> dict[str, Array]:
        """Draw scales and bias; some scales make float32 subnormal or infinite on the way."""
        if self.out == "int32":
            return {}
        rng, (m, n, _) = np.random.default_rng(9), self.shape
        return {
            "scale_a": rng.standard_normal(m).astype(np.float32),
            "scale_b": np.float32(10) ** rng.integers(-30, 20, n).astype(np.float32),
            "bias": rng.standard_normal(n).astype(np.float32),
        }

    def plan(self) -> GemmPlan:
        """Plan it."""
        plan = planned(*self.operands(), self.rung, simulated_device(self.arch), self.out)
        plan = plan if self.tile is None else with_tile(plan, self.tile)
        return replace(plan, grid=self.grid or plan.grid)

    def simulated(self, folder: Path | None = None) -> Array:
        """Run the kernels of the plan."""
        return simulate(self.plan(), *self.operands(), self.ends(), folder)

    def check(self, folder: Path | None = None) -> None:
        """Compare with NumPy."""
        wanted = int8_matmul(*self.operands(), **self.ends(), out_dtype=self.out, backend="numpy")
        found = self.simulated(folder)
        np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), wanted.view(f"u{found.itemsize}"))


def run_format(
    simulator: Simulator,
    source: str,
    defines: tuple[str, ...],
    units: int,
    arrays: tuple[Array, ...],
    *rest: Any,
    out: dict[str, int],
) -> list[Array]:
    """Run a format kernel: arrays, outputs of so many bytes, and what comes after them."""
    given = [simulator.copy_in(f"input {i}", x).data.ptr for i, x in enumerate(arrays)]
    made = [simulator.allocate(name, size) for name, size in out.items()]
    kernel = simulator.load(source, defines)
    kernel((-(-units // _THREADS),), (_THREADS,), (*given, *made, *rest))
    return [simulator.memory.read(address, size) for address, size in zip(made, out.values(), strict=True)]


def draw_codes(rows: int, length: int) -> Array:
    """Draw bytes whose lower bits are codes."""
    return np.random.default_rng(length).integers(0, 256, (rows, length)).astype(np.uint8)


def recode(simulator: Simulator, codes: Array, bits: int, encoding: str) -> tuple[Array, Array]:
    """Pack codes and unpack them again."""
    rows, length = codes.shape
    vector, pitch = length % 16 == 0, -(-length * bits // 8)
    defines = (f"BITS={bits}", f"ENCODING={ENCODINGS.index(encoding)}", f"VECTOR={int(vector)}")
    sizes, threads = (np.int64(rows), np.int64(length)), -(-rows * length // 64) if vector else rows * length
    (packed,) = run_format(simulator, "formats_pack", defines, threads, (codes,), *sizes, out={"packed": rows * pitch})
    (back,) = run_format(simulator, "formats_unpack", defines, threads, (packed,), *sizes, out={"codes": rows * length})
    return packed, back


def check_codes(simulator: Simulator, rows: int, length: int, bits: int, encoding: str) -> None:
    """Compare packing and unpacking with NumPy."""
    codes = draw_codes(rows, length)
    packed, back = recode(simulator, codes, bits, encoding)
    wanted = pack_codes(codes, bits, encoding)
    np.testing.assert_array_equal(packed, wanted.ravel())
    np.testing.assert_array_equal(back, unpack_codes(wanted, bits, length, encoding).view(np.uint8).ravel())


def draw_values(count: int, dtype: str) -> Array:
    """Draw floats of all sizes, blocks of zeros, NaN and infinities among them."""
    with np.errstate(over="ignore"):
        return hard_values(count, max(count, 512))[:count].astype(dtype_of(dtype))


def convert(simulator: Simulator, x: Array) -> tuple[Array, Array, Array]:
    """Quantise floats to NF4, and give them back: codes, scales and floats."""
    defines, count = (f"DTYPE={FLOATS.index(x.dtype.name)}",), x.size
    rest = (by_value(_table("nf4")), np.int64(count))
    sizes = {"codes": -(-count // 2), "scale": 4 * -(-count // 64)}
    units = -(-count // (16 if x.itemsize == 4 else 32))
    codes, scale = run_format(simulator, "formats_encode", defines, units, (x,), *rest, out=sizes)
    (back,) = run_format(
        simulator, "formats_decode", defines, -(-count // 16), (codes, scale), *rest, out={"x": x.nbytes}
    )
    return codes, scale.view(np.float32), back.view(x.dtype)


def check_codebook(simulator: Simulator, count: int, dtype: str) -> None:
    """Compare a codebook's quantiser and its way back with NumPy's."""
    x = draw_values(count, dtype)
    codes, scale, back = convert(simulator, x)
    twin = quantize_blockwise(x)
    np.testing.assert_array_equal(codes, twin.values.ravel())
    np.testing.assert_array_equal(scale.view(np.uint32), np.ascontiguousarray(twin.scale).view(np.uint32).ravel())
    np.testing.assert_array_equal(back.astype(np.float64), twin.dequantize(dtype).astype(np.float64))
