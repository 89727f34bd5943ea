"""The encoder on small random weights, against its definition written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_intfa.encoder import Encoder, batches, pool
from cupy_intfa.encoder_bert import read_bert
from cupy_intfa.encoder_layer import FloatLinear, Linear, ScaledLinear, gelu
from cupy_intfa.linear import QuantizedLinear
from cupy_intfa.metrics import compare
from cupy_intfa.quantize import Granularity, quantize_symmetric

WIDTH, INNER, HEADS, LAYERS, VOCABULARY, POSITIONS = 16, 40, 4, 3, 11, 9
SENTENCES = [[1, 4, 2], [3], [5, 5, 5, 9, 0, 10, 2, 1, 7], [8, 6, 1], [2, 3, 3, 1]]
U = 2.0**-24


def make_weights(seed: int = 0, sharpness: float = 1.0) -> dict[str, Any]:
    """Draw a checkpoint, read-only; with `sharpness` the scores of attention get larger."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int, size: float = 1.0) -> Any:
        return (size * draw.standard_normal(shape)).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": normal(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
    }
    for name in (
        "embeddings",
        *(f"encoder.layer.{i}.{part}output" for i in range(LAYERS) for part in ("attention.", "")),
    ):
        weights |= {
            f"{name}.LayerNorm.weight": 1 + normal(WIDTH, size=0.2),
            f"{name}.LayerNorm.bias": normal(WIDTH, size=0.2),
        }
    for i in range(LAYERS):
        for name, outputs, inputs in (
            *((f"attention.self.{which}", WIDTH, WIDTH) for which in ("query", "key", "value")),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ):
            size = inputs**-0.5 * (sharpness if name.endswith(("query", "key")) else 1)
            weights[f"encoder.layer.{i}.{name}.weight"] = normal(outputs, inputs, size=size)
            weights[f"encoder.layer.{i}.{name}.bias"] = normal(outputs, size=0.2)
    for weight in weights.values():
        weight.flags.writeable = False
    return weights


def states_of(weights: dict[str, Any], sentence: list[int]) -> list[Any]:
    """Run one sentence in float64, token by token and head by head: (tokens, width) before and after each layer."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}

    def normalise(x: Any, name: str) -> Any:
        return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    word, position, kind = (w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = [normalise(word[piece] + position[i] + kind[0], "embeddings.LayerNorm") for i, piece in enumerate(sentence)]
    states = [np.stack(x)]
    for name in (f"encoder.layer.{i}" for i in range(LAYERS)):
        q, k, v = (
            np.stack([linear(t, f"{name}.attention.self.{which}") for t in x]) for which in ("query", "key", "value")
        )
        mixed = np.empty_like(q)
        for head in (slice(at, at + WIDTH // HEADS) for at in range(0, WIDTH, WIDTH // HEADS)):
            for i in range(len(x)):
                scores = k[:, head] @ q[i, head] / math.sqrt(WIDTH // HEADS)
                p = np.exp(scores - scores.max())
                mixed[i, head] = p @ v[:, head] / p.sum()
        x = [
            normalise(t + linear(m, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
            for t, m in zip(x, mixed, strict=True)
        ]
        inner = [linear(t, f"{name}.intermediate.dense") for t in x]
        active = [np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in row]) for row in inner]
        x = [
            normalise(t + linear(a, f"{name}.output.dense"), f"{name}.output.LayerNorm")
            for t, a in zip(x, active, strict=True)
        ]
        states.append(np.stack(x))
    return states


def embedding_of(weights: dict[str, Any], sentence: list[int]) -> Any:
    mean = states_of(weights, sentence)[-1].mean(axis=0)
    return mean / np.linalg.norm(mean)


def to_int8(_: str, linear: FloatLinear) -> QuantizedLinear:
    return QuantizedLinear(quantize_symmetric(linear.weight, "int8", "row"), linear.bias)


# Each of the 6 sublayers rounds a value some ten times (a sum is off by about u of its largest term, random and mostly
# less). These add up like √60, and the largest of some thousand elements lies 4 σ out: 31 u of the largest value.
STATE_BOUND = 31 * U


@pytest.mark.parametrize("sharpness", [1.0, 30.0], ids=["mild", "one_key_wins"])
def test_every_state_is_that_of_the_definition(sharpness: float) -> None:
    weights = make_weights(1, sharpness)
    encoder = read_bert(weights, HEADS)
    # A score is off by u of its size, which is the square of the sharpness, and moves the weights of the softmax by it.
    bound = STATE_BOUND + sharpness**2 * U
    for numbers, ids in batches(SENTENCES):
        found = list(encoder.hidden_states(ids))
        assert len(found) == LAYERS + 1
        assert all(state.dtype == np.float32 for state in found)
        for row, number in enumerate(numbers):
            for state, exact in zip(found, states_of(weights, SENTENCES[number]), strict=True):
                assert np.abs(state[row] - exact).max() <= bound * np.abs(exact).max()


def test_embeddings_are_those_of_the_definition_in_the_order_of_the_sentences() -> None:
    weights = make_weights(2)
    found = read_bert(weights, HEADS).embed(SENTENCES)
    assert found.dtype == np.float32
    exact = np.stack([embedding_of(weights, sentence) for sentence in SENTENCES])
    # The mean is at most as far off as its tokens, whose largest value is 3; then it is divided by its length, above 3.
    assert np.abs(found - exact).max() <= STATE_BOUND
    assert np.abs(exact[0] - exact[3]).max() > 0.1, "sentences of one length differ"


# What the README's table says of attention on N(0, 1). Here it is added to what it came from, and rows are shorter.
BUDGETS = {"paper": 0.0328, "fast": 0.0199, "precise": 0.0122, "half": 0.0092, "fp16": 0.00042}


def test_recipes_err_by_their_budget() -> None:
    weights = make_weights(3)
    exact = np.concatenate([states_of(weights, sentence)[-1] for sentence in SENTENCES])
    found = {}
    for recipe, budget in BUDGETS.items():
        encoder = read_bert(weights, HEADS).with_recipe(recipe)
        last = [[*encoder.hidden_states(np.array([sentence]))][-1][0] for sentence in SENTENCES]
        found[recipe] = compare(np.concatenate(last), exact).relative_rmse
        assert budget / 20 < found[recipe] < budget
    assert found["paper"] > found["fast"] > found["half"] > found["fp16"]


def test_integer_layers_err_by_their_roundings() -> None:
    """Per row of 16 to 40 values the step is about 2.5 σ / 127, its noise 1/√12 of that: 0.6 % for each of two factors.

    Two serial linear layers in each sublayer, six sublayers, quadratically: 0.8 % · √12 = 2.8 %; twice that at most.
    """
    weights = make_weights(4)
    encoder = read_bert(weights, HEADS).with_linears(to_int8)
    for recipe in (None, "precise"):
        found = np.concatenate(
            [list(encoder.with_recipe(recipe).hidden_states(np.array([sentence])))[-1][0] for sentence in SENTENCES]
        )
        exact = np.concatenate([states_of(weights, sentence)[-1] for sentence in SENTENCES])
        assert 0.004 < compare(found, exact).relative_rmse < 0.056


def test_linear_layers_are_replaced_by_name_and_all_else_is_kept() -> None:
    weights = make_weights(5)
    encoder = read_bert(weights, HEADS).with_recipe("half")
    seen: list[str] = []

    def make(name: str, linear: FloatLinear) -> QuantizedLinear:
        seen.append(name)
        assert linear.weight is weights[f"{name}.weight"]
        assert linear.bias is weights[f"{name}.bias"]
        return to_int8(name, linear)

    changed = encoder.with_linears(make)
    assert seen == [
        name.removesuffix(".weight") for name in weights if name.startswith("encoder") and weights[name].ndim == 2
    ]
    assert [layer.recipe for layer in changed.layers] == ["half"] * LAYERS
    assert changed.word is encoder.word
    # Weights that are rounded beforehand, in float layers, are the same network as those rounded in the layer.
    group = Granularity("group", 8)
    rounded = {
        name: quantize_symmetric(w, "int4", group).dequantize() if name.removesuffix(".weight") in seen else w
        for name, w in weights.items()
    }
    inside = encoder.with_recipe(None).with_linears(
        lambda _, linear: QuantizedLinear(quantize_symmetric(linear.weight, "int4", group), linear.bias, "float")
    )
    assert np.abs(inside.embed(SENTENCES) - read_bert(rounded, HEADS).embed(SENTENCES)).max() <= 2 * STATE_BOUND
    assert np.abs(inside.embed(SENTENCES) - encoder.embed(SENTENCES)).max() > 0.01, "INT4 is felt"


@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=POSITIONS), max_size=8), st.integers(0, 99)
)
def test_a_sentence_does_not_feel_the_others(sentences: list[list[int]], seed: int) -> None:
    encoder = read_bert(make_weights(6), HEADS)
    together = encoder.embed(sentences)
    assert together.shape == (len(sentences), WIDTH)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max(initial=0) <= 10 * U
    order = np.random.default_rng(seed).permutation(len(sentences))
    shuffled = encoder.embed([sentences[i] for i in order])
    assert np.abs(shuffled - together[order]).max(initial=0) <= STATE_BOUND  # BLAS may add in another order
    if sentences:
        assert np.abs(encoder.embed(sentences[-1:])[0] - together[-1]).max() <= STATE_BOUND


def test_a_sentence_does_not_feel_the_others_where_its_head_has_a_scale() -> None:
    """A code next to a tie may go the other way, by 1/127 of its row; the other's scale would move them all."""
    encoder = read_bert(make_weights(6), HEADS).with_recipe("fast").with_linears(to_int8)
    alone = encoder.embed([[1, 4, 2]])
    for other in ([8, 6, 1], [2, 2, 2]):
        assert np.abs(encoder.embed([other, [1, 4, 2]])[1] - alone[0]).max() <= 1 / 127 / 4


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=12))
def test_batches_hold_each_sentence_once_and_are_of_one_length(sentences: list[list[int]]) -> None:
    found = {
        number: row.tolist() for numbers, ids in batches(sentences) for number, row in zip(numbers, ids, strict=True)
    }
    assert [found[i] for i in range(len(sentences))] == sentences
    assert sum(len(numbers) for numbers, _ in batches(sentences)) == len(sentences)
    lengths = [ids.shape[1] for _, ids in batches(sentences)]
    assert lengths == sorted({len(sentence) for sentence in sentences})


def test_gelu_is_that_of_the_error_function() -> None:
    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    exact = np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])
    assert gelu(x).dtype == np.float32
    # 1 + erf cancels for negative x: an error of a few u remains of 1, times x/2.
    assert (np.abs(gelu(x) - exact) <= 4 * U * np.abs(x)).all()
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert np.abs(tanh - exact).max() > 1e-4, "the approximation would be seen"


def test_pooling_is_the_mean_over_the_tokens() -> None:
    hidden = np.random.default_rng(0).standard_normal((2, 5, 8), dtype=np.float32)
    mean = hidden.astype(np.float64).sum(axis=1)
    assert np.abs(pool(hidden) - mean / np.sqrt((mean**2).sum(axis=1, keepdims=True))).max() <= 16 * U


def test_a_divisor_is_undone_by_its_weight() -> None:
    draw = np.random.default_rng(7)
    weight, bias, x = draw.standard_normal((5, 8)), draw.standard_normal(5), draw.standard_normal((2, 3, 8))
    divisor = draw.uniform(0.1, 10, 8).astype(np.float32)
    scaled = ScaledLinear(FloatLinear((weight * divisor).astype(np.float32), bias.astype(np.float32)), divisor)
    bound = 12 * U * (np.abs(x) @ np.abs(weight).T + np.abs(bias))
    assert (np.abs(scaled(x.astype(np.float32)) - (x @ weight.T + bias)) <= bound).all()


def listen(encoder: Encoder, calls: list[str]) -> Encoder:
    """Give an encoder whose linear layers note their names when they run."""

    def make(name: str, linear: FloatLinear) -> Linear:
        def call(x: Any) -> Any:
            calls.append(name)
            return linear(x)

        return call

    return encoder.with_linears(make)


def test_layers_run_when_they_are_asked_for() -> None:
    calls: list[str] = []
    states = listen(read_bert(make_weights(8), HEADS), calls).hidden_states(np.array([[1, 2]]))
    next(states)
    assert calls == []
    next(states)
    assert [name.removeprefix("encoder.layer.0.") for name in calls] == [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1]], TypeError, "ids are a list: expected a NumPy array of integers"),
        (np.array([[1.0]]), TypeError, "ids have dtype float64: expected integers"),
        (np.array([1]), ValueError, r"ids have shape \(1,\): expected \(texts, tokens\) of 1 to 9 tokens"),
        (np.zeros((1, 10), int), ValueError, r"ids have shape \(1, 10\)"),
        (np.zeros((2, 0), int), ValueError, r"ids have shape \(2, 0\)"),
        (np.array([[1, 11]]), ValueError, "ids go from 1 to 11: expected 0 to 10"),
        (np.array([[-1, 1]]), ValueError, "ids go from -1 to 1: expected 0 to 10"),
    ],
)
def test_ids_that_do_not_fit_are_refused_at_once(ids: Any, error: type[Exception], message: str) -> None:
    encoder = read_bert(make_weights(), HEADS)
    with pytest.raises(error, match=message):
        encoder.hidden_states(ids)


def test_embed_refuses_before_it_runs() -> None:
    calls: list[str] = []
    encoder = listen(read_bert(make_weights(), HEADS), calls)
    for sentences in ([[1, 2], [3] * 10], [[1, 2], []], [[1], [2, 99]]):
        with pytest.raises(ValueError, match="ids "):
            encoder.embed(sentences)
    assert calls == []
    encoder.embed([[1]])
    assert len(calls) == 6 * LAYERS


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = make_weights()
    with pytest.raises(ValueError, match=r"heads=3: expected a number that divides the width 16"):
        read_bert(weights, 3)
    with pytest.raises(ValueError, match=r"there is no 'embeddings.word_embeddings.weight' among the \d+ weights"):
        read_bert({f"bert.{name}": weight for name, weight in weights.items()}, HEADS)
    for name in ("encoder.layer.1.attention.self.key.bias", "encoder.layer.0.output.LayerNorm.weight"):
        with pytest.raises(ValueError, match=f"there is no '{name}'"):
            read_bert({key: weight for key, weight in weights.items() if key != name}, HEADS)
    with pytest.raises(ValueError, match=r"there is no 'encoder.layer.0.attention.self.query.weight'"):
        read_bert({key: weight for key, weight in weights.items() if key.startswith("embeddings")}, HEADS)
    encoder = read_bert(weights, HEADS)
    with pytest.raises(ValueError, match="word, position, kind have shapes"):
        replace(encoder, position=encoder.position[:, 1:])
    with pytest.raises(ValueError, match="word, position, kind have shapes"):
        Encoder(encoder.word[0], encoder.position, encoder.kind, encoder.norm, ())
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), bias \(3,\): expected \(outputs, inputs\)"):
        FloatLinear(np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="recipe"):
        encoder.with_recipe("fastest")
    number: Any = 8
    with pytest.raises(TypeError, match="recipe"):
        encoder.with_recipe(number)


def test_float16_weights_become_float32() -> None:
    weights = {name: weight.astype(np.float16) for name, weight in make_weights().items()}
    found = read_bert(weights, HEADS)
    assert found.embed(SENTENCES).dtype == np.float32
    query = found.layers[0].query
    assert isinstance(query, FloatLinear)
    assert found.word.dtype == query.weight.dtype == np.float32


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [None, "fast"])
@pytest.mark.parametrize("integers", [False, True])
def test_cupy_gives_what_numpy_gives(recipe: str | None, integers: bool) -> None:
    """Up to the order of sums in float32, and where that turns a code, by a part of its step."""
    import cupy

    weights = make_weights(9)
    here = read_bert(weights, HEADS).with_recipe(recipe)
    there = read_bert({name: cupy.asarray(weight) for name, weight in weights.items()}, HEADS).with_recipe(recipe)
    if integers:
        here, there = here.with_linears(to_int8), there.with_linears(to_int8)
    found = there.embed(SENTENCES)
    assert isinstance(found, cupy.ndarray)
    bound = 1 / 127 / 4 if integers or recipe else 2 * STATE_BOUND
    assert np.abs(found.get() - here.embed(SENTENCES)).max() <= bound
