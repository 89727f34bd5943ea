"""Read an encoder from the weights of a checkpoint of BERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cupy_intfa.encoder import Encoder
from cupy_intfa.encoder_layer import LINEARS, EncoderLayer, FloatLinear, LayerNorm
from cupy_intfa.quantize.arithmetic import Array

_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


def read_bert(weights: Mapping[str, Array], heads: int) -> Encoder:
    """Make an encoder of a checkpoint of BERT, all of it in float32.

    Parameters
    ----------
    weights : mapping of str to array
        By the names that Hugging Face gives them, without a prefix: "embeddings.word_embeddings.weight" up to
        "encoder.layer.5.output.LayerNorm.bias". NumPy or CuPy; what else is there is left alone.
    heads : int
        Of each layer, which no weight tells.

    Returns
    -------
    Encoder
        With float linear layers and plain attention, on the device of the arrays.

    Raises
    ------
    ValueError
        If a weight is missing, or shapes or heads do not fit.

    Examples
    --------
    >>> read_bert({"bert.embeddings.word_embeddings.weight": np.zeros((5, 4))}, heads=2)
    Traceback (most recent call last):
    ValueError: there is no 'embeddings.word_embeddings.weight' among the 1 weights: expected a checkpoint of BERT ...
    """

    def get(name: str) -> Array:
        """Find a weight."""
        if name not in weights:
            raise ValueError(
                f"there is no {name!r} among the {len(weights)} weights: expected a checkpoint of BERT by the names of "
                "Hugging Face, without a prefix"
            )
        return weights[name].astype(np.float32, copy=False)

    def pair(name: str) -> tuple[Array, Array]:
        """Find a weight and its bias."""
        return get(f"{name}.weight"), get(f"{name}.bias")

    def layer(prefix: str) -> EncoderLayer:
        """Make one layer."""
        linears: dict[str, Any] = {field: FloatLinear(*pair(prefix + name)) for field, name in LINEARS.items()}
        norms: dict[str, Any] = {field: LayerNorm(*pair(prefix + name)) for field, name in _NORMS.items()}
        return EncoderLayer(**linears, **norms, heads=heads)

    word, position, kinds = (get(f"embeddings.{name}_embeddings.weight") for name in ("word", "position", "token_type"))
    norm = LayerNorm(*pair("embeddings.LayerNorm"))
    numbers = (int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    count = max(numbers, default=0) + 1  # without any, the first is what is missing
    return Encoder(word, position, kinds[0], norm, tuple(layer(f"encoder.layer.{number}.") for number in range(count)))
