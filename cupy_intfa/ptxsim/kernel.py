"""Launches: a kernel's PTX, its arguments, the blocks of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Array, Geometry
from cupy_intfa.ptxsim.layout import lay_out
from cupy_intfa.ptxsim.memory import GlobalMemory
from cupy_intfa.ptxsim.options import PLAIN, Options
from cupy_intfa.ptxsim.parse import Entry, parse
from cupy_intfa.ptxsim.trace import Trace, merge

_LANES = 2048  # that run together: more blocks at once save Python's time, until the arrays leave the cache


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def pack_arguments(entry: Entry, arguments: Sequence[Any]) -> Array:
    """Lay arguments out as a kernel's parameters.

    Parameters
    ----------
    entry : Entry
        The kernel.
    arguments : sequence
        NumPy scalars of the parameters' sizes, structures among them, or bytes; ints for addresses.

    Returns
    -------
    array of uint8
        The parameters.

    Raises
    ------
    PtxError
        Where number or sizes are others.
    """
    if len(arguments) != len(entry.parameters):
        raise PtxError(f"{entry.name} takes {len(entry.parameters)} arguments, got {len(arguments)}")
    offsets, end = lay_out(entry.parameters)
    packed = np.zeros(end, np.uint8)
    for parameter, argument in zip(entry.parameters, arguments, strict=True):
        if isinstance(argument, int):
            content = argument.to_bytes(8, "little", signed=argument < 0)[: parameter.size]
        else:
            content = bytes(argument) if isinstance(argument, bytes) else np.asarray(argument).tobytes()
        if len(content) != parameter.size:
            raise PtxError(f"{parameter.name} has {parameter.size} bytes, the argument {len(content)}")
        packed[offsets[parameter.name] : offsets[parameter.name] + parameter.size] = np.frombuffer(content, np.uint8)
    return packed


def launch(
    ptx: str,
    name: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    arguments: Sequence[Any],
    memory: GlobalMemory,
    *,
    shared_bytes: int = 0,
    options: Options = PLAIN,
) -> Trace:
    """Run a kernel.

    Parameters
    ----------
    ptx : str
        The text of its module.
    name : str
        Its entry point.
    grid, block : int or sequence of int
        Blocks, and threads of each.
    arguments : sequence
        As `pack_arguments` takes them; addresses of arrays in ``memory``.
    memory : GlobalMemory
        Read and written.
    shared_bytes : int
        Dynamic shared memory of a block.
    options : Options
        How to run.

    Returns
    -------
    Trace
        What happened.

    Raises
    ------
    SimulationError
        For what a kernel must not do; the text says where.
    PtxError
        For PTX that is not modelled.
    """
    from cupy_intfa.ptxsim.machine import Machine  # and all instructions: 48 of the 61 ms that importing ptxsim took

    entry = parse(ptx, name)
    params = pack_arguments(entry, arguments)
    grid3, block3 = _three(grid), _three(block)
    count, threads = int(np.prod(grid3)), int(np.prod(block3))
    together = max(1, _LANES // threads)
    traces = []
    for first in range(0, count, together):
        geometry = Geometry(grid3, block3, first, min(together, count - first))
        traces.append(Machine(entry, geometry, memory, params, shared_bytes, options).run())
    return merge(traces)
