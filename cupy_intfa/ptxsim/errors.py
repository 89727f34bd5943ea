"""What the simulator refuses, and what it finds."""

from __future__ import annotations


class PtxError(Exception):
    """The PTX has something that the simulator does not model; the text names it."""


class SimulationError(Exception):
    """A kernel has done what it must not do.

    Parameters
    ----------
    check : str
        Which check found it: ``bounds``, ``alignment``, ``uninitialised``, ``race``, ``divergence``, ``deadlock``,
        ``copy``, ``wgmma``, ``proxy``, ``mbarrier``, ``barrier``, ``registers``.
    what : str
        What happened.
    where : str
        Block, thread, instruction and line of the source, where one thread is to blame.

    Examples
    --------
    >>> print(SimulationError("bounds", "read of 4 bytes at byte 64 of q, which has 64", "block 0, thread 3"))
    bounds: read of 4 bytes at byte 64 of q, which has 64
      block 0, thread 3
    """

    def __init__(self, check: str, what: str, where: str = "") -> None:
        super().__init__(f"{check}: {what}" + (f"\n  {where}" if where else ""))
        self.check = check
        self.what = what
        self.where = where


class Fault(Exception):
    """What an access of many lanes runs into; who runs the instruction turns it into a `SimulationError`.

    Parameters
    ----------
    index : int
        Which of the accesses.
    check, what : str
        As of `SimulationError`.
    pc : int
        The other instruction, where two are to blame; else negative.
    """

    def __init__(self, index: int, check: str, what: str, pc: int = -1) -> None:
        super().__init__(what)
        self.index = index
        self.check = check
        self.what = what
        self.pc = pc
