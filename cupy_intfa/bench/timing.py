"""How time is taken: contenders in turn, cold inputs, medians."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

Call = Callable[[], Any]
Name = TypeVar("Name", bound=Hashable)

# Written before each timed call. It empties the L2 cache, and takes the GPU 0.3 ms on an H200: meanwhile the host
# queues the launches of the call, so that slow host code (0.25 ms in one rival) does not pass for a slow kernel.
FILL_BYTES = 1 << 30
HOST_CALLS = 50  # between two synchronisations; the launches of 50 calls fit the driver's queue of 1024


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a call took.

    Parameters
    ----------
    median_ms, min_ms, q1_ms, q3_ms : float
        Median, minimum and quartiles over the rounds, in milliseconds.
    rounds : int
        How many.
    """

    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many rounds are timed.

    Parameters
    ----------
    seconds : float
        What the rounds of one case may take together.
    least, most : int
        Bounds of the number of rounds, whatever the time.
    rounds : int or None
        The number itself.

    Raises
    ------
    ValueError
        For a number of rounds below 1, or a time that is not above 0.

    Examples
    --------
    >>> Budget(seconds=2.0).rounds_for(round_ms=50.0), Budget(rounds=7).rounds_for(round_ms=50.0)
    (40, 7)
    """

    seconds: float = 3.0
    least: int = 7
    most: int = 100
    rounds: int | None = None

    def __post_init__(self) -> None:
        """Refuse to time nothing."""
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: expected at least 1")
        if not self.seconds > 0.0:
            raise ValueError(f"seconds={self.seconds}: expected a time above 0")

    def rounds_for(self, round_ms: float) -> int:
        """Give the number of rounds, from the time of one."""
        if self.rounds is not None:
            return self.rounds
        return min(max(int(1e3 * self.seconds / max(round_ms, 1e-6)), self.least), self.most)


class Timer(Protocol):
    """Runs a call and tells how long it took."""

    def __call__(self, call: Call) -> float:
        """Give milliseconds."""


def summarise(samples: Sequence[float]) -> Timing:
    """Describe times by median and quartiles, which one disturbed round does not move.

    Parameters
    ----------
    samples : sequence of float
        Milliseconds, at least one.

    Returns
    -------
    Timing
        The summary.

    Examples
    --------
    >>> summarise([4.0, 1.0, 2.0, 3.0, 100.0]).median_ms
    3.0
    """
    low, q1, median, q3 = (float(x) for x in np.percentile(samples, (0, 25, 50, 75)))
    return Timing(median_ms=median, min_ms=low, q1_ms=q1, q3_ms=q3, rounds=len(samples))


def interleave(calls: Mapping[Name, Sequence[Call]], timer: Timer, budget: Budget) -> dict[Name, Timing]:
    """Time all contenders in turn, once in each round: what drifts, drifts for all of them.

    Parameters
    ----------
    calls : mapping of name to sequence of callable
        One callable for each set of inputs; round r uses set r modulo their number. Warmed up.
    timer : Timer
        Takes the time of one call.
    budget : Budget
        How many rounds.

    Returns
    -------
    dict of name to Timing
        In the order of ``calls``.

    Notes
    -----
    The order changes from round to round, so that nobody always follows the same neighbour, whose heat lowers the
    clock. The first round is not counted: it tells how many rounds the budget allows.
    """
    round_ms = sum(timer(sets[0]) for sets in calls.values())
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(budget.rounds_for(round_ms)):
        random.Random(index).shuffle(names)
        for name in names:
            sets = calls[name]
            samples[name].append(timer(sets[index % len(sets)]))
    return {name: summarise(times) for name, times in samples.items()}


class EventTimer:
    """Times the GPU's share of a call, by events around it, with a cold L2 cache."""

    def __init__(self) -> None:
        import cupy

        self._cuda = cupy.cuda
        self._fill = cupy.empty(FILL_BYTES, np.uint8)
        self._start, self._stop = cupy.cuda.Event(), cupy.cuda.Event()

    def __call__(self, call: Call) -> float:
        """Give the milliseconds between the events on the current stream."""
        self._fill.fill(0)
        self._start.record()
        call()
        self._stop.record()
        self._stop.synchronize()
        return float(self._cuda.get_elapsed_time(self._start, self._stop))


def host_timer(call: Call) -> float:
    """Give the wall milliseconds that the host spends in one of `HOST_CALLS` calls, not waiting for the GPU."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()
    start = time.perf_counter()
    for _ in range(HOST_CALLS):
        call()
    seconds = time.perf_counter() - start
    cupy.cuda.runtime.deviceSynchronize()
    return 1e3 * seconds / HOST_CALLS
