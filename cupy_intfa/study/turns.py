"""The main loop of a kernel in its machine code: the instructions that one turn of it cannot do without.

Counting a listing would count what is there for a few tiles only: masks, rescaling, the first tile and the last. The
turn counted here is the way through the loop that passes all of its matrix instructions and fewest others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cupy_intfa.study.opcodes import matrix_unit

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Za-z0-9_.]*)(?P<rest>.*)")
_LABEL = re.compile(r"^(\.L_x_\w+):")
_TARGET = re.compile(r"`\((\.L_x_\w+)\)")
_JUMPS = ("BRA", "EXIT", "RET")
_MANY = 1e6  # instructions: no loop has as many, so that one matrix instruction more decides


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other.

    Parameters
    ----------
    opcodes : tuple of str
        In full.
    after : tuple of int
        The blocks that may come next.
    """

    opcodes: tuple[str, ...]
    after: tuple[int, ...]

    @property
    def matrices(self) -> int:
        """How many matrix instructions there are."""
        return sum(matrix_unit(opcode) is not None for opcode in self.opcodes)


def read_blocks(listing: str) -> list[Block]:
    """Cut a listing into blocks.

    Parameters
    ----------
    listing : str
        As nvdisasm writes it.

    Returns
    -------
    list of Block
        In the order of the listing.
    """
    lines: list[re.Match[str]] = []
    labels: dict[str, int] = {}
    for text in listing.splitlines():
        if label := _LABEL.match(text):
            labels[label[1]] = len(lines)
        elif line := _LINE.match(text):
            lines.append(line)
    starts = {0, *labels.values(), *(i + 1 for i, line in enumerate(lines) if line["opcode"].startswith(_JUMPS))}
    order = sorted(starts - {len(lines)})
    number = {start: i for i, start in enumerate(order)}
    return [
        Block(
            tuple(line["opcode"] for line in lines[start:end]),
            tuple(number[place] for place in _places_after(lines[end - 1], end, labels) if place in number),
        )
        for start, end in zip(order, [*order[1:], len(lines)], strict=True)
    ]


def _places_after(line: re.Match[str], following: int, labels: Mapping[str, int]) -> list[int]:
    """Give the lines that may run after one; a BSYNC stands before the place where its lanes meet."""
    opcode, guarded = line["opcode"], bool(line["guard"])
    if opcode.startswith(("EXIT", "RET")):
        return [following] if guarded else []
    target = _TARGET.search(line["rest"])
    if not opcode.startswith("BRA") or target is None:
        return [following]
    # A predicate or a register before the label is a condition as well.
    conditional = guarded or bool(line["rest"][: target.start()].strip()) or "." in opcode
    return [labels[target[1]], *([following] if conditional else [])]


def main_loop(blocks: Sequence[Block]) -> tuple[int, list[int]]:
    """Find the innermost loop with matrix instructions: of several the one with most.

    Parameters
    ----------
    blocks : sequence of Block
        Of a kernel.

    Returns
    -------
    head : int
        The block where a turn begins.
    members : list of int
        All its blocks.

    Raises
    ------
    ValueError
        If no loop has any.
    """
    from scipy.sparse.csgraph import connected_components

    members, head = list(range(len(blocks))), -1
    while True:
        inside = [i for i in members if i != head]
        _, labels = connected_components(_graph(blocks, inside), connection="strong")
        loops = [
            [i for i in inside if labels[i] == label]
            for label, size in Counter(labels[inside].tolist()).items()
            if size > 1 or any(i in blocks[i].after for i in inside if labels[i] == label)
        ]
        best = max(loops, key=lambda loop: sum(blocks[i].matrices for i in loop), default=[])
        if not any(blocks[i].matrices for i in best):
            if head < 0:
                raise ValueError("no loop has matrix instructions: expected the machine code of an attention kernel")
            return head, members
        entered = {j for i, block in enumerate(blocks) if i not in best for j in block.after}
        members, head = best, min(entered.intersection(best), default=best[0])


def shortest_turn(blocks: Sequence[Block]) -> Counter[str]:
    """Count the instructions of a turn of the main loop: all matrix instructions, and as few others as that takes.

    Parameters
    ----------
    blocks : sequence of Block
        Of a kernel.

    Returns
    -------
    Counter of str
        By opcode, for one warp.
    """
    from scipy.sparse.csgraph import bellman_ford

    head, members = main_loop(blocks)
    before = bellman_ford(_graph(blocks, members, head), indices=head, return_predecessors=True)
    lengths, came_from = (found.ravel() for found in before)
    place = min((i for i in members if head in blocks[i].after), key=lambda i: float(lengths[i]))
    counts: Counter[str] = Counter()
    while place != head:
        counts.update(blocks[place].opcodes)
        place = int(came_from[place])
    return counts + Counter(blocks[head].opcodes)


def _graph(blocks: Sequence[Block], members: Iterable[int], head: int = -1) -> csr_array:
    """Make the graph of some blocks without the jumps to the head; an edge is as long as the block that it leads to."""
    from scipy.sparse import csr_array

    inside = set(members)
    edges = [(i, j) for i in inside for j in dict.fromkeys(blocks[i].after) if j in inside and j != head]
    lengths = [len(blocks[j].opcodes) - _MANY * blocks[j].matrices for _, j in edges]
    ends = np.array(edges, np.int64).reshape(-1, 2).T
    return csr_array((np.array(lengths), (ends[0], ends[1])), shape=(len(blocks), len(blocks)))
