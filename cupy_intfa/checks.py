"""What the arrays of a call have to be, beyond the problem: an output that can be filled, values that are finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from cupy_intfa.arrays import Operands, kind_of, take_in
from cupy_intfa.backends import to_bhsd
from cupy_intfa.problem import AttentionProblem
from cupy_intfa.quantize.arithmetic import Array


def check_out(out: Any, problem: AttentionProblem, operands: Operands) -> Array | None:
    """See ``out`` as an array of the working library, in the caller's layout."""
    if out is None:
        return None
    if kind_of(out) != operands.kind:
        raise TypeError(f"out is a {kind_of(out)} array: expected {operands.kind}, like q")
    if operands.kind == "jax":
        raise TypeError("out is a JAX array, which cannot be filled: leave out= away")
    target = take_in(out=out)
    array = target.arrays[0]
    if target.device != operands.device:
        raise ValueError("out is on another device than q: expected the same")
    if tuple(array.shape) != problem.out_shape:
        raise ValueError(f"out has shape {tuple(array.shape)}: expected {problem.out_shape}")
    if array.dtype.name != problem.dtype:
        raise TypeError(f"out has dtype {array.dtype.name}: expected {problem.dtype}")
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise ValueError("out is read-only: expected an array that can be written")
    return array


def refuse_non_finite(operands: Operands, problem: AttentionProblem) -> None:
    """Raise for the first NaN or infinity in q, k and v, as float32."""
    for name, x in zip("qkv", to_host(operands.arrays), strict=True):
        with np.errstate(over="ignore"):
            finite = np.isfinite(to_bhsd(x, problem.layout, problem.batched).astype(np.float32))
        bad = np.argwhere(~finite)
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"{name} holds {len(bad)} values that are not finite in float32, the first at (batch, head, token, "
                f"channel) = {where}: clean the input, or pass check_finite=False to get NaN in the rows they reach"
            )


def to_host(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Copy arrays of a GPU to the host."""
    return tuple(x if isinstance(x, np.ndarray) else x.get() for x in arrays)


def host_target(target: Array | None) -> Array | None:
    """Give an output that is on the host, which a backend of the host fills itself."""
    return target if isinstance(target, np.ndarray) else None
