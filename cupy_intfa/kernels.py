"""The CUDA sources: where they are, what identifies them, and how they become kernels."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_log = logging.getLogger("cupy_intfa")

_PACKAGED = Path(__file__).parent / "kernels_cu"
_CHECKOUT = Path(__file__).parents[1] / "kernels_cu"


def kernels_dir() -> Path:
    """
    Return the folder of the CUDA sources.

    A wheel carries it inside the package; a checkout, and so an editable install, has it beside the package.

    Returns
    -------
    pathlib.Path
        An existing folder.

    Raises
    ------
    FileNotFoundError
        If neither folder exists: the installation is incomplete.

    Examples
    --------
    >>> kernels_dir().name
    'kernels_cu'
    """
    for folder in (_PACKAGED, _CHECKOUT):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"expected the CUDA sources in {_PACKAGED} (installed) or {_CHECKOUT} (checkout), found neither: "
        "install cupy-intfa again from its wheel or from a complete checkout"
    )


def source_names() -> tuple[str, ...]:
    """
    List the CUDA sources and headers.

    Returns
    -------
    tuple of str
        Paths relative to `kernels_dir`, with forward slashes, sorted.

    Examples
    --------
    >>> all(name.endswith((".cu", ".cuh")) for name in source_names())
    True
    """
    root = kernels_dir()
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".cu", ".cuh"))
    return tuple(sorted(found))


def source_digest() -> str:
    """
    Return the SHA-256 over the names and the contents of all sources.

    CuPy's disk cache sees a source's own text but not the headers that it includes (CuPy 14.2). A line with
    this digest in front of the source makes an edit of any header a new cache key.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> len(source_digest())
    64
    """
    root, digest = kernels_dir(), hashlib.sha256()
    for name in source_names():
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())  # lengths, so that no text can pass for a border
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Loaded:
    """A kernel that is ready to launch on one device.

    Parameters
    ----------
    function : cupy.cuda.Function
        Called as CuPy's RawKernel, which looks it up anew in each call.
    registers, local_bytes : int
        Registers of a thread, and its bytes of spills and stack.
    """

    function: Any
    registers: int
    local_bytes: int


_loaded: dict[tuple[int, str, tuple[str, ...]], Loaded] = {}
_lock = threading.Lock()
_CACHED_SECONDS = 0.3  # loading a cubin from CuPy's disk cache takes less, compiling a kernel more


def source_text(name: str) -> str:
    """
    Return a source as it is compiled: the digest of all sources, and a #line that makes errors name the file.

    Parameters
    ----------
    name : str
        File name without ``.cu``.

    Returns
    -------
    str
        CUDA C++.

    Examples
    --------
    >>> print(source_text("attention_naive").splitlines()[1])
    #line 1 "attention_naive.cu"
    """
    return f'// {_digest()}\n#line 1 "{name}.cu"\n{(kernels_dir() / f"{name}.cu").read_text("utf-8")}'


@cache
def _digest() -> str:
    return source_digest()


def reload() -> None:
    """
    Forget the loaded kernels: the next call reads the CUDA sources again, and compiles what it needs if any changed.

    For whoever edits a ``.cu`` or ``.cuh`` file in a running process. Calls do not look for changes by themselves:
    asking the file system about every source takes as long as launching a kernel.

    Examples
    --------
    >>> reload()
    """
    with _lock:
        _digest.cache_clear()
        _loaded.clear()


# What uses instructions of one architecture alone.
_OWN_ARCHITECTURE = {"attention_sm90": "sm_90a", "gemm_sm90": "sm_90a"}


def architecture(name: str, device: str) -> str:
    """
    Return the architecture that a kernel is compiled for.

    Parameters
    ----------
    name : str
        File name without ``.cu``.
    device : str
        Architecture of the device, ``sm_90``.

    Returns
    -------
    str
        That of the device, or with an ``a`` where the kernel uses what no later architecture has.

    Examples
    --------
    >>> architecture("attention_sm90", "sm_90"), architecture("attention_sm80", "sm_90")
    ('sm_90a', 'sm_90')
    """
    return _OWN_ARCHITECTURE.get(name, device)


def compile_options(defines: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the compiler options of a kernel, for any NVRTC.

    Parameters
    ----------
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.

    Returns
    -------
    tuple of str
        Options; the architecture is the caller's.
    """
    return ("--std=c++17", f"-I{kernels_dir()}", *(f"-DINTFA_{define}" for define in defines))


def load_kernel(
    name: str, defines: tuple[str, ...], device: int, shared_bytes: int = 0, entry: str | None = None
) -> Any:
    """
    Compile a kernel for the current device, or find it: in this process, else in CuPy's disk cache.

    Parameters
    ----------
    name : str
        File name without ``.cu``.
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    device : int
        The current device.
    shared_bytes : int
        Dynamic shared memory that launches will ask for.
    entry : str, optional
        Entry point, if it is not called as the file.

    Returns
    -------
    cupy.cuda.Function
        Ready to launch.
    """
    loaded = _loaded.get((device, entry or name, defines))
    return (loaded or _load(name, defines, device, shared_bytes, entry)).function


def find_loaded(name: str, defines: tuple[str, ...], device: int) -> Loaded | None:
    """
    Look up what this process has loaded; nothing is compiled.

    Parameters
    ----------
    name : str
        File name without ``.cu``, and entry point.
    defines : tuple of str
        ``NAME=value`` pairs, without the prefix ``INTFA_``.
    device : int
        Where it was loaded.

    Returns
    -------
    Loaded or None
        None before the first call that needs the kernel.
    """
    return _loaded.get((device, name, defines))


def _load(name: str, defines: tuple[str, ...], device: int, shared_bytes: int, entry: str | None) -> Loaded:
    key = (device, entry or name, defines)
    with _lock:
        if key not in _loaded:
            kernel = _compile(name, entry or name, defines, shared_bytes)
            _loaded[key] = Loaded(kernel.kernel, int(kernel.num_regs), int(kernel.local_size_bytes))
        return _loaded[key]


def _compile(name: str, entry: str, defines: tuple[str, ...], shared_bytes: int) -> Any:
    import cupy

    start = time.perf_counter()
    own = _OWN_ARCHITECTURE.get(name)  # else CuPy names the device's
    options = (*compile_options(defines), *((f"-arch={own}",) if own else ()))
    module = cupy.RawModule(code=source_text(name), options=options, backend="nvrtc")
    kernel = module.get_function(entry)
    if shared_bytes > 48 * 1024:  # what a block may have without asking
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    seconds = time.perf_counter() - start
    if seconds > _CACHED_SECONDS:
        # A warning, because Python shows nothing less by default and a first call that hangs for a second wants a word.
        _log.warning("compiled %s (%s) in %.1f s, once: CuPy keeps it on disk", entry, " ".join(defines), seconds)
    return kernel
