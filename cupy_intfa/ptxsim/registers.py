"""The register file: an array per register, one element per lane, seen as whatever type an instruction names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.lanes import Active, Array

TYPES = {
    **{f"u{width}": np.dtype(f"u{width // 8}") for width in (8, 16, 32, 64)},
    **{f"b{width}": np.dtype(f"u{width // 8}") for width in (8, 16, 32, 64)},
    **{f"s{width}": np.dtype(f"i{width // 8}") for width in (8, 16, 32, 64)},
    **{f"f{width}": np.dtype(f"f{width // 8}") for width in (16, 32, 64)},
    "f16x2": np.dtype(np.uint32),
    "bf16": np.dtype(np.uint16),
    "bf16x2": np.dtype(np.uint32),
    "pred": np.dtype(np.bool_),
}
"""NumPy's dtype of each PTX type; packed halves and bfloat16 are bits."""

Put = Callable[[Active, Array], None]


class RegisterFile:
    """Registers of all lanes.

    Parameters
    ----------
    widths : mapping of str to int
        Bits of each register, 1 for a predicate.
    count : int
        Lanes.
    special : mapping of str to array (count,)
        Registers that are only read.
    """

    def __init__(self, widths: Mapping[str, int], count: int, special: Mapping[str, Array]) -> None:
        self.count = count
        self._rows = dict(special)
        for width in set(widths.values()):
            names = [name for name, w in widths.items() if w == width]
            block = np.zeros((len(names), count), np.bool_ if width == 1 else f"u{width // 8}")
            self._rows.update(zip(names, block, strict=True))

    def row(self, name: str) -> Array:
        """Give a register's bits."""
        row = self._rows.get(name)
        if row is None:
            raise PtxError(f"register {name} is not modelled or not declared")
        return row

    def view(self, name: str, dtype: np.dtype[np.generic]) -> Array:
        """See a register as a type that is as wide or narrower: then its low bytes."""
        row = self.row(name)
        if row.dtype == dtype:
            return row
        if row.dtype.kind == "b" or dtype.kind == "b" or row.itemsize < dtype.itemsize:
            raise PtxError(f"register {name} of {8 * row.itemsize} bits is used as {dtype}")
        if row.itemsize == dtype.itemsize:
            return row.view(dtype)
        return row.view(dtype).reshape(self.count, -1)[:, 0]

    def _target(self, name: str, dtype: np.dtype[np.generic]) -> Array:
        """See a register so that a value of a type can be assigned: extended where the register is wider."""
        row = self.row(name)
        if row.itemsize <= dtype.itemsize or row.dtype == dtype:
            return self.view(name, dtype)
        return row.view(f"{'i' if dtype.kind == 'i' else 'u'}{row.itemsize}")

    def put_all(self, name: str, dtype: np.dtype[np.generic]) -> Put:
        """Make what writes values of all lanes, where they are active, to a register."""
        if name == "_":
            return lambda active, values: None
        row = self._target(name, dtype)

        def put(active: Active, values: Array) -> None:
            """Write where lanes are active."""
            if active.full:
                row[...] = values
            else:
                np.copyto(row, values, where=active.mask)

        return put

    def put_some(self, name: str, dtype: np.dtype[np.generic]) -> Put:
        """Make what writes values of the active lanes alone to a register."""
        if name == "_":
            return lambda active, values: None
        row = self._target(name, dtype)

        def put(active: Active, values: Array) -> None:
            """Write."""
            row[active.lanes] = values

        return put
