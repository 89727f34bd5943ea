"""A GPU that is not there: its record, its memory, and kernels that are loaded and launched as CuPy's are."""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cupy_intfa.device import DeviceInfo
from cupy_intfa.kernels import architecture, compile_options, kernels_dir, source_text
from cupy_intfa.ptxsim import PLAIN, GlobalMemory, Options, Trace
from cupy_intfa.ptxsim import launch as launch_ptx
from cupy_intfa.ptxsim.compiler import compile_ptx
from cupy_intfa.ptxsim.tensor_map import TensorMap
from cupy_intfa.quantize.arithmetic import Array

# Multiprocessors, and KB of shared memory that a block may ask for (CUDA C++ Programming Guide, compute capabilities).
_DEVICES = {
    (7, 5): (40, 64),
    (8, 0): (108, 163),
    (8, 6): (84, 99),
    (8, 9): (128, 99),
    (9, 0): (132, 227),
    (10, 0): (148, 227),
    (12, 0): (170, 99),
}
ARCHITECTURES = tuple(f"sm_{major}{minor}{'a' * (major == 9)}" for major, minor in _DEVICES)
"""What can be simulated."""
DEFAULT_ARCH = "sm_90a"


def simulated_device(arch: str = DEFAULT_ARCH) -> DeviceInfo:
    """Make up a GPU.

    Parameters
    ----------
    arch : str
        One of `ARCHITECTURES`; ``sm_90`` is ``sm_90a``.

    Returns
    -------
    DeviceInfo
        What a machine with one would report.

    Raises
    ------
    ValueError
        For another architecture.

    Examples
    --------
    >>> simulated_device("sm_80").shared_per_block
    166912
    """
    found = next((cc for cc in _DEVICES if arch.removesuffix("a") == f"sm_{cc[0]}{cc[1]}"), None)
    if found is None:
        raise ValueError(f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    multiprocessors, kilobytes = _DEVICES[found]
    return DeviceInfo(
        name=f"simulated {arch}",
        ordinal=0,
        capability=found,
        multiprocessors=multiprocessors,
        shared_per_block=1024 * kilobytes,
    )


@dataclass(frozen=True)
class Pointer:
    """The address of a device array, where CuPy has it."""

    ptr: int


@dataclass(frozen=True)
class DeviceArray:
    """What launches ask of a device array: where it is and how it lies."""

    data: Pointer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


@dataclass(frozen=True)
class Simulator:
    """A GPU that is not there: memory, and kernels that run in it.

    Parameters
    ----------
    device : DeviceInfo
        What the kernels are compiled for.
    options : Options
        Order of warps and detail of the trace.
    folder : pathlib.Path or None
        Of the CUDA sources, if not the package's.
    memory : GlobalMemory
        What the launches work on.
    traces : list of Trace
        Of the launches so far.
    """

    device: DeviceInfo
    options: Options = PLAIN
    folder: Path | None = None
    memory: GlobalMemory = field(default_factory=GlobalMemory)
    traces: list[Trace] = field(default_factory=list)

    def load(
        self, name: str, defines: tuple[str, ...], device: int = 0, shared_bytes: int = 0, entry: str | None = None
    ) -> Any:
        """Make a kernel that is launched like CuPy's.

        Parameters
        ----------
        name, defines, device, shared_bytes, entry
            As of `cupy_intfa.kernels.load_kernel`.

        Returns
        -------
        callable
            ``kernel(grid, block, arguments, shared_mem=0)``.
        """
        ptx = compile_ptx(self._source(name), architecture(name, self.device.arch), self._compile_options(defines))

        def kernel(
            grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], shared_mem: int = 0
        ) -> None:
            """Run the kernel, and keep its trace."""
            self.traces.append(
                launch_ptx(
                    ptx,
                    entry or name,
                    grid,
                    block,
                    arguments,
                    self.memory,
                    shared_bytes=shared_mem,
                    options=self.options,
                )
            )

        return kernel

    def make_map(
        self, address: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> bytes:
        """Describe an array of which boxes are copied, as `cupy_intfa.tensor_map.tensor_map` does to the driver."""
        steps = tuple(stride * itemsize for stride in strides)
        return TensorMap(address, itemsize, shape, steps, box, box[0] * itemsize).encode()

    def _source(self, name: str) -> str:
        if self.folder is None:
            return source_text(name)
        headers = b"".join(path.read_bytes() for path in sorted(self.folder.rglob("*.cuh")))
        text = (self.folder / f"{name}.cu").read_text("utf-8")
        return f'// {hashlib.sha256(headers).hexdigest()}\n#line 1 "{name}.cu"\n{text}'

    def _compile_options(self, defines: tuple[str, ...]) -> tuple[str, ...]:
        options = compile_options(defines)
        if self.folder is None:
            return options
        return tuple(option.replace(str(kernels_dir()), str(self.folder)) for option in options)

    def copy_in(self, name: str, x: Array) -> DeviceArray:
        """Copy a host array to the simulated memory as it lies: kernels only read it, and no byte beside it."""
        low, high = np.lib.array_utils.byte_bounds(x)
        content = np.frombuffer(ctypes.string_at(low, high - low), np.uint8)
        address = self.memory.allocate(name, content, writable=False)
        return DeviceArray(Pointer(address + x.ctypes.data - low), x.shape, x.strides, x.itemsize)

    def allocate(self, name: str, size: int) -> int:
        """Allocate bytes that hold NaN, whatever they are read as."""
        return self.memory.allocate(name, size, fill=0xFF)

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Copy an array to the host."""
        return self.memory.read(address, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
