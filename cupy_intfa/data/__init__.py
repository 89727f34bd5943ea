"""Real activations that travel with the package, for the demo and for the accuracy tests."""

import os
from dataclasses import dataclass
from importlib import resources
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["Activations", "load_activations", "save_activations"]


@dataclass(frozen=True, eq=False)
class Activations:
    """Queries, keys and values of every layer of a transformer, on real text.

    Attributes
    ----------
    q, k, v : (layers, texts, heads, tokens, head_dim) float16
        What enters each layer's attention, with heads split; not scaled by 1/√head_dim.
    texts : tuple of str
        The names of the texts, in the order of the second axis.
    model : str
        The model's name.
    source : str
        Where the weights come from, exactly enough to find the same ones.
    licence : str
        The SPDX identifier of the weights' licence.

    Raises
    ------
    ValueError
        If the arrays are not float16 of one 5-D shape, or `texts` does not name every text.
    """

    q: NDArray[np.float16]
    k: NDArray[np.float16]
    v: NDArray[np.float16]
    texts: tuple[str, ...]
    model: str
    source: str
    licence: str

    def __post_init__(self) -> None:
        """Check that the fields fit each other."""
        arrays = {"q": self.q, "k": self.k, "v": self.v}
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
        if any(a.dtype != np.float16 or a.ndim != 5 or a.shape != self.q.shape for a in arrays.values()):
            raise ValueError(
                f"expected float16 arrays of one shape (layers, texts, heads, tokens, head_dim), found {found}"
            )
        if len(self.texts) != self.q.shape[1]:
            raise ValueError(f"expected a name for each of the {self.q.shape[1]} texts, found {self.texts}")


def load_activations(path: str | os.PathLike[str] | None = None) -> Activations:
    """Load the packaged activations of all-MiniLM-L6-v2, or others made by ``tools/make_activations.py``.

    Parameters
    ----------
    path : path, optional
        A file written by `save_activations`; the packaged one if left out.

    Returns
    -------
    Activations
        The packaged ones: 6 layers, 1 text, 12 heads, 224 tokens, head dimension 32. The arrays are read-only.

    Raises
    ------
    OSError
        If `path` is not there or is not a zip archive.
    KeyError
        If the archive lacks an array.

    Examples
    --------
    >>> activations = load_activations()
    >>> activations.q.shape
    (6, 1, 12, 224, 32)
    >>> activations.model, activations.licence, activations.texts
    ('all-MiniLM-L6-v2', 'Apache-2.0', ('dialogue',))
    """
    if path is not None:
        with open(path, "rb") as file:
            return _read(file)
    with resources.files(__name__).joinpath("minilm_qkv.npz").open("rb") as packaged:
        return _read(packaged)  # type: ignore[arg-type]  # typed IO[bytes], and is a BinaryIO


def save_activations(path: str | os.PathLike[str], activations: Activations) -> None:
    """Write activations to one compressed ``.npz`` that `load_activations` reads; equal input, equal bytes.

    Parameters
    ----------
    path : path
        The file to write, `.npz` included.
    activations : Activations
        What to write.
    """
    with open(path, "wb") as file:
        np.savez_compressed(
            file,
            q=activations.q,
            k=activations.k,
            v=activations.v,
            texts=np.array(activations.texts),
            model=np.array(activations.model),
            source=np.array(activations.source),
            licence=np.array(activations.licence),
        )


def _read(file: BinaryIO) -> Activations:
    with np.load(file, allow_pickle=False) as stored:
        q, k, v = (stored[name] for name in "qkv")
        texts = tuple(str(name) for name in stored["texts"])
        model, source, licence = (str(stored[name]) for name in ("model", "source", "licence"))
    for array in (q, k, v):
        array.flags.writeable = False
    return Activations(q=q, k=k, v=v, texts=texts, model=model, source=source, licence=licence)
