"""What the record's probes ask of CuPy, on the simulator: their side of the GPU runs where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim import GlobalMemory, compile_ptx, launch

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FakePointer:
    """An address to which bytes can be added."""

    ptr: int

    def __add__(self, offset: int) -> FakePointer:
        """Move on."""
        return FakePointer(self.ptr + offset)


@dataclass(frozen=True, eq=False)
class FakeArray:
    """A device array."""

    memory: GlobalMemory
    data: FakePointer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def get(self) -> Array:
        """Copy to the host."""
        content = self.memory.read(self.data.ptr, int(np.prod(self.shape)) * self.dtype.itemsize)
        return content.view(self.dtype).reshape(self.shape)


@dataclass
class FakeKernel:
    """A kernel, and what a loader asks of it."""

    kernel: Callable[..., None]
    num_regs: int = 0
    local_size_bytes: int = 0
    max_dynamic_shared_size_bytes: int = 0

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Launch it."""
        self.kernel(*arguments, **options)


@dataclass(frozen=True)
class FakeModule:
    """A compiled source, or PTX from a file."""

    memory: GlobalMemory
    ptx: str

    def get_function(self, name: str) -> FakeKernel:
        """Find a kernel."""

        def run(grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared_mem: int = 0) -> None:
            """Launch it on addresses, scalars and what is passed by value."""
            given = [x.data.ptr if isinstance(x, FakeArray) else x for x in arguments]
            launch(self.ptx, name, grid, block, given, self.memory, shared_bytes=shared_mem)

        return FakeKernel(run)


@dataclass(frozen=True)
class FakeCupy:
    """The module."""

    memory: GlobalMemory = field(default_factory=GlobalMemory)

    def asarray(self, x: Array) -> FakeArray:
        """Copy to the device."""
        content = np.ascontiguousarray(x)
        return FakeArray(self.memory, FakePointer(self.memory.allocate("an array", content)), x.shape, x.dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> FakeArray:
        """Make an array of zeros."""
        return self.asarray(np.zeros(shape, dtype))

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> FakeArray:
        """Make an array that holds anything."""
        sizes = (shape,) if isinstance(shape, int) else shape
        return self.asarray(np.full((*sizes, np.dtype(dtype).itemsize), 0xFF, np.uint8).view(dtype)[..., 0])

    def ndarray(self, shape: tuple[int, ...], dtype: Any, data: FakePointer, strides: tuple[int, ...]) -> FakeArray:
        """See memory as an array; who is given its address knows its strides."""
        return FakeArray(self.memory, data, shape, np.dtype(dtype))

    def RawModule(
        self, code: str = "", path: str = "", options: tuple[str, ...] = (), backend: str = "nvrtc"
    ) -> FakeModule:
        """Compile a source, or take PTX from a file."""
        if path:
            return FakeModule(self.memory, Path(path).read_text("utf-8"))
        arch = next((option.removeprefix("-arch=") for option in options if option.startswith("-arch=")), "sm_90")
        others = tuple(option for option in options if not option.startswith("-arch="))
        return FakeModule(self.memory, compile_ptx(code, arch, others))
