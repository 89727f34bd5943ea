"""What an instruction becomes, and what it may ask of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim.errors import Fault, SimulationError
from cupy_intfa.ptxsim.lanes import Active, Array, Geometry, Index
from cupy_intfa.ptxsim.operands import Operand
from cupy_intfa.ptxsim.parse import Entry, Instruction
from cupy_intfa.ptxsim.registers import Put

Run = Callable[[Active], None]


@dataclass(frozen=True)
class Collective:
    """An instruction of whole groups of lanes.

    Parameters
    ----------
    run : callable
        Runs it for complete groups.
    size : int
        32 for a warp, 128 for a warpgroup.
    members : array (lanes,) or None
        Mask of the lanes of each warp that take part, as every lane says it; None for all.
    """

    run: Run
    size: int = 32
    members: Array | None = None


@dataclass(frozen=True)
class Branch:
    """A jump to an instruction."""

    target: int


@dataclass(frozen=True)
class Exit:
    """The end of a thread."""


@dataclass(frozen=True)
class Arrival:
    """An arrival at a barrier of the block.

    Parameters
    ----------
    number : array
        Which of the 16 barriers.
    count : array or None
        Threads that it waits for; None for all of the block.
    waits : bool
        Whether the threads wait until the barrier is complete.
    """

    number: Array
    count: Array | None
    waits: bool


@dataclass(frozen=True)
class Wait:
    """An instruction that lanes may have to repeat.

    Parameters
    ----------
    run : callable
        Runs it; returns which of the active lanes have to wait, or None.
    """

    run: Callable[[Active], npt.NDArray[np.bool_] | None]


Action = Run | Collective | Branch | Exit | Arrival | Wait


class Machine(Protocol):
    """What builders of instructions see of the machine."""

    entry: Entry
    geometry: Geometry
    pc: int
    memory: Any
    shared: Any
    knowledge: Any
    trace: Any

    def read(self, operand: Operand, kind: str) -> Array:
        """See an operand as an array over all lanes, or as a constant."""

    def put_all(self, operand: Operand, kind: str) -> Put:
        """Make what writes values of all lanes."""

    def put_some(self, operand: Operand, kind: str) -> Put:
        """Make what writes values of the active lanes."""

    def address(self, operand: Operand) -> Callable[[Active], Index]:
        """Make what gives the addresses of the active lanes."""

    def part(self, name: str) -> Any:
        """Give the part of the machine with a name: ``copies``, ``mbarriers``, ``wgmma``, ``barriers``."""

    def fail(self, lane: int, check: str, what: str) -> NoReturn:
        """Raise a `SimulationError` for a lane at the current instruction."""

    def blame(self, active: Active, fault: Fault) -> SimulationError:
        """Make a fault of some access the error of its lane."""

    def alive(self, block: int) -> int:
        """Count the threads of a block that have not ended."""

    def wake(self, lanes: Index) -> None:
        """Let lanes run that have waited."""


Builder = Callable[[Machine, Instruction], Action]
