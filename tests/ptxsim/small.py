"""Programs of a few instructions for the simulator: hand-written PTX on arrays, and small CUDA kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim import PLAIN, GlobalMemory, Options, Trace, launch
from cupy_intfa.ptxsim.compiler import compile_ptx

Array = npt.NDArray[Any]
_HEAD = ".version 8.4\n.target sm_90a\n.address_size 64\n"
_BITS = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def run_ptx(
    body: str, *inputs: Array, results: tuple[str, ...], registers: str = "", threads: int = 0, declare: str = ""
) -> tuple[Array, ...]:
    """Run instructions on every element of some arrays, one thread each: ``%i0`` … to ``%o0`` …; ``%t`` is its number.

    Parameters
    ----------
    body : str
        Instructions.
    inputs : array (threads,)
        What ``%i0``, ``%i1`` … hold.
    results : tuple of str
        NumPy dtypes of ``%o0``, ``%o1`` …
    registers, declare : str
        Declarations of more registers, and of variables.
    threads : int
        If no input says how many.
    """
    threads = threads or len(inputs[0])
    memory = GlobalMemory()
    addresses = [memory.allocate(f"input {i}", x, writable=False) for i, x in enumerate(inputs)]
    outputs = [memory.allocate(f"output {i}", threads * np.dtype(kind).itemsize) for i, kind in enumerate(results)]
    sizes = tuple(x.itemsize for x in inputs), tuple(np.dtype(kind).itemsize for kind in results)
    ptx = ptx_text(body, *sizes, registers=registers, declare=declare)
    launch(ptx, "small", 1, threads, (*addresses, *outputs), memory)
    return tuple(
        memory.read(address, threads * np.dtype(kind).itemsize).view(kind)
        for address, kind in zip(outputs, results, strict=True)
    )


def ptx_text(
    body: str, inputs: tuple[int, ...], outputs: tuple[int, ...], *, registers: str = "", declare: str = ""
) -> str:
    """Write the kernel of `run_ptx` for arrays of elements of some bytes."""
    lines = [".reg .b32 %t; .reg .b64 %a, %n; mov.u32 %t, %tid.x; cvt.u64.u32 %n, %t;", registers]
    for i, size in enumerate(inputs):
        lines.append(f".reg .{_BITS[size]} %i{i}; ld.param.u64 %a, [p{i}]; mad.lo.u64 %a, %n, {size}, %a;")
        lines.append(f"ld.global.{'u8' if size == 1 else f'b{8 * size}'} %i{i}, [%a];")
    lines += [f".reg .{_BITS[size]} %o{i};" for i, size in enumerate(outputs)]
    lines.append(body)
    for i, size in enumerate(outputs):
        lines.append(f"ld.param.u64 %a, [p{len(inputs) + i}]; mad.lo.u64 %a, %n, {size}, %a;")
        lines.append(f"st.global.b{8 * size} [%a], %o{i};")
    params = ", ".join(f".param .u64 p{i}" for i in range(len(inputs) + len(outputs)))
    return f"{_HEAD}.visible .entry small({params})\n{{\n{declare}\n" + "\n".join(lines) + "\nret;\n}\n"


def run_cuda(
    source: str,
    *arguments: Any,
    threads: int = 128,
    blocks: int = 1,
    arch: str = "sm_80",
    shared_bytes: int = 0,
    out: tuple[tuple[int, ...], str] = ((128,), "i4"),
    options: Options = PLAIN,
) -> tuple[Array, Trace]:
    """Compile and run the kernel ``small`` of a source; its last parameter is the output, which is returned.

    Arrays among the arguments are copied to the simulated memory; a callable is given the addresses of the arrays
    before it and makes the argument.
    """
    memory = GlobalMemory()
    given: list[Any] = []
    addresses: list[int] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray) and argument.ndim:
            addresses.append(memory.allocate(f"input {len(addresses)}", argument, writable=False))
            given.append(addresses[-1])
        else:
            given.append(argument(*addresses) if callable(argument) else argument)
    shape, kind = out
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    given.append(memory.allocate("out", size))
    ptx = compile_ptx(source, arch, ("--std=c++17",))
    trace = launch(ptx, "small", blocks, threads, given, memory, shared_bytes=shared_bytes, options=options)
    return memory.read(given[-1], size).view(kind).reshape(shape), trace
