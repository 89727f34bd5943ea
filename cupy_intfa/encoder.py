"""A sentence encoder, BERT's layers and mean pooling, any of whose matrix products may run on integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.encoder_layer import LINEARS, EncoderLayer, LayerNorm, Linear
from cupy_intfa.quantize.arithmetic import Array
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Encoder:
    """Embeddings of word pieces and positions, layers, and the mean over the tokens.

    `read_bert` makes one of a checkpoint; `with_recipe` and `with_linears` give it another attention and other linear
    layers.

    Parameters
    ----------
    word : array (vocabulary, width), float32
        A row for each word piece.
    position : array (positions, width), float32
        A row for each place in a text.
    kind : array (width,), float32
        The row of the token type, of which sentences have one.
    norm : LayerNorm
        Of the sum of the three.
    layers : tuple of EncoderLayer
        One after the other.

    Raises
    ------
    ValueError
        If the tables are not of one width.

    Notes
    -----
    Sentences are never padded, so that no mask is needed: `embed` puts those of one length into one batch.

    Examples
    --------
    >>> table = np.eye(4, dtype=np.float32)
    >>> norm = LayerNorm(np.ones(4, np.float32), np.zeros(4, np.float32))
    >>> encoder = Encoder(table, table, table[0], norm, layers=())
    >>> encoder.embed([[3, 1], [2]]).round(2).tolist()
    [[0.67, 0.22, -0.67, -0.22], [0.75, -0.45, 0.15, -0.45]]
    """

    word: Array
    position: Array
    kind: Array
    norm: LayerNorm
    layers: tuple[EncoderLayer, ...]

    def __post_init__(self) -> None:
        """Check that the tables fit each other."""
        shapes = self.word.shape, self.position.shape, self.kind.shape
        width = self.kind.size
        if tuple(map(len, shapes)) != (2, 2, 1) or {shape[-1] for shape in shapes} != {width}:
            raise ValueError(
                f"word, position, kind have shapes {shapes}: expected (vocabulary, width), (positions, width), (width,)"
            )

    def hidden_states(self, ids: NDArray[np.integer]) -> Iterator[Array]:
        """Give what enters the first layer, then what leaves each, a layer run at each step.

        Parameters
        ----------
        ids : ndarray (texts, tokens), int
            Word pieces, [CLS] and [SEP] included, on the host.

        Returns
        -------
        iterator of array (texts, tokens, width), float32
            One more than there are layers.

        Raises
        ------
        TypeError
            If the ids are not integers in a NumPy array.
        ValueError
            If there is no token, there are more than positions, or an id is not in the vocabulary.
        """
        self._check(ids)
        xp = namespace_of(self.word)
        first = self.norm(self.word[xp.asarray(ids)] + self.kind + self.position[: ids.shape[1]])
        return accumulate(self.layers, lambda hidden, layer: layer(hidden), initial=first)

    def embed(self, sentences: Sequence[Sequence[int] | NDArray[np.integer]]) -> Array:
        """Embed sentences: the mean of the last layer over the tokens, scaled to length 1.

        Parameters
        ----------
        sentences : sequence of sequence of int
            Word pieces of each, [CLS] and [SEP] included.

        Returns
        -------
        array (sentences, width), float32
            Their products with each other are cosines.

        Raises
        ------
        TypeError, ValueError
            As `hidden_states`.
        """
        grouped = list(batches(sentences))
        for _, ids in grouped:
            self._check(ids)  # all of them, before the first is run
        found = namespace_of(self.word).empty((len(sentences), self.kind.size), np.float32)
        for numbers, ids in grouped:
            *_, hidden = self.hidden_states(ids)
            found[numbers] = pool(hidden)
        return found

    def with_recipe(self, recipe: str | Recipe | None) -> Encoder:
        """Give an encoder that attends by another recipe.

        Parameters
        ----------
        recipe : str or Recipe or None
            As of `EncoderLayer`.

        Returns
        -------
        Encoder
            All else is shared with this one.

        Raises
        ------
        ValueError, TypeError
            For what is no recipe.
        """
        return replace(self, layers=tuple(replace(layer, recipe=recipe) for layer in self.layers))

    def with_linears(self, make: Callable[[str, Any], Linear]) -> Encoder:
        """Give an encoder with other linear layers.

        Parameters
        ----------
        make : callable
            Takes the checkpoint's name of a layer, as "encoder.layer.0.attention.self.query", and the layer that is
            there, a `FloatLinear` to begin with; gives its replacement. Called in the order in which data pass.

        Returns
        -------
        Encoder
            All else is shared with this one.
        """

        def changed(number: int, layer: EncoderLayer) -> EncoderLayer:
            """Replace the six of one layer."""
            made: dict[str, Any] = {
                field: make(f"encoder.layer.{number}.{name}", getattr(layer, field)) for field, name in LINEARS.items()
            }
            return replace(layer, **made)

        return replace(self, layers=tuple(changed(number, layer) for number, layer in enumerate(self.layers)))

    def _check(self, ids: NDArray[np.integer]) -> None:
        if not isinstance(ids, np.ndarray):
            raise TypeError(f"ids are a {type(ids).__name__}: expected a NumPy array of integers")
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= len(self.position):
            raise ValueError(
                f"ids have shape {ids.shape}: expected (texts, tokens) of 1 to {len(self.position)} tokens"
            )
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"ids have dtype {ids.dtype}: expected integers")
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.word):
            raise ValueError(f"ids go from {ids.min()} to {ids.max()}: expected 0 to {len(self.word) - 1}")


def pool(hidden: Array) -> Array:
    """Make embeddings of hidden states: the mean over the tokens, scaled to length 1.

    Parameters
    ----------
    hidden : array (texts, tokens, width), float32
        What the last layer gives.

    Returns
    -------
    array (texts, width), float32
        As the authors of sentence-transformers pool.

    Examples
    --------
    >>> pool(np.float32([[[2, 4], [4, 4]]])).tolist()
    [[0.6..., 0.8...]]
    """
    mean = hidden.mean(axis=1)
    return mean / namespace_of(hidden).linalg.norm(mean, axis=1, keepdims=True)


def batches(
    sentences: Sequence[Sequence[int] | NDArray[np.integer]],
) -> Iterator[tuple[list[int], NDArray[np.integer]]]:
    """Put sentences of one length together.

    Parameters
    ----------
    sentences : sequence of sequence of int
        Word pieces of each.

    Yields
    ------
    numbers : list of int
        Which sentences these are.
    ids : ndarray (texts, tokens), int
        Their word pieces. The shortest come first.

    Examples
    --------
    >>> [(numbers, ids.tolist()) for numbers, ids in batches([[5, 6], [7], [8, 9]])]
    [([1], [[7]]), ([0, 2], [[5, 6], [8, 9]])]
    """
    by_length: dict[int, list[int]] = {}
    for number, sentence in enumerate(sentences):
        by_length.setdefault(len(sentence), []).append(number)
    for _, numbers in sorted(by_length.items()):
        yield numbers, np.stack([np.asarray(sentences[number]) for number in numbers])
