"""Who has ended, who waits where, and whether the lanes of a collective are all there."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from cupy_intfa.ptxsim.errors import SimulationError
from cupy_intfa.ptxsim.lanes import Active, Array, Geometry, Index
from cupy_intfa.ptxsim.parse import Instruction

RUN, DONE, COLLECTIVE, BARRIER, MBARRIER = range(5)
_WAITS = {COLLECTIVE: "the other lanes", BARRIER: "a barrier", MBARRIER: "an mbarrier"}


class Convergence:
    """The state of the lanes of the blocks that run together.

    Parameters
    ----------
    geometry : Geometry
        The blocks.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.status = np.zeros(geometry.count, np.int8)
        self.pcs = np.zeros(geometry.count, np.int64)
        self._alive = np.bincount(geometry.warp, minlength=geometry.blocks * geometry.warps)

    def alive(self, block: int) -> int:
        """Count the threads of a block that have not ended."""
        warps = self._geometry.warps
        return int(self._alive[block * warps : (block + 1) * warps].sum())

    def end(self, lanes: Index) -> None:
        """End threads."""
        self.status[lanes] = DONE
        np.subtract.at(self._alive, self._geometry.warp[lanes], 1)

    def complete(self, part: Active, size: int, members: Array | None) -> Active | None:
        """Choose the lanes of a collective whose groups are all there.

        Parameters
        ----------
        part : Active
            Lanes at the same instruction.
        size : int
            32 for warps, 128 for warpgroups.
        members : array (lanes,) or None
            Mask of the lanes of its warp that each lane asks for, in place of all that have not ended.

        Returns
        -------
        Active or None
            ``part`` itself if that is all of them; None if there is no whole group.
        """
        g = self._geometry
        if not len(part.lanes):
            return None
        if members is not None:
            good = self._members_there(part, members)
        else:
            group = g.warp if size == 32 else g.slot * -(-g.threads // size) + g.thread // size
            alive = np.bincount(group, weights=self.status != DONE)
            here, counts = np.unique(group[part.lanes], return_counts=True)
            whole = counts == alive[here]
            if whole.all():
                return part
            good = np.isin(group[part.lanes], here[whole])
        if good.all():
            return part
        return Active(part.lanes[good], g.count) if good.any() else None

    def _members_there(self, part: Active, members: Array) -> Array:
        g = self._geometry
        present = np.zeros(g.blocks * g.warps, np.uint32)
        lane = (g.thread[part.lanes] % 32).astype(np.uint32)
        np.bitwise_or.at(present, g.warp[part.lanes], np.uint32(1) << lane)
        mask = members[part.lanes]
        inside = (mask >> lane & 1).astype(np.bool_)
        there: Array = inside & ((mask & ~present[g.warp[part.lanes]]) == 0)
        return there

    def stuck(self, code: tuple[Instruction, ...], more: str) -> NoReturn:
        """Raise for the first block where nobody can go on, and say who waits where."""
        g, status = self._geometry, self.status
        block = int(g.slot[np.flatnonzero(status > DONE)[0]])
        lines = []
        for pc, state in sorted({*zip(self.pcs.tolist(), status.tolist(), strict=True)}):
            lanes = np.flatnonzero((self.pcs == pc) & (status == state) & (g.slot == block))
            if state > DONE and len(lanes):
                ins = code[pc - 1 if state == BARRIER else pc]
                lines.append(f"{_threads(g.thread[lanes])} at {ins} ({ins.line}), for {_WAITS[state]}")
        done = np.flatnonzero((status == DONE) & (g.slot == block))
        if len(done):
            lines.append(f"{_threads(g.thread[done])} have ended")
        lines += [more] if more else []
        check = "divergence" if (status == COLLECTIVE).any() else "deadlock"
        raise SimulationError(check, f"nobody can go on in block {block + g.first}", "\n  ".join(lines))

    def blocked(self) -> int:
        """Give the block that `stuck` speaks of."""
        return int(self._geometry.slot[np.flatnonzero(self.status > DONE)[0]])


def _threads(threads: Index) -> str:
    """List threads as ranges."""
    ranges = np.split(threads, np.flatnonzero(np.diff(threads) != 1) + 1)
    texts = [f"{r[0]}–{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges]
    return "threads " + ", ".join(texts[:6]) + (", …" if len(texts) > 6 else "")
