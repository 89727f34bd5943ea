"""What a run did: instructions, bytes, bank conflicts, and what the fragments of matrix instructions held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cupy_intfa.ptxsim.fragments import layout_a, layout_b, layout_d
from cupy_intfa.ptxsim.lanes import Array, Geometry, Index
from cupy_intfa.ptxsim.parse import Entry, Line


@dataclass(frozen=True, eq=False)
class Fragment:
    """One matrix instruction, as the first warp or warpgroup that reached it saw it.

    Parameters
    ----------
    opcode : str
        In full.
    line : Line
        Where in the source.
    a, b, c, d : array
        The matrices: d = a b + c. A lane's registers hold the elements that the PTX ISA says.
    """

    opcode: str
    line: Line
    a: Array
    b: Array
    c: Array
    d: Array

    def held(self, thread: int) -> dict[str, Array]:
        """Give the elements that one thread's registers held.

        Parameters
        ----------
        thread : int
            Of the warp, or of the warpgroup.

        Returns
        -------
        dict of str to array
            ``a``, ``b``, ``c`` and ``d``, register by register, as the PTX ISA draws them. Of a warpgroup no ``b``: it
            is in shared memory, as ``a`` may be.

        Raises
        ------
        ValueError
            For ``wmma``, whose registers hold what the hardware likes.
        """
        if self.opcode.startswith("wmma."):
            raise ValueError(f"{self.opcode}: the PTX ISA does not say which elements a thread holds")
        lane, first = thread % 32, 16 * (thread // 32) if len(self.a) == 64 else 0
        of_warp = {"a": self.a, "c": self.c, "d": self.d}
        found = {}
        for name, matrix in of_warp.items():
            part = matrix[first : first + 16]
            if name == "a":
                layout = layout_a(len(part), part.shape[1], part.itemsize)
            else:
                layout = layout_d(len(part), part.shape[1])
            found[name] = part[layout.rows[lane], layout.columns[lane]]
        if len(self.a) < 64:
            layout = layout_b(len(self.b), self.b.itemsize)
            found["b"] = self.b[layout.rows[lane], layout.columns[lane]]
        return found


@dataclass(frozen=True)
class Access:
    """One instruction's accesses of shared memory.

    Parameters
    ----------
    opcode : str
        In full.
    line : Line
        Where in the source.
    warps : int
        How many times a warp ran it.
    wavefronts, ideal : int
        Passes over the banks that it took, and that as many bytes take without a conflict.
    """

    opcode: str
    line: Line
    warps: int
    wavefronts: int
    ideal: int

    @property
    def conflicts(self) -> int:
        """Passes too many."""
        return self.wavefronts - self.ideal


@dataclass(frozen=True, eq=False)
class Trace:
    """What one launch did.

    Parameters
    ----------
    kernel : str
        Entry point.
    blocks, threads : int
        That ran, and of each.
    steps : int
        Instructions that the simulator ran, each for many lanes.
    instructions : mapping of str to int
        Warp instructions by opcode.
    moved : mapping of str to int
        Bytes by way.
    accesses : tuple of Access
        Of shared memory, most conflicts first.
    fragments : tuple of Fragment
        Of matrix instructions, in program order.
    scores : int
        Pairs of a query and a key that it sees, over all heads; 0 for a kernel that has none.
    before : tuple of Trace
        Launches that came before it in the same call.

    Examples
    --------
    >>> from cupy_intfa import simulate
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 16, 32), dtype=np.float32)
    >>> _, trace = simulate(q, k, v, arch="sm_80", recipe="paper")
    >>> trace.kernel, trace.instructions["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] > 0
    ('attention_sm80', True)
    """

    kernel: str
    blocks: int
    threads: int
    steps: int
    instructions: Mapping[str, int]
    moved: Mapping[str, int]
    accesses: tuple[Access, ...] = ()
    fragments: tuple[Fragment, ...] = ()
    scores: int = 0
    before: tuple[Trace, ...] = ()

    @property
    def warp_instructions(self) -> int:
        """All warp instructions."""
        return sum(self.instructions.values())

    def per_score(self) -> dict[str, float]:
        """Give lane instructions by opcode for each score, the most frequent first; empty without scores."""
        if not self.scores:
            return {}
        return {name: 32 * count / self.scores for name, count in Counter(self.instructions).most_common()}

    def to_json(self) -> dict[str, Any]:
        """Give what JSON can hold of it."""
        crowded = [
            {"opcode": a.opcode, "line": str(a.line), "warps": a.warps, "wavefronts": a.wavefronts, "ideal": a.ideal}
            for a in self.accesses
        ]
        names = ("kernel", "blocks", "threads", "steps", "scores")
        counts = {"instructions": dict(self.instructions), "moved": dict(self.moved), "accesses": crowded}
        return {name: getattr(self, name) for name in names} | counts

    def __str__(self) -> str:
        """Print as a table."""
        lines = [
            f"{self.kernel}: {self.blocks} blocks of {self.threads} threads, {self.steps} steps of the simulator, "
            f"{self.warp_instructions} warp instructions"
        ]
        if self.scores:
            lines.append(
                f"  {32 * self.warp_instructions / self.scores:.1f} lane instructions per score, of {self.scores}"
            )
        lines += [f"  {size:>12} bytes {name}" for name, size in sorted(self.moved.items())]
        rates = self.per_score()
        lines += [
            f"  {n:>12} {name}" + (f"  ({rates[name]:.2f} a score)" if rates else "")
            for name, n in Counter(self.instructions).most_common(16)
        ]
        crowded = [access for access in self.accesses if access.conflicts]
        lines += [
            f"  {a.wavefronts / a.warps:>6.1f} wavefronts where {a.ideal / a.warps:.1f} would do: {a.opcode} {a.line}"
            for a in crowded[:8]
        ]
        return "\n".join(lines)


def merge(traces: Sequence[Trace]) -> Trace:
    """Add the traces of parts of one launch up."""
    first = traces[0]
    accesses: dict[tuple[str, Line], Access] = {}
    for one in (access for trace in traces for access in trace.accesses):
        key = one.opcode, one.line
        old = accesses.get(key, Access(*key, 0, 0, 0))
        accesses[key] = Access(*key, old.warps + one.warps, old.wavefronts + one.wavefronts, old.ideal + one.ideal)
    return Trace(
        first.kernel,
        sum(trace.blocks for trace in traces),
        first.threads,
        sum(trace.steps for trace in traces),
        MappingProxyType(dict(sum((Counter(trace.instructions) for trace in traces), Counter()))),
        MappingProxyType(dict(sum((Counter(trace.moved) for trace in traces), Counter()))),
        tuple(sorted(accesses.values(), key=lambda access: -access.conflicts)),
        first.fragments,
    )


def wavefronts(warps: Index, lanes: Index, addresses: Index, size: int) -> tuple[int, int]:
    """Count the passes over 32 banks of 4 bytes that an access takes, and the fewest that it could.

    Parameters
    ----------
    warps, lanes, addresses : array (n,)
        Who reads or writes, and each one's first byte. Lanes that want the same word share it.
    size : int
        Bytes of a lane: of 16 bytes 8 lanes come at a time, of 8 bytes 16, of less all.

    Returns
    -------
    passes : int
        Of all warps together.
    ideal : int
        The fewest.

    Examples
    --------
    >>> lanes = np.arange(32)
    >>> [wavefronts(0 * lanes, lanes, pitch * lanes, 4) for pitch in (0, 4, 8, 128)]
    [(1, 1), (1, 1), (2, 1), (32, 1)]
    """
    together = {16: 8, 8: 16}.get(size, 32)
    turns, turn = np.unique(warps * 4 + lanes % 32 // together, return_inverse=True)
    words = addresses[:, None] // 4 + np.arange(max(size // 4, 1))
    wanted = np.unique(np.repeat(turn, words.shape[1]) << 40 | words.ravel())
    banks = np.bincount((wanted >> 40) * 32 + wanted % 32, minlength=32 * len(turns))
    return int(banks.reshape(-1, 32).max(axis=1).sum()), len(turns)


@dataclass
class Recorder:
    """What a machine tells while it runs; with ``detailed`` also bank conflicts and fragments."""

    geometry: Geometry
    detailed: bool
    counts: npt.NDArray[np.int64]
    bytes_moved: Counter[str] = field(default_factory=Counter)
    _access: dict[int, list[int]] = field(default_factory=dict)
    _fragments: dict[int, tuple[Array, ...]] = field(default_factory=dict)

    def moved(self, way: str, size: int) -> None:
        """Count bytes."""
        self.bytes_moved[way] += size

    def shared(self, pc: int, lanes: Index, addresses: Index, size: int, *, write: bool) -> None:
        """Count an access of shared memory."""
        self.bytes_moved["shared written" if write else "shared read"] += size * len(lanes)
        if not self.detailed:
            return
        found, warps = self._access.setdefault(pc, [0, 0, 0]), self.geometry.warp[lanes]
        passes, ideal = wavefronts(warps, self.geometry.thread[lanes], addresses, size)
        for i, n in enumerate((len(np.unique(warps)), passes, ideal)):
            found[i] += n

    def fragment(self, pc: int, *matrices: Array) -> None:
        """Keep the matrices of the first warp that runs an instruction."""
        if self.detailed and pc not in self._fragments:
            self._fragments[pc] = tuple(matrix[0].copy() for matrix in matrices)

    def finish(self, entry: Entry, steps: int) -> Trace:
        """Make the trace."""
        code, counts = entry.code, Counter[str]()
        for pc, count in enumerate(self.counts.tolist()):
            if count:
                counts[code[pc].opcode] += count
        made: Any = [Access(code[pc].opcode, code[pc].line, *n) for pc, n in self._access.items()]
        return Trace(
            entry.name,
            self.geometry.blocks,
            self.geometry.threads,
            steps,
            MappingProxyType(dict(counts)),
            MappingProxyType(dict(self.bytes_moved)),
            tuple(sorted(made, key=lambda access: -access.conflicts)),
            tuple(Fragment(code[pc].opcode, code[pc].line, *f) for pc, f in sorted(self._fragments.items())),
        )
