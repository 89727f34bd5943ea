"""The quantisation toolbox on a GPU: the bits that it has on NumPy arrays, and where sums have an order its errors."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from strategies import Array

from cupy_intfa.linear import DecomposedLinear, QuantizedLinear
from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.awq import awq_quantize
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.quantize.calibration import post_training
from cupy_intfa.quantize.fake import fake_gradients, fake_quantize, initial_scale
from cupy_intfa.quantize.formats import CODEBOOKS, INTEGERS
from cupy_intfa.quantize.gptq import gptq_quantize
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.inputs import observe_inputs
from cupy_intfa.quantize.observers import observe
from cupy_intfa.quantize.outliers import decompose
from cupy_intfa.quantize.qat import accuracy, make_network, make_spirals, quantize_network, train
from cupy_intfa.quantize.ranges import METHODS, choose_range
from cupy_intfa.quantize.requantize import integer_matmul, multiplier_of, requantize
from cupy_intfa.quantize.smooth import smooth_quantize
from cupy_intfa.quantize.tensor import QuantizedTensor

pytestmark = pytest.mark.gpu
GRANULARITIES = (
    Granularity("tensor"),
    Granularity("row"),
    Granularity("channel"),
    Granularity("group", 48),
    Granularity("block", (8, 32)),
    Granularity("flat", 64),
)


def hard_values() -> Array:
    """Rows of all sizes, with zeros, subnormals, the largest floats, ties, NaN and infinities."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 130)) * 10.0 ** rng.integers(-40, 30, (40, 1))).astype(np.float32)
    x[3], x[4, ::2], x[5, 7], x[6, 9] = 0, 1e-40, np.nan, -np.inf
    x[7] = np.float32(3e38) * np.sign(x[7])
    x[8] = np.round(x[8] / np.abs(x[8]).max() * 254) / 2
    return x


def assert_same_bits(ours: QuantizedTensor, twin: QuantizedTensor) -> None:
    """Of all arrays, of what comes back of them, and of the bound of its error."""
    for (name, found), expected in zip(ours._arrays().items(), twin._arrays().values(), strict=True):
        assert found.dtype == expected.dtype
        assert found.get().tobytes() == expected.tobytes(), name
    back, wanted = ours.dequantize().get(), twin.dequantize()
    assert (np.isnan(back) == np.isnan(wanted)).all()
    assert (back == wanted)[~np.isnan(wanted)].all()
    np.testing.assert_array_equal(ours.error_bound().get(), twin.error_bound())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("format", INTEGERS)
def test_affine_bits(granularity: Granularity, format: str) -> None:
    import cupy

    x = hard_values()
    for host in (x, x[10:], (x[10:] / np.abs(x[10:]).max(axis=1, keepdims=True)).astype(np.float16)):
        device = cupy.asarray(host)
        assert_same_bits(quantize_symmetric(device, format, granularity), quantize_symmetric(host, format, granularity))
        for form in ("zero_point", "minimum"):
            ours = quantize_asymmetric(device, format, granularity, form=form)
            assert_same_bits(ours, quantize_asymmetric(host, format, granularity, form=form))


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebook_bits(name: str) -> None:
    import cupy

    x = hard_values()
    for granularity in (Granularity("row"), Granularity("flat", 64), Granularity("group", 50)):
        for host in (x, x[10:]):
            ours = quantize_blockwise(cupy.asarray(host), name, granularity)
            assert_same_bits(ours, quantize_blockwise(host, name, granularity))


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("granularity", [Granularity("row"), Granularity("flat", 64)], ids=str)
def test_double_quantised_scales_have_the_bits(name: str, granularity: Granularity) -> None:
    import cupy

    for host in (hard_values(), np.random.default_rng(5).standard_normal((300, 130)).astype(np.float16)):
        ours = quantize_blockwise(cupy.asarray(host), name, granularity, double=True)
        assert isinstance(ours.scale, QuantizedTensor)
        assert_same_bits(ours, quantize_blockwise(host, name, granularity, double=True))


def test_what_is_saved_from_the_gpu_is_what_numpy_would_have_saved(tmp_path: Path) -> None:
    import cupy

    x = np.random.default_rng(6).standard_normal((50, 70)).astype(np.float32)
    there = cupy.asarray(x)
    for ours, twin in (
        (quantize_symmetric(there, "int4", "row"), quantize_symmetric(x, "int4", "row")),
        (quantize_asymmetric(there, "uint8", "channel"), quantize_asymmetric(x, "uint8", "channel")),
        (quantize_blockwise(there, "fp4_bnb", double=True), quantize_blockwise(x, "fp4_bnb", double=True)),
        (quantize_blockwise(there, double=True), quantize_blockwise(x, double=True)),
    ):
        ours.save(tmp_path / "there.npz")
        back = QuantizedTensor.load(tmp_path / "there.npz")
        assert (back.shape, back.format, back.granularity) == (twin.shape, twin.format, twin.granularity)
        found, expected = back._arrays(), twin._arrays()
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert isinstance(found[name], np.ndarray)
            assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("format", "granularity"),
    [
        ("int8", Granularity("tensor")),
        ("int8", Granularity("row")),
        ("int8", Granularity("group", 48)),
        ("int4", Granularity("group", 128)),
        ("int2", Granularity("group", 7)),
    ],
    ids=str,
)
def test_integer_linear_layers_have_the_bits(format: str, granularity: Granularity, dtype: type) -> None:
    """Exact sums, and scales in one written order: with loud channels, rows of zeros and one that is not finite."""
    import cupy

    rng = np.random.default_rng(7)
    x, w, bias = rng.standard_normal((3, 11, 200)), rng.standard_normal((37, 200)), rng.standard_normal(37)
    x[..., 5] *= 90
    x[1, 2], x[2, 3, 4] = 0, np.nan
    x, w, bias = x.astype(dtype), w.astype(np.float32), bias.astype(np.float32)
    twin = QuantizedLinear(quantize_symmetric(w, format, granularity), bias)(x)
    weight = quantize_symmetric(cupy.asarray(w), format, granularity)
    found = QuantizedLinear(weight, cupy.asarray(bias))(cupy.asarray(x)).get()
    assert found.dtype == twin.dtype == dtype
    assert np.isnan(twin[2, 3]).all()
    assert (np.isnan(found) == np.isnan(twin)).all()
    assert (found == twin)[~np.isnan(twin)].all()


def test_float_linear_layers_err_by_the_order_of_their_sums() -> None:
    import cupy

    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((20, 300)).astype(np.float32), rng.standard_normal((40, 300)).astype(np.float32)
    twin = quantize_blockwise(w)
    found = QuantizedLinear(quantize_blockwise(cupy.asarray(w)), activations="float")(cupy.asarray(x)).get()
    exact = twin.dequantize().astype(np.float64)
    assert (np.abs(found - x @ exact.T) <= 301 * 2.0**-24 * (np.abs(x) @ np.abs(exact).T)).all()


@pytest.mark.parametrize("axis", [None, -1])
def test_observer_bits(axis: int | None) -> None:
    import cupy

    seen = twin = None
    for seed in range(3):
        batch = np.random.default_rng(seed).standard_t(3, (500, 6)).astype(np.float32) * np.float32(10.0**seed)
        seen, twin = observe(cupy.asarray(batch), seen, axis=axis), observe(batch, twin, axis=axis)
    assert seen is not None
    assert twin is not None
    for name in ("low", "high", "average_low", "average_high", "exponent", "histogram"):
        assert getattr(seen, name).get().tobytes() == getattr(twin, name).tobytes(), name
    for method, format in product(METHODS, ("int8", "int4")):
        for found, expected in zip(
            choose_range(seen, method, format=format), choose_range(twin, method, format=format), strict=True
        ):
            assert found.get().tobytes() == expected.tobytes()


def test_the_pipeline_gives_the_same_report() -> None:
    import cupy

    batches = [np.random.default_rng(seed).standard_t(3, (200, 6)).astype(np.float32) for seed in range(4)]
    there = [cupy.asarray(batch) for batch in batches]
    for symmetric in (True, False):
        ours = post_training(there[:3], there[3], method="mse", symmetric=symmetric)
        assert str(ours) == str(post_training(batches[:3], batches[3], method="mse", symmetric=symmetric))


def test_integer_arithmetic_bits() -> None:
    import cupy

    x = np.random.default_rng(1).standard_normal((50, 300)).astype(np.float32)
    a, b = (quantize_symmetric(y, "int8", "row") for y in (x, cupy.asarray(x)))
    (one, one_scale), (other, other_scale) = integer_matmul(a, a), integer_matmul(b, b)
    assert (other.get() == one).all()
    assert (other_scale.get() == one_scale).all()
    for ratio, bits in product((3e-4, 0.7, 900.0), (1, 31)):
        scaled = requantize(other, *multiplier_of(ratio, bits), "uint8", 128)
        assert (scaled.get() == requantize(one, *multiplier_of(ratio, bits), "uint8", 128)).all()


def test_fake_quantisation_bits() -> None:
    import cupy

    x = np.random.default_rng(2).standard_normal((20, 30)).astype(np.float32)
    scale = np.random.default_rng(3).uniform(0.05, 0.3, (20, 1)).astype(np.float32)
    host = x[::-1].copy(), x, scale
    there = cupy.asarray(host[0]), cupy.asarray(x), cupy.asarray(scale)
    values = [fake_quantize(y, s, "int4", "row") for _, y, s in (host, there)]
    through, slopes = zip(*(fake_gradients(g, y, s, "int4", "row") for g, y, s in (host, there)), strict=True)
    assert (values[1].get() == values[0]).all()
    assert (through[1].get() == through[0]).all()
    assert slopes[1].get() == pytest.approx(slopes[0], rel=1e-4, abs=1e-5)  # sums of 30 products in another order
    assert initial_scale(there[1]).get() == pytest.approx(initial_scale(x), rel=1e-5)


def test_training_on_the_gpu_ends_where_it_ends_on_the_cpu() -> None:
    """Sums in another order send 900 steps elsewhere in detail, not in what they reach."""
    import cupy

    x, labels = (cupy.asarray(y) for y in make_spirals(200, 0))
    network = {name: cupy.asarray(value) for name, value in make_network((2, 16, 16, 3), 0).items()}
    trained = train(network, x, labels, steps=600, rate=0.02)
    quantized = quantize_network(trained, x)
    aware = train(quantized, x, labels, steps=300, rate=0.005)
    full, lost, won = (accuracy(each, x, labels) for each in (trained, quantized, aware))
    assert full > 0.9
    assert lost < full - 0.03
    assert won > (full + lost) / 2


def test_weight_quantisers_reach_the_same_error() -> None:
    import cupy

    rng = np.random.default_rng(4)
    x = (rng.standard_normal((600, 96)) @ rng.standard_normal((96, 96))).astype(np.float32)
    weight = rng.standard_normal((40, 96)).astype(np.float32)
    seen, there = observe_inputs(x), observe_inputs(cupy.asarray(x))
    device = cupy.asarray(weight)
    assert there.moment.get() == pytest.approx(seen.moment, rel=1e-9, abs=1e-9)
    errors = []
    for inputs, w in ((seen, weight), (there, device)):
        made = (
            gptq_quantize(w, inputs, group=32),
            gptq_quantize(w, inputs, group=32, act_order=True),
            awq_quantize(w, inputs, group=32),
            smooth_quantize(w, inputs),
        )
        errors.append([inputs.output_error(w, each.dequantize()) for each in made])
    # The same choices but for values within 1e-12 of a tie.
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    split, twin = decompose(device, there, threshold=30), decompose(weight, seen, threshold=30)
    assert (split.columns.get() == twin.columns).all()
    found = DecomposedLinear(split)(cupy.asarray(x)).get()
    assert found == pytest.approx(DecomposedLinear(twin)(x), rel=1e-4, abs=1e-2)
