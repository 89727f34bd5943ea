"""Who knows of whose accesses: the order that barriers make, as a table of times.

A block's clock counts its synchronisations. `knows[level, block, thread, agent]` is the last time up to which a thread
knows all accesses of an agent: of another thread, of the copies that one mbarrier waits for, or of the wgmma of a
warpgroup. A barrier gives everyone the largest times of all; an mbarrier takes the times of who arrives, and hands them
to who waits when the phase is over: that is the whole rule, for pipelines of any shape. Level 1 is the same for what
the asynchronous proxy sees: a thread's own accesses enter it by ``fence.proxy.async`` only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Index

Times = npt.NDArray[np.int32]
MORE_AGENTS = 64  # beside the threads


class Knowledge:
    """The table for the blocks that run together.

    Parameters
    ----------
    blocks, threads : int
        Blocks, and threads of each.
    proxies : bool
        Whether the kernel uses the asynchronous proxy, so that level 1 is kept.
    """

    def __init__(self, blocks: int, threads: int, proxies: bool) -> None:
        self.threads = threads
        self.levels = 2 if proxies else 1
        self.time = np.ones(blocks, np.int32)
        self.knows = np.zeros((self.levels, blocks, threads, threads + MORE_AGENTS), np.int32)
        self.names = [f"thread {t} (warp {t // 32})" for t in range(threads)]

    @property
    def agents(self) -> int:
        """Agents that there are."""
        return len(self.names)

    def add_agent(self, name: str) -> int:
        """Add an agent that is no thread; returns its number."""
        if self.agents == self.knows.shape[3]:
            raise PtxError(f"more than {MORE_AGENTS} mbarriers and warpgroups in one block")
        self.names.append(name)
        return self.agents - 1

    def _joined(self, block: int, threads: Index) -> Times:
        times: Times = self.knows[:, block, threads].max(axis=1)
        times[0, threads] = self.time[block]
        return times

    def join(self, block: int, threads: Index) -> None:
        """Let threads wait for each other."""
        self.knows[:, block, threads] = self._joined(block, threads)[:, None]
        self.time[block] += 1

    def join_all(self) -> None:
        """Let all threads of every block wait for each other."""
        times = self.knows.max(axis=2)
        times[0, :, : self.threads] = self.time[:, None]
        self.knows[...] = times[:, :, None]
        self.time += 1

    def join_warps(self) -> None:
        """Let the threads of every warp wait for each other, where all warps are whole."""
        levels, blocks, threads, width = self.knows.shape
        times = self.knows.reshape(levels, blocks, threads // 32, 32, width).max(axis=3)
        own = np.repeat(np.eye(threads // 32, dtype=np.bool_), 32, axis=1)  # (warps, threads)
        part = times[0, :, :, :threads]
        part[...] = np.where(own, self.time[:, None, None], part)
        self.knows[...] = np.repeat(times, 32, axis=2)
        self.time += 1

    def release(self, block: int, threads: Index, into: Times) -> None:
        """Hand what threads know, and what they did, to a synchronisation object."""
        times = self._joined(block, threads)
        np.maximum(into, times, out=into)
        self.time[block] += 1

    def acquire(self, block: int, threads: Index, times: Times) -> None:
        """Let threads know what a synchronisation object was given."""
        self.knows[:, block, threads] = np.maximum(self.knows[:, block, threads], times[:, None])

    def empty(self) -> Times:
        """Make the times of a synchronisation object that nobody has reached."""
        return np.zeros((self.levels, self.knows.shape[3]), np.int32)

    def fence(self, block: int, threads: Index) -> None:
        """Let the asynchronous proxy see what threads know, and what they did."""
        if self.levels > 1:
            known = self.knows[:, block, threads]
            np.maximum(known[1], known[0], out=known[1])
            known[1][np.arange(len(threads)), threads] = self.time[block]
            self.knows[:, block, threads] = known
            self.time[block] += 1
