"""Study: the memory that attention takes beyond its inputs and its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cupy_intfa.attention import attention
from cupy_intfa.backends import numpy_dtype
from cupy_intfa.device import DeviceInfo, gpu_for
from cupy_intfa.plan import make_plan
from cupy_intfa.problem import AttentionProblem, make_problem
from cupy_intfa.recipe import PRESETS, Recipe
from cupy_intfa.simulator import simulated_device
from cupy_intfa.study.study import Pivot, Row, Rows, Study, distinct, one, pick

PLAIN = "plain attention"
DTYPE = "float16"
JUMP = 1.25  # a workspace grows like the keys, unless something else comes in


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is planned, and measured where there is a GPU.

    Parameters
    ----------
    heads, kv_heads, head_dim : int
        Of a batch of one.
    lengths : tuple of int
        Sq = Skv.
    plain_up_to : int
        The longest row on which plain attention is run, not only counted.
    """

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
    plain_up_to: int = 16384


def _measure(settings: Settings, backend: str) -> Iterator[Row]:
    """Plan every preset at every length, and measure it where there is a GPU."""
    gpu = gpu_for(backend)
    device = gpu or simulated_device()
    for keys in settings.lengths:
        q_shape = (1, settings.heads, keys, settings.head_dim)
        kv_shape = (1, settings.kv_heads, keys, settings.head_dim)
        problem = make_problem(q_shape, kv_shape, kv_shape, (DTYPE,) * 3)
        arrays = _arrays(problem) if gpu else None
        names = {"keys": keys, "own_bytes": own_bytes(problem)}
        for name, recipe in PRESETS.items():
            measured = None if arrays is None else _peak(lambda r=recipe, a=arrays: attention(*a, recipe=r))
            yield {"recipe": name, **names, **plan_bytes(problem, recipe, device), "measured_bytes": measured}
        runs = arrays is not None and keys <= settings.plain_up_to
        measured = _peak(lambda a=arrays: _plain(*a)) if runs else None
        planned = {"planned_bytes": plain_bytes(problem), "kernel": None}
        yield {"recipe": PLAIN, **names, **planned, "measured_bytes": measured}


def own_bytes(problem: AttentionProblem) -> int:
    """Count the bytes of inputs and output.

    Parameters
    ----------
    problem : AttentionProblem
        The sizes.

    Returns
    -------
    int
        Of q, k, v and the output in float16.
    """
    rows = 2 * problem.heads * problem.q_len + 2 * problem.kv_heads * problem.kv_len
    return 2 * problem.batch * problem.head_dim * rows


def plan_bytes(problem: AttentionProblem, recipe: Recipe, device: DeviceInfo) -> dict[str, Any]:
    """Read from the plan what a preset takes.

    Parameters
    ----------
    problem : AttentionProblem
        The sizes.
    recipe : Recipe
        The numerics.
    device : DeviceInfo
        The GPU.

    Returns
    -------
    dict
        ``planned_bytes`` of the workspace (codes, scales, scratch), and the ``kernel``; both None if there is none.
    """
    try:
        plan = make_plan(problem, recipe, "cuda", device)
    except NotImplementedError:
        return {"planned_bytes": None, "kernel": None}
    return {"planned_bytes": None if plan.cuda is None else plan.cuda.workspace_bytes, "kernel": plan.kernel}


def plain_bytes(problem: AttentionProblem) -> int:
    """Count what attention takes that writes scores and probabilities to memory in 16 bits.

    Parameters
    ----------
    problem : AttentionProblem
        The sizes.

    Returns
    -------
    int
        2 · 2 · B · Hq · Sq · Skv.

    Examples
    --------
    >>> plain_bytes(make_problem((1, 32, 1024, 128), (1, 8, 1024, 128), (1, 8, 1024, 128), ("float16",) * 3)) >> 20
    128
    """
    return 4 * problem.batch * problem.heads * problem.q_len * problem.kv_len


def _arrays(problem: AttentionProblem) -> tuple[Any, Any, Any]:
    import cupy

    q_shape = (problem.batch, problem.heads, problem.q_len, problem.head_dim)
    kv_shape = (problem.batch, problem.kv_heads, problem.kv_len, problem.head_dim)
    q, k, v = (cupy.ones(shape, numpy_dtype(problem.dtype)) for shape in (q_shape, kv_shape, kv_shape))
    return q, k, v


def _plain(q: Any, k: Any, v: Any) -> Any:
    """Softmax(QKᵀ)V as one writes it down, in place where that is possible."""
    import cupy

    batch, heads, q_len, head_dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, head_dim)
    p = grouped @ k.swapaxes(-1, -2)
    p *= head_dim**-0.5
    p = cupy.exp(p - p.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return (p @ v).reshape(batch, heads, q_len, head_dim)


def _peak(call: Any) -> int:
    """Measure the most that a call holds in a pool of its own, without its output."""
    import cupy

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        out = call()
        # A pool gives nothing back by itself: its size is the peak, up to the blocks that it could not use again.
        return int(pool.total_bytes()) - int(out.nbytes)


def _findings(rows: Rows) -> Iterator[str]:
    """Compare with plain attention and with the inputs themselves."""
    longest = max(distinct(rows, "keys"))
    plain = one(rows, "planned_bytes", recipe=PLAIN, keys=longest)
    own = one(rows, "own_bytes", recipe=PLAIN, keys=longest)
    planned = [row for row in pick(rows, keys=longest) if row["recipe"] != PLAIN and row["planned_bytes"] is not None]
    shares = ", ".join(f"`{row['recipe']}` {row['planned_bytes'] / own:.2f}" for row in planned)
    yield (
        f"{longest} keys: inputs and output take {own / 2**30:.2f} GiB, scores and probabilities of plain attention "
        f"{plain / 2**30:.0f} GiB, {plain / own:.0f} times as much. Workspaces in units of inputs and output: {shares}."
    )
    shorter = sorted(distinct(rows, "keys"))[-2]
    for row in planned:
        grown = row["planned_bytes"] / one(rows, "planned_bytes", recipe=row["recipe"], keys=shorter)
        if grown > JUMP * longest / shorter:
            yield (
                f"`{row['recipe']}` takes {grown:.1f} times as much for {longest} keys as for {shorter}: integer sums "
                "of so many keys are emptied into float32 on the way, which need a place."
            )
    measured = [row for row in rows if row["measured_bytes"] is not None and row["planned_bytes"]]
    if not measured:
        yield "Nothing was measured: there was no GPU. The bytes are those of the plan for one with Hopper's kernels."
    for name in distinct(measured, "recipe"):
        ratios = [row["measured_bytes"] / row["planned_bytes"] for row in pick(measured, recipe=name)]
        yield f"`{name}`: measured {min(ratios):.2f} to {max(ratios):.2f} times what the plan says."


STUDY = Study(
    name="memory",
    question="How much memory does attention take beyond its inputs and its output?",
    setup=(
        "One sequence, 32 heads on 8 KV heads, D 128, float16, as many queries as keys. Planned: the workspace that "
        "the plan asks for, which holds codes, scales and scratch. Measured, on a GPU: the most that a memory pool of "
        "its own holds during a call. Plain attention writes scores and probabilities in 16 bits."
    ),
    limits=(
        "Attention alone: the KV cache of a model that keeps codes instead of 16-bit keys and values is smaller by "
        "half, which these numbers do not show. A workspace can be shared by all layers of a model."
    ),
    sizes={
        "quick": Settings(lengths=(1024, 4096), plain_up_to=1024),
        "small": Settings(),
        "full": Settings(),
    },
    measure=_measure,
    keys=("recipe", "keys"),
    values=("own_bytes", "planned_bytes", "kernel", "measured_bytes"),
    findings=_findings,
    table=Pivot(rows=("recipe",), columns=("keys",), value="planned_bytes"),
)
