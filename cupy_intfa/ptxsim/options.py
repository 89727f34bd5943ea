"""How to run a kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to run.

    Parameters
    ----------
    seed : int or None
        Of the order of warps; None runs all in step.
    detailed : bool
        Whether the trace has bank conflicts and fragments.
    """

    seed: int | None = None
    detailed: bool = False


PLAIN = Options()
