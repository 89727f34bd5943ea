"""Quantisation-aware training of a small network, with gradients written by hand: a worked example.

A perceptron of a few layers separates spirals. Its weights become INT4 with a scale per output, and the inputs of its
layers, which are never negative behind a ReLU, unsigned INT4 with one scale each. Post-training quantisation chooses
the scales by calibration and loses accuracy; training on with fake quantisation wins it back.

A network is a mapping of names to arrays: weights ``w0`` (out, in), ``w1`` …, biases ``b0`` …, and, once it is
quantised, scales ``w0_scale`` … and ``x1_scale`` … The inputs of the first layer, coordinates, stay floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cupy_intfa.quantize.arithmetic import Array, scale_from_absmax
from cupy_intfa.quantize.fake import fake_gradients, fake_quantize
from cupy_intfa.quantize.formats import integers
from cupy_intfa.quantize.granularity import namespace_of
from cupy_intfa.quantize.observers import observe
from cupy_intfa.quantize.ranges import choose_range

WEIGHTS, INPUTS = "int4", "uint4"
_SMALLEST_SCALE = np.float32(1e-6)  # a step of Adam must not make a scale negative

Network = Mapping[str, Array]


def make_spirals(count: int, seed: int, arms: int = 3) -> tuple[Array, Array]:
    """Draw points of spirals that turn 11 radians around each other.

    Parameters
    ----------
    count : int
        Points of each arm.
    seed : int
        Of the random numbers.
    arms : int
        Spirals.

    Returns
    -------
    points : ndarray (arms · count, 2), float32
        Inside the unit disc.
    labels : ndarray (arms · count,), int64
        Which arm.
    """
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.1, 1, (arms, count))
    angle = 11 * radius + 2 * np.pi * np.arange(arms)[:, None] / arms + rng.normal(0, 0.03, (arms, count))
    points = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1).reshape(-1, 2)
    return points.astype(np.float32), np.repeat(np.arange(arms), count)


def make_network(widths: Sequence[int], seed: int) -> Network:
    """Draw weights of variance 2 / inputs, and biases of 0."""
    rng = np.random.default_rng(seed)
    network: dict[str, Array] = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        network[f"w{i}"] = rng.normal(0, (2 / inputs) ** 0.5, (outputs, inputs)).astype(np.float32)
        network[f"b{i}"] = np.zeros(outputs, np.float32)
    return network


def forward(network: Network, x: Array) -> tuple[Array, list[Array]]:
    """Run the network, quantised where it has scales.

    Parameters
    ----------
    network : mapping of str to array
        See the module.
    x : array (points, 2), float32
        Coordinates.

    Returns
    -------
    scores : array (points, arms), float32
        Of the last layer.
    inputs : list of array
        What each layer was given, before quantisation.
    """
    xp = namespace_of(x)
    inputs = []
    for i in range(_depth(network)):
        inputs.append(x)
        weight, taken = _seen(network, i, x)
        x = taken @ weight.T + network[f"b{i}"]
        if i + 1 < _depth(network):
            x = xp.maximum(x, np.float32(0))
    return x, inputs


def backward(network: Network, inputs: Sequence[Array], gradient: Array) -> dict[str, Array]:
    """Pass the gradient of the scores back to every parameter.

    Parameters
    ----------
    network : mapping of str to array
        See the module.
    inputs : sequence of array
        From `forward`.
    gradient : array (points, arms), float32
        Of the loss with respect to the scores.

    Returns
    -------
    dict of str to array
        By the names of the parameters.
    """
    found: dict[str, Array] = {}
    for i in reversed(range(_depth(network))):
        weight, taken = _seen(network, i, inputs[i])
        found[f"b{i}"] = gradient.sum(axis=0)
        found[f"w{i}"] = gradient.T @ taken
        gradient = gradient @ weight
        if f"w{i}_scale" in network:
            weight, scale = network[f"w{i}"], network[f"w{i}_scale"]
            found[f"w{i}"], found[f"w{i}_scale"] = fake_gradients(found[f"w{i}"], weight, scale, WEIGHTS, "row")
        if f"x{i}_scale" in network:
            scale = network[f"x{i}_scale"]
            gradient, found[f"x{i}_scale"] = fake_gradients(gradient, inputs[i], scale, INPUTS)
        gradient = gradient * (inputs[i] > 0)  # the ReLU before
    return found


def train(network: Network, x: Array, labels: Array, *, steps: int, rate: float) -> Network:
    """Minimise the cross entropy by Adam on all points at once; the rate falls like a cosine.

    Parameters
    ----------
    network : mapping of str to array
        To start from. With scales the training is quantisation-aware, and trains them too.
    x : array (points, 2), float32
        Coordinates.
    labels : array (points,), int
        Which arm.
    steps : int
        Updates.
    rate : float
        Size of the first.

    Returns
    -------
    mapping of str to array
        A new network.
    """
    xp = namespace_of(x)

    def gradients(current: Network) -> dict[str, Array]:
        """Differentiate the cross entropy."""
        scores, inputs = forward(current, x)
        odds = xp.exp(scores - scores.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True)
        error[xp.arange(len(labels)), labels] -= np.float32(1)
        return backward(current, inputs, error / np.float32(len(labels)))

    return _adam(network, gradients, steps, rate)


def quantize_network(network: Network, x: Array) -> Network:
    """Quantise after training: scales from calibration on some points, with the smallest squared error.

    Parameters
    ----------
    network : mapping of str to array
        Without scales.
    x : array (points, 2), float32
        Coordinates to calibrate on.

    Returns
    -------
    mapping of str to array
        The same with scales.
    """
    _, inputs = forward(network, x)
    scales: dict[str, Array] = {}
    for i, seen in enumerate(inputs):
        scales[f"w{i}_scale"] = _calibrated(network[f"w{i}"], WEIGHTS, axis=0)[:, None]
        if i:
            scales[f"x{i}_scale"] = _calibrated(seen, INPUTS)[:, None]
    return {**network, **scales}


def accuracy(network: Network, x: Array, labels: Array) -> float:
    """Give the share of points that are put on their arm."""
    return float((forward(network, x)[0].argmax(axis=1) == labels).mean())


def _depth(network: Network) -> int:
    return sum(name[0] == "b" for name in network)


def _seen(network: Network, i: int, x: Array) -> tuple[Array, Array]:
    """Give weight and input of a layer as the product sees them."""
    weight = network[f"w{i}"]
    if f"w{i}_scale" in network:
        weight = fake_quantize(weight, network[f"w{i}_scale"], WEIGHTS, "row")
    if f"x{i}_scale" in network:
        x = fake_quantize(x, network[f"x{i}_scale"], INPUTS)
    return weight, x


def _calibrated(x: Array, format: str, axis: int | None = None) -> Array:
    low, high = choose_range(observe(x, axis=axis), "mse", format=format)
    xp = namespace_of(x)
    return scale_from_absmax(xp.maximum(-low, high), integers(format).high, xp)


def _adam(network: Network, gradients: Callable[[Network], dict[str, Array]], steps: int, rate: float) -> Network:
    """Follow gradients with step sizes from their running moments (arXiv 1412.6980, decays 0.9 and 0.99)."""
    first = {name: 0 * value for name, value in network.items()}
    second = dict(first)
    current = dict(network)
    for step in range(1, steps + 1):
        size = np.float32(rate * (1 + np.cos(np.pi * step / steps)) / 2 / (1 - 0.9**step))
        correction = np.float32(1 / (1 - 0.99**step))
        for name, gradient in gradients(current).items():
            first[name] = np.float32(0.9) * first[name] + np.float32(0.1) * gradient
            second[name] = np.float32(0.99) * second[name] + np.float32(0.01) * gradient * gradient
            moved = current[name] - size * first[name] / ((correction * second[name]) ** 0.5 + np.float32(1e-8))
            current[name] = moved.clip(_SMALLEST_SCALE) if name.endswith("_scale") else moved
    return current
