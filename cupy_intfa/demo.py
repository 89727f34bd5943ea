"""The demo: every preset against the float64 oracle, on real activations and on synthetic sets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from cupy_intfa.attention import attention, explain
from cupy_intfa.data import load_activations
from cupy_intfa.data.families import make_qkv
from cupy_intfa.metrics import compare
from cupy_intfa.recipe import PRESETS
from cupy_intfa.reference import oracle

FAMILIES = ("normal", "outlier", "channel")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the demo computes on the synthetic sets. The real activations are always used whole.

    Parameters
    ----------
    heads, queries, head_dim : int
        Shape of q, the batch being 1. Errors do not depend on the number of queries, so a few stand for all.
    keys : int
        Length of the sets in the table.
    lengths : tuple of int
        Lengths for the picture.
    """

    heads: int = 4
    queries: int = 256
    head_dim: int = 64
    keys: int = 4096
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)


FULL = Size()
QUICK = Size(heads=2, queries=64, keys=512, lengths=(128, 256, 512))


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs with a name.

    Parameters
    ----------
    name : str
        The column that they become.
    q, k, v : ndarray (B, H, S, D), float32
        Queries, keys and values.
    """

    name: str
    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]


@dataclass(frozen=True)
class ErrorTable:
    """Relative RMSE of presets (rows) on samples (columns).

    Parameters
    ----------
    columns : tuple of str
        Names of the samples.
    errors : mapping of str to tuple of float
        One error for each column, by preset.
    """

    columns: tuple[str, ...]
    errors: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo found.

    Parameters
    ----------
    backend : str
        What ran attention.
    seconds : float
        How long everything took, the oracle included.
    model : str
        Where the real activations come from.
    layers : ErrorTable
        One column for each layer of the model.
    families : ErrorTable
        One column for each synthetic set.
    lengths : ErrorTable
        N(0, 1); the columns are the numbers of keys.
    """

    backend: str
    seconds: float
    model: str
    layers: ErrorTable
    families: ErrorTable
    lengths: ErrorTable

    @property
    def table(self) -> ErrorTable:
        """Layers, their mean, and the synthetic sets, side by side."""
        return ErrorTable(
            (*self.layers.columns, "mean", *self.families.columns),
            {
                preset: (*errors, float(np.mean(errors)), *self.families.errors[preset])
                for preset, errors in self.layers.errors.items()
            },
        )


def run_demo(size: Size = FULL, backend: str = "auto") -> Demo:
    """Measure every preset on every sample.

    Parameters
    ----------
    size : Size
        How much to compute.
    backend : {"auto", "numpy", "cuda"}
        Where attention runs.

    Returns
    -------
    Demo
        Errors, and what ran.

    Raises
    ------
    NotImplementedError
        For ``backend="cuda"`` where no CUDA kernel can run.

    Examples
    --------
    >>> errors = run_demo(QUICK, "numpy").table.errors
    >>> errors["fast"][6] < 0.4 * errors["paper"][6]
    True
    """
    start = time.perf_counter()
    layers = layer_samples()
    lengths = [_synthetic("normal", size, keys, str(keys)) for keys in size.lengths]
    return Demo(
        backend=explain(layers[0].q, layers[0].k, layers[0].v, backend=backend).backend,
        model=load_activations().model,
        layers=error_table(layers, backend),
        families=error_table([_synthetic(name, size, size.keys, name) for name in FAMILIES], backend),
        lengths=error_table(lengths, backend),
        seconds=time.perf_counter() - start,
    )


def layer_samples() -> list[Sample]:
    """Read the packaged activations.

    Returns
    -------
    list of Sample
        One for each layer, in float32: an output rounded to float16 would hide the errors of ``fp16``.
    """
    real = load_activations()
    layers = zip(real.q, real.k, real.v, strict=True)
    return [Sample(str(i), *(x.astype(np.float32) for x in layer)) for i, layer in enumerate(layers)]


def error_table(samples: Iterable[Sample], backend: str = "auto") -> ErrorTable:
    """Compare every preset with the oracle.

    Parameters
    ----------
    samples : iterable of Sample
        The inputs.
    backend : {"auto", "numpy", "cuda"}
        Where attention runs.

    Returns
    -------
    ErrorTable
        Relative RMSE of the output.
    """
    errors: dict[str, dict[str, float]] = {preset: {} for preset in PRESETS}
    columns = []
    for sample in samples:
        columns.append(sample.name)
        expected, _ = oracle.attention(sample.q, sample.k, sample.v)
        for preset, row in errors.items():
            out = attention(sample.q, sample.k, sample.v, recipe=preset, backend=backend)
            row[sample.name] = compare(out, expected).relative_rmse
    rows = {preset: tuple(row.values()) for preset, row in errors.items()}
    return ErrorTable(tuple(columns), rows)


def draw(demo: Demo, file: str | PathLike[str]) -> None:
    """Draw errors against sequence length and against layer.

    Parameters
    ----------
    demo : Demo
        What `run_demo` found.
    file : str or path
        The PNG to write.

    Raises
    ------
    ImportError
        Without matplotlib, which is optional.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_length, by_layer = figure.subplots(1, 2, sharey=True)
    for preset, marker in zip(PRESETS, "osD^vPX*", strict=True):
        style = {"marker": marker, "markersize": 5, "linewidth": 1.4, "label": preset}
        lengths = [int(column) for column in demo.lengths.columns]
        by_length.plot(lengths, demo.lengths.errors[preset], **style)
        by_layer.plot(demo.layers.columns, demo.layers.errors[preset], **style)
    by_length.set(xscale="log", xlabel="keys", ylabel="relative RMSE against float64", title="N(0, 1)", yscale="log")
    by_length.set_xticks(lengths, demo.lengths.columns)
    by_length.minorticks_off()
    by_layer.set(xlabel="layer", title=f"{demo.model}, real text")
    for panel in (by_length, by_layer):
        panel.grid(alpha=0.3)
    figure.legend(*by_layer.get_legend_handles_labels(), loc="outside right center")
    figure.savefig(file, dpi=130, format="png")


def _synthetic(family: str, size: Size, keys: int, name: str) -> Sample:
    q, k, v = make_qkv(family, heads=size.heads, q_len=size.queries, kv_len=keys, head_dim=size.head_dim)
    return Sample(name, q, k, v)
