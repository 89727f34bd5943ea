"""Weight quantisers on small problems: GPTQ against a dense solution, what AWQ, SmoothQuant and LLM.int8 promise."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_arrays import f32
from strategies import Array, seeds

from cupy_intfa.linear import DecomposedLinear
from cupy_intfa.quantize.affine import quantize_symmetric
from cupy_intfa.quantize.awq import awq_quantize
from cupy_intfa.quantize.gptq import gptq_quantize
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.inputs import LinearInputs, observe_inputs
from cupy_intfa.quantize.outliers import decompose
from cupy_intfa.quantize.smooth import smooth_quantize


def make(seed: int, rows: int = 6, columns: int = 12, tokens: int = 200) -> tuple[Array, Array]:
    """Draw a weight, and inputs whose channels are correlated."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)).astype(np.float32), x.astype(np.float32)


def damped(inputs: LinearInputs, damping: float) -> Array:
    moment = inputs.moment
    found: Array = moment + damping * np.trace(moment) / len(moment) * np.eye(len(moment))
    return found


def dense_gptq(weight: Array, moment: Array, group: int, order: Array, fixed: Array | None) -> Array:
    """Quantise column after column, and solve for the best values of all others anew each time.

    With columns F fixed at q, the rest R of a row w is best at w_R + (w_F − q_F) · H_FR · H_RR⁻¹.
    """
    best, quantized = weight.astype(np.float64), np.zeros(weight.shape)
    done: list[int] = []
    scale = np.zeros((len(weight), 1), np.float32)
    for step, j in enumerate(order):
        if fixed is not None:
            scale = fixed[:, j // group, None]
        elif step % group == 0:
            members = order[step : step + group]
            scale = (np.abs(best[:, members]).max(axis=1, keepdims=True) / 7).astype(np.float32)
        quantized[:, j] = np.clip(np.rint(best[:, j] / scale[:, 0]), -7, 7) * scale[:, 0]
        done.append(int(j))
        rest = [k for k in range(weight.shape[1]) if k not in done]
        if rest:
            wrong = weight[:, done] - quantized[:, done]
            best[:, rest] = (
                weight[:, rest] + np.linalg.solve(moment[np.ix_(rest, rest)], moment[np.ix_(rest, done)] @ wrong.T).T
            )
    return quantized


@pytest.mark.parametrize("act_order", [False, True])
@given(seeds, st.sampled_from((4, 5, 12)))
def test_gptq_is_the_dense_solution(act_order: bool, seed: int, group: int) -> None:
    weight, x = make(seed)
    inputs = observe_inputs(x)
    found = gptq_quantize(weight, inputs, group=group, act_order=act_order, damping=0.01)
    order = np.argsort(-np.diagonal(inputs.moment), kind="stable") if act_order else np.arange(12)
    fixed = np.asarray(quantize_symmetric(weight, "int4", Granularity("group", group)).scale) if act_order else None
    expected = dense_gptq(weight, damped(inputs, 0.01), group, order, fixed)
    assert found.dequantize() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("columns", [128, 130, 300])
@pytest.mark.parametrize("group", [48, 128])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_in_blocks_is_gptq_column_by_column(
    columns: int, group: int, act_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that begin in one block of 128 columns and end in the next are where blocks could go wrong."""
    weight, x = make(1, rows=4, columns=columns, tokens=600)
    inputs = observe_inputs(x)
    found = gptq_quantize(weight, inputs, group=group, act_order=act_order)
    for block in (1, 1000):
        monkeypatch.setattr("cupy_intfa.quantize.gptq._BLOCK", block)
        other = gptq_quantize(weight, inputs, group=group, act_order=act_order)
        assert (other.codes() == found.codes()).mean() > 0.999, "more than a tie went another way"
        assert other.scales() == pytest.approx(found.scales(), rel=1e-5)


def test_gptq_stands_between_nearest_and_the_best_of_all_codes() -> None:
    """Every code of a row of 4 columns is tried: with the scales of act_order, which do not depend on the walk."""
    ratios = []
    for seed in range(40):
        weight, x = make(seed, rows=1, columns=4)
        inputs = observe_inputs(x)
        spec = Granularity("group", 4)
        nearest = quantize_symmetric(weight, "int4", spec)
        found = gptq_quantize(weight, inputs, group=4, act_order=True, damping=1e-6)
        errors = [inputs.output_error(weight, one.codes() * nearest.scales()) for one in (nearest, found)]
        codes = np.array(list(itertools.product(range(-7, 8), repeat=4)))
        wrong = weight - codes * nearest.scales()
        best = np.sqrt(((wrong @ inputs.moment) * wrong).sum(axis=1).min() / (weight @ inputs.moment @ weight.T).item())
        assert best <= errors[1] * (1 + 1e-4)
        ratios.append(errors[1] / errors[0])
    assert np.exp(np.mean(np.log(ratios))) < 0.9  # 0.844 measured


def test_gptq_of_inputs_without_correlation_is_nearest() -> None:
    """A diagonal H: no column can make up for another."""
    weight, _ = make(3, rows=5, columns=8)
    inputs = LinearInputs(np.diag(np.arange(1.0, 9.0)), np.ones(8), np.ones(8), 100)
    for act_order in (False, True):
        found = gptq_quantize(weight, inputs, group=4, act_order=act_order)
        assert (found.codes() == quantize_symmetric(weight, "int4", Granularity("group", 4)).codes()).all()


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_takes_channels_that_never_speak(act_order: bool) -> None:
    weight, x = make(4)
    x[:, [2, 7]] = 0
    found = gptq_quantize(weight, observe_inputs(x), group=12, act_order=act_order)
    scale = found.scales()[:, 0]
    for column in (2, 7):
        assert (np.abs(found.dequantize()[:, column] - weight[:, column]) <= scale * 0.501).all()
    assert np.isfinite(found.dequantize()).all()


def test_gptq_of_silent_inputs_is_nearest() -> None:
    weight, x = make(4)
    found = gptq_quantize(weight, observe_inputs(0 * x), group=12)
    assert (found.codes() == quantize_symmetric(weight, "int4", Granularity("group", 12)).codes()).all()


@pytest.mark.parametrize("seed", range(5))
def test_awq_clips_what_helps_on_the_inputs_that_arrive(seed: int) -> None:
    """Each group's part of the output, for the inputs after their division: loud channels are divided most."""
    weight, x = make(seed, rows=8, columns=64, tokens=400)
    x *= np.where(np.arange(64) % 8 == 0, 30, 1).astype(np.float32)
    plain, found = (awq_quantize(weight, observe_inputs(x), "int2", group=16, clip=clip) for clip in (False, True))
    assert found.divisor.max() > 2 * found.divisor.min()
    divided = x.astype(np.float64) / found.divisor
    improved = 0
    for start in range(0, 64, 16):
        part = slice(start, start + 16)
        errors = [
            np.square(divided[:, part] @ (weight * found.divisor - one.weight.dequantize())[:, part].T).sum(axis=0)
            for one in (plain, found)
        ]
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        improved += int((errors[1] < 0.99 * errors[0]).sum())
    assert improved > 8


@given(seeds, st.sampled_from(("int8", "int4", "int2")))
def test_awq_is_never_worse_than_nearest_on_what_it_has_seen(seed: int, format: str) -> None:
    """α = 0 is rounding to nearest, and clipping only replaces what it improves, by group."""
    weight, x = make(seed)
    inputs = observe_inputs(x)
    nearest = inputs.output_error(weight, quantize_symmetric(weight, format, Granularity("group", 12)).dequantize())
    scaled = awq_quantize(weight, inputs, format, group=12, clip=False)
    clipped = awq_quantize(weight, inputs, format, group=12)
    errors = [inputs.output_error(weight, one.dequantize()) for one in (clipped, scaled)]
    assert errors[1] <= nearest * (1 + 1e-6)
    assert errors[0] <= errors[1] * (1 + 1e-6)
    assert (clipped.divisor == scaled.divisor).all()


def test_awq_clips_by_row_and_group() -> None:
    """INT2 has −1, 0, 1: beside 1.6, fifteen weights of ±0.5 are lost, and clipped to 0.8 they are 0.3 off.

    Then the error is 15 · 0.09 + 0.64, not 15 · 0.25. All other groups have weights of one size, which scale 1 fits.
    """
    rng = np.random.default_rng(0)
    weight = (0.5 * rng.choice([-1, 1], (2, 32))).astype(np.float32)
    weight[0, 3] = 1.6
    inputs = observe_inputs(rng.choice([-1.0, 1.0], (20_000, 32)))
    plain = awq_quantize(weight, inputs, "int2", group=16, clip=False)
    found = awq_quantize(weight, inputs, "int2", group=16)
    ratio = np.asarray(found.weight.scale) / np.asarray(plain.weight.scale)
    assert ratio[0, 0] == pytest.approx(0.5)
    assert ratio[0, 1] == ratio[1, 0] == ratio[1, 1] == 1


@given(seeds, st.sampled_from((0.0, 0.3, 0.5, 1.0)))
def test_smoothing_leaves_the_product_and_moves_the_maxima(seed: int, strength: float) -> None:
    weight, x = make(seed)
    x[:, 0] *= 100
    inputs = observe_inputs(x)
    found = smooth_quantize(weight, inputs, strength=strength)
    high = np.abs(x).max(axis=0) ** strength / np.abs(weight).max(axis=0) ** (1 - strength)
    assert found.divisor == pytest.approx(high, rel=1e-5)
    smooth = weight * found.divisor
    assert (x / found.divisor) @ smooth.T == pytest.approx(x @ weight.T, rel=1e-4, abs=1e-3 * float(np.abs(x).max()))
    assert (np.abs(found.weight.dequantize() - smooth) <= found.weight.error_bound()).all()
    assert found.dequantize() == pytest.approx(found.weight.dequantize() / found.divisor)
    if strength == 0.5:  # both sides then have the same maxima
        assert np.abs(x / found.divisor).max(axis=0) == pytest.approx(np.abs(smooth).max(axis=0), rel=1e-4)


def test_smoothing_takes_silent_channels() -> None:
    weight, x = make(1)
    x[:, 3], weight[:, 5] = 0, 0
    found = smooth_quantize(weight, observe_inputs(x))
    assert np.isfinite(found.divisor).all()
    assert (found.divisor > 0).all()


def test_decomposition_wins_where_few_channels_are_loud() -> None:
    """Two channels of 64 a hundred times as loud: 127 steps a token are then one for the others."""
    weight, x = make(5, rows=16, columns=64)
    x /= np.abs(x).max(axis=0)
    x[:, [7, 40]] *= 100
    exact = x.astype(np.float64) @ weight.T
    inputs = observe_inputs(x)
    split = decompose(weight, inputs)
    assert split.columns.tolist() == [7, 40]
    assert split.outliers.dtype == np.float16
    assert (split.weight.codes()[:, [7, 40]] == 0).all()
    whole = decompose(weight, inputs, threshold=1e6)
    assert whole.columns.size == 0
    errors = [np.linalg.norm(DecomposedLinear(one)(x) - exact) for one in (split, whole)]
    assert errors[0] < 0.1 * errors[1]  # 0.030 measured


def test_statistics_of_inputs_do_not_depend_on_the_batches() -> None:
    _, x = make(6)
    whole, cut = observe_inputs(x), observe_inputs(x[150:].reshape(5, 10, 12), observe_inputs(x[:150]))
    assert cut.count == whole.count == 200
    for name in ("moment", "mean_abs", "absmax"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=1e-12, abs=1e-12)
    assert whole.moment == pytest.approx(x.astype(np.float64).T @ x / 200)


@given(seeds)
def test_output_error_is_that_of_the_outputs(seed: int) -> None:
    weight, x = make(seed)
    other = weight + np.float32(0.1) * np.random.default_rng(seed + 1).standard_normal(weight.shape).astype(np.float32)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    expected = np.linalg.norm(x.astype(np.float64) @ other.T - exact) / np.linalg.norm(exact)
    assert observe_inputs(x).output_error(weight, other) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_is_refused() -> None:
    weight, x = make(0)
    inputs = observe_inputs(x)
    for quantise in (gptq_quantize, awq_quantize, smooth_quantize, decompose):
        with pytest.raises(ValueError, match=r"expected a weight \(outputs, 12\) for these inputs, got \(6, 11\)"):
            quantise(weight[:, :11], inputs)
        with pytest.raises(ValueError, match="expected a finite weight, got NaN or infinity"):
            quantise(np.where(weight > 1, np.float32(np.nan), weight), inputs)
    for quantise in (gptq_quantize, awq_quantize):
        with pytest.raises(ValueError, match="expected a signed format, got 'uint4'"):
            quantise(weight, inputs, "uint4")
    with pytest.raises(ValueError, match="expected weights of outlier channels within 65504"):
        decompose(weight * np.float32(1e6), inputs, threshold=1e-6)
    with pytest.raises(ValueError, match="expected a damping above 0, got 0"):
        gptq_quantize(weight, inputs, damping=0)
    with pytest.raises(ValueError, match=r"expected a strength from 0 to 1, got 1\.5"):
        smooth_quantize(weight, inputs, strength=1.5)
    with pytest.raises(ValueError, match="expected a threshold above 0, got 0"):
        decompose(weight, inputs, threshold=0)
    with pytest.raises(ValueError, match="expected 12 channels as before, got 3"):
        observe_inputs(np.ones((2, 3)), inputs)
    with pytest.raises(ValueError, match="expected inputs that are finite and not empty"):
        observe_inputs(f32([[1, np.inf]]))
