"""CUDA C++ to PTX: NVRTC, wherever it is installed, without a GPU or a driver."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")


def _files(distribution: str, name: str) -> list[Path]:
    """Find files of a wheel by the beginning of their names; none where it is not installed."""
    from importlib import metadata  # 14 ms of `import cupy_intfa`

    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(path.locate())) for path in files if path.name.startswith(name)]


def _candidates() -> Iterator[Path]:
    """List NVRTC libraries: of the wheels, then of what cuda-pathfinder knows (CuPy's, the toolkit's)."""
    for wheel in _WHEELS:
        yield from (path for path in _files(wheel, "libnvrtc.so") if "alt" not in path.name)
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        return
    try:
        found = load_nvidia_dynamic_lib("nvrtc").abs_path
    except Exception:  # no library, no driver, an unknown platform: the caller tells what to install
        return
    if found:
        yield Path(found)


@functools.cache
def _library() -> tuple[Any, Path]:
    """Load NVRTC; the library and where it is."""
    for path in _candidates():
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins))  # that of 13.0 is not looked for beside libnvrtc
        library = ctypes.CDLL(str(path))
        return library, path
    raise FileNotFoundError(
        "the simulator compiles the kernels with NVRTC, and found none: pip install 'nvidia-cuda-nvrtc==13.0.*' "
        "(90 MB, no GPU needed)"
    )


class CompileError(Exception):
    """NVRTC has refused a source; the text is its log."""


@functools.lru_cache(maxsize=256)
def compile_ptx(source: str, arch: str, options: tuple[str, ...] = ()) -> str:
    """Compile CUDA C++ to PTX with line numbers, and with the option that CuPy adds: ``-ftz=true``.

    Parameters
    ----------
    source : str
        CUDA C++.
    arch : str
        ``sm_90a``.
    options : tuple of str
        More options of NVRTC.

    Returns
    -------
    str
        PTX.

    Raises
    ------
    CompileError
        For source that is wrong.
    FileNotFoundError
        Where NVRTC is not installed; the text says what to install.
    """
    nvrtc, _ = _library()
    every = (f"-arch=compute_{arch.removeprefix('sm_')}", "-ftz=true", "-lineinfo", *options)
    (ptx,) = run_nvrtc(nvrtc, arch, source, every, ("PTX",))
    return ptx.rstrip(b"\0").decode()


def run_nvrtc(
    nvrtc: Any, title: str, source: str, options: tuple[str, ...], results: tuple[str, ...]
) -> tuple[bytes, ...]:
    """Compile CUDA C++ with an NVRTC.

    Parameters
    ----------
    nvrtc : CDLL
        The library.
    title : str
        What an error is to begin with.
    source : str
        CUDA C++.
    options : tuple of str
        All of them.
    results : tuple of str
        ``PTX``, ``CUBIN``, ``ProgramLog``: as in the names of its functions.

    Returns
    -------
    tuple of bytes
        The results; texts with the zero byte that ends them.

    Raises
    ------
    CompileError
        For source that is wrong.
    """
    encoded = [option.encode() for option in options]
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        if status:
            log = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode()
            raise CompileError(f"{title}: NVRTC's error {status}\n{log}")
        return tuple(_read(nvrtc, program, result) for result in results)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(nvrtc: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
