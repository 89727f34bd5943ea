"""GPUs as their makers describe them: what a multiprocessor holds and does, from ``chips.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from cupy_intfa.device import DeviceInfo

_REGISTERS = 65536  # of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that each block costs from compute capability 8.0 on
_NUMBERS = (
    *("multiprocessors", "clock_ghz", "shared_per_block", "shared_per_multiprocessor", "threads"),
    *("exponentials", "tops"),
)


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A GPU as its maker describes it.

    Parameters
    ----------
    arch, chip : str
        Architecture and a common card of it.
    capability : tuple of int
        Compute capability.
    multiprocessors, clock_ghz : int, float
        How many, and their boost clock.
    shared_per_block, shared_per_multiprocessor : int
        KB of shared memory.
    threads : int
        Of a multiprocessor.
    exponentials : int
        Results of the special function unit per clock and multiprocessor.
    tops : mapping of str to float
        10¹² operations per second by instruction; empty where nobody publishes them.
    checked : mapping of str to str
        By field the text that it was compared with, a key of ``texts`` in ``chips.json``; a field that is not named
        was found in none.
    note : str
        What is derived, and from what.
    """

    arch: str
    chip: str
    capability: tuple[int, int]
    multiprocessors: int
    clock_ghz: float
    shared_per_block: int
    shared_per_multiprocessor: int
    threads: int
    exponentials: int
    tops: Mapping[str, float]
    checked: Mapping[str, str]
    note: str

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Fields that stand in no text that was found."""
        return tuple(name for name in _NUMBERS if name not in self.checked)

    @property
    def device(self) -> DeviceInfo:
        """What a machine with one would report."""
        return DeviceInfo(
            name=self.chip,
            ordinal=0,
            capability=self.capability,
            multiprocessors=self.multiprocessors,
            shared_per_block=1024 * self.shared_per_block,
        )

    def blocks(self, threads: int, registers: int, shared_bytes: int) -> int:
        """Count the blocks of a kernel that a multiprocessor holds at once.

        Parameters
        ----------
        threads : int
            Of a block.
        registers : int
            Of a thread; handed out to warps in units of 8 for each thread.
        shared_bytes : int
            Of a block.

        Returns
        -------
        int
            The least of what registers, shared memory and threads allow.
        """
        shared = shared_bytes + (_RESERVED if self.capability >= (8, 0) else 0)
        return min(
            _REGISTERS // (threads * -(-registers // 8) * 8),
            1024 * self.shared_per_multiprocessor // shared,
            self.threads // threads,
        )


@cache
def read_chips_file() -> dict[str, Any]:
    """Read ``chips.json``.

    Returns
    -------
    dict
        Its content.
    """
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath("chips.json").read_text(encoding="utf-8"))
    return found


def say_what_is_unchecked() -> str:
    """List the numbers that stand in no text that was found.

    Returns
    -------
    str
        By chip.

    Examples
    --------
    >>> say_what_is_unchecked()
    'GeForce GTX 1080 tops, V100 tops, GeForce RTX 4090 exponentials, GeForce RTX 5090 exponentials'
    """
    return ", ".join(f"{chip.chip} {name}" for chip in chips().values() for name in chip.unchecked)


@cache
def chips() -> Mapping[str, Chip]:
    """Read the chips that are described, by architecture.

    Returns
    -------
    mapping of str to Chip
        From the oldest to the newest.

    Examples
    --------
    >>> chips()["sm_90a"].chip, list(chips())[0]
    ('H200', 'sm_61')
    """
    return {one["arch"]: Chip(**{**one, "capability": tuple(one["capability"])}) for one in read_chips_file()["chips"]}
