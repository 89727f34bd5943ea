"""Arrays and a header in an ``.npz`` file, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from cupy_intfa.quantize.arithmetic import Array

_VERSION = 1


def write_archive(file: str | PathLike[str], kind: str, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write arrays and a header of what JSON can hold.

    Parameters
    ----------
    file : str or path
        Where to; NumPy appends ``.npz`` if it is missing.
    kind : str
        What the file holds; `read_archive` checks it.
    header : mapping
        Of what JSON can hold.
    arrays : mapping of str to array
        NumPy or CuPy, of NumPy's own dtypes.
    """
    text = json.dumps({"kind": kind, "version": _VERSION, **header})
    host: dict[str, Any] = {name: x if isinstance(x, np.ndarray) else x.get() for name, x in arrays.items()}
    np.savez(file, header=np.array(text), **host)


def read_archive(file: str | PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write_archive` wrote.

    Parameters
    ----------
    file : str or path
        An ``.npz`` file.
    kind : str
        What it should hold.

    Returns
    -------
    header : dict
        As it was written.
    arrays : dict of str to ndarray
        By name.

    Raises
    ------
    ValueError
        When the file holds something else, or is of another version.
    """
    foreign = f"{file} holds no {kind}: expected a file written by {kind}.save"
    with Path(file).open("rb") as handle:  # np.load leaves a file open that is no archive
        try:
            stored = np.load(handle, allow_pickle=False)
        except (EOFError, ValueError, BadZipFile) as error:
            raise ValueError(foreign) from error
        if not isinstance(stored, NpzFile) or "header" not in stored:
            raise ValueError(foreign)
        header = json.loads(str(stored["header"]))
        if header.get("kind") != kind:
            raise ValueError(foreign)
        if header["version"] != _VERSION:
            raise ValueError(f"{file} has version {header['version']}: expected {_VERSION}")
        return header, {name: stored[name] for name in stored.files if name != "header"}
