"""The commands: what they print is what was computed, their JSON says the same, and they fail when they should."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import cupy_intfa
from cupy_intfa import PRESETS, attention, cli, demo, explain, selftest
from cupy_intfa.data import load_activations
from cupy_intfa.data.families import make_qkv
from cupy_intfa.reference import oracle

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command and return what it printed to stdout."""

    def run(*arguments: str, status: int = 0) -> str:
        assert cli.main(arguments) == status
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def quick() -> demo.Demo:
    return demo.run_demo(demo.QUICK, "numpy")


@pytest.fixture
def demo_once(monkeypatch: pytest.MonkeyPatch, quick: demo.Demo) -> None:
    """Let every run of the command show the errors of one run of the demo."""
    monkeypatch.setattr(cli, "run_demo", lambda size, backend: quick)


def relative_rmse(out: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2)))


def test_python_m_runs_the_commands(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "cupy_intfa"]
    package = Path(cupy_intfa.__file__).parents[1]
    for arguments, status in (
        (("info", "--json"), 0),
        (("explain", "--heads", "0"), 2),
        (("demo", "--quick", "--output", str(tmp_path / "a.png")), 0),
    ):
        done = subprocess.run([*command, *arguments], cwd=package, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert bool(done.stderr) == bool(status)
    assert (tmp_path / "a.png").read_bytes()[-8:-4] == b"IEND"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "required: command"),
        (("train",), "invalid choice: 'train'"),
        (("demo", "--fast"), "unrecognized arguments: --fast"),
        (("explain", "--q-len", "many"), "invalid int value: 'many'"),
        (("explain", "--recipe", "fastest"), "invalid choice: 'fastest'"),
        (("explain", "--kv-heads", "0"), "every axis must be at least 1 long"),
        (("explain", "--kv-heads", "3"), "q has 8 heads and k has 3: expected a multiple"),
        (("explain", "--kv-len", "7", "--causal"), "pass causal_alignment='top_left'"),
        (("explain", "--head-dim", "300"), "head dimension is 300: expected at most 256"),
        (("explain", "--backend", "cuda"), "backend='cuda': there is no GPU (it fell out)"),
    ],
)
def test_wrong_arguments_exit_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.setattr(cli, "default_device", lambda: "it fell out")
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


def test_demo_measures_what_it_names(quick: demo.Demo) -> None:
    real = load_activations()
    assert quick.layers.columns == ("0", "1", "2", "3", "4", "5")
    assert quick.families.columns == ("normal", "outlier", "channel")
    assert quick.lengths.columns == ("128", "256", "512")
    layer = [x[3].astype(np.float32) for x in (real.q, real.k, real.v)]
    outlier = make_qkv("outlier", heads=2, q_len=64, kv_len=512)
    longest = make_qkv("normal", heads=2, q_len=64, kv_len=512)
    for table, column, arrays in (
        (quick.layers, 3, layer),
        (quick.families, 1, outlier),
        (quick.lengths, 2, longest),
    ):
        expected = oracle.attention(*arrays)[0]
        for preset in PRESETS:
            error = relative_rmse(attention(*arrays, recipe=preset), expected)
            assert table.errors[preset][column] == pytest.approx(error, rel=1e-12)
    assert quick.backend == "numpy"
    assert quick.model == real.model


def test_demo_prints_the_table(run: Run, demo_once: None, quick: demo.Demo, tmp_path: Path) -> None:
    lines = run("demo", "--quick", "--output", str(tmp_path / "a.png")).splitlines()
    head = next(i for i, line in enumerate(lines) if "layer 0" in line)
    assert lines[head].replace("layer ", "").split() == [*"012345", "mean", "normal", "outlier", "channel"]
    rows = [line.split() for line in lines[head + 1 : head + 1 + len(PRESETS)]]
    assert [row[0] for row in rows] == list(PRESETS)
    for preset, *printed in rows:
        layers, families = quick.layers.errors[preset], quick.families.errors[preset]
        expected = [*layers, sum(layers) / 6, *families]
        assert [float(x) for x in printed] == pytest.approx(expected, rel=5e-3)  # three digits
    assert f"backend numpy, {quick.seconds:.1f} s" in lines
    assert lines[-1] == f"picture: {tmp_path / 'a.png'}"


def test_demo_json_equals_the_table(run: Run, demo_once: None, quick: demo.Demo, tmp_path: Path) -> None:
    found = json.loads(run("demo", "--json", "--output", str(tmp_path / "a.png")))
    assert found["picture"] == str(tmp_path / "a.png")
    assert found["backend"] == quick.backend
    for name, table in (("table", quick.table), ("lengths", quick.lengths)):
        assert tuple(found[name]["columns"]) == table.columns
        assert {preset: tuple(row) for preset, row in found[name]["errors"].items()} == table.errors


def test_demo_draws_a_png(run: Run, demo_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("demo")
    (file,) = tmp_path.iterdir()
    assert file.name == "cupy_intfa_demo.png"
    picture: np.ndarray = imread(file)  # decodes, or raises
    height, width, _ = picture.shape
    assert width > height > 300
    for half in (picture[:, : width // 2], picture[:, width // 2 :]):  # lines of many colours in each panel
        assert len(np.unique((half[..., :3] * 255).astype(int).reshape(-1, 3), axis=0)) > 8 * len(PRESETS)


def test_demo_without_matplotlib_says_so(
    demo_once: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what makes an import raise ImportError
    assert cli.main(["demo"]) == 0
    printed = capsys.readouterr()
    assert "pip install 'cupy-intfa[plot]'" in printed.err
    assert "layer 5" in printed.out
    assert cli.main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] is None
    assert cli.main(["demo", "--output", "asked_for.png"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_that_cannot_write_exits_with_2(
    demo_once: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--output", str(tmp_path / "nowhere" / "a.png")])
    assert caught.value.code == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_check_passes_and_covers_every_preset(run: Run) -> None:
    lines = run("check").splitlines()
    checks = list(selftest.self_test())
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"ok    {check.name}" for check in checks]
    assert lines[-1] == f"{len(checks)} of {len(checks)} checks passed"
    for preset in PRESETS:
        assert sum(check.name.startswith(f"{preset}, ") for check in checks) == 6
    assert set(selftest._LIMITS) == set(PRESETS)


Change = Callable[[np.ndarray, str], np.ndarray]


def wrong_by(change: Change) -> Callable[..., Any]:
    """Make an attention whose output is changed, knowing the layout."""

    def wrong(*arrays: np.ndarray, return_lse: bool = False, layout: str = "bhsd", **options: Any) -> Any:
        out, lse = attention(*arrays, return_lse=True, layout=layout, **options)
        return (change(out, layout), lse) if return_lse else change(out, layout)

    return wrong


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda out, layout: out * np.float32(1.2), {"square", "causal", "five queries", "quantised first"}),
        (lambda out, layout: np.nan_to_num(out), {"NaN in q"}),
        (lambda out, layout: -out if layout == "bshd" else out, {"strided and read-only input"}),
    ],
    ids=["20 % too large", "NaN hidden", "strides misread"],
)
def test_check_fails_where_attention_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: Change, failing: set[str]
) -> None:
    monkeypatch.setattr(selftest, "attention", wrong_by(change))
    assert cli.main(["check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    of_fast = [check for check in found["checks"] if check["name"].startswith("fast, ")]
    assert {check["name"].split(", ")[1] for check in of_fast if not check["passed"]} == failing


def test_what_cannot_run_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arrays: np.ndarray, **options: Any) -> Any:
        raise NotImplementedError(f"no {options['backend']} here")

    for module in (demo, selftest):
        monkeypatch.setattr(module, "attention", refuse)
    assert cli.main(["check", "--backend", "cuda"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAIL  paper, square: NotImplementedError: no cuda here"
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--backend", "numpy"])
    assert caught.value.code == 2
    assert "no numpy here" in capsys.readouterr().err


def test_info_says_what_is_installed(run: Run) -> None:
    found = json.loads(run("info", "--json"))
    text = run("info")
    assert found["packages"]["numpy"] == np.__version__
    assert found["sources"] == list(cupy_intfa.kernels.source_names())
    kernels = [name.removesuffix(".cu") for name in found["sources"] if name.endswith(".cu")]
    for value in (*found["packages"].values(), found["python"], *kernels):
        assert (value or "not installed") in text
    assert set(found["kernels"]) | set(found["kernels_missing"]) == set(PRESETS)


NO_CUPY = {"__init__.py": "raise PermissionError('~/.cupy')"}
ONE_GPU = {
    "__init__.py": "__version__ = '14.9.9'\nfrom cupy import cuda",
    "cuda/__init__.py": """
from types import SimpleNamespace

Device = lambda: SimpleNamespace(id=0)
gpu = dict(name=b"Fast GPU", major=9, minor=0, multiProcessorCount=132, sharedMemPerBlockOptin=232448)
nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
runtime = SimpleNamespace(
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda ordinal: gpu,
    driverGetVersion=lambda: 13010,
    runtimeGetVersion=lambda: 12090,
)
""",
}


def info(cupy: dict[str, str], folder: Path) -> tuple[dict[str, Any], str]:
    """Run the command beside a stand-in for CuPy; return its JSON and its text."""
    for name, source in cupy.items():
        (folder / "cupy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cupy" / name).write_text(source)
    found, text = (
        subprocess.run(
            [sys.executable, "-m", "cupy_intfa", "info", *form],
            cwd=Path(cupy_intfa.__file__).parents[1],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for form in (("--json",), ())
    )
    return json.loads(found), text


def test_info_keeps_the_reason_why_cupy_fails(tmp_path: Path) -> None:
    found, text = info(NO_CUPY, tmp_path)
    assert (found["cupy"], found["cupy_missing"], found["devices"]) == (None, "PermissionError: ~/.cupy", [])
    assert "not usable: PermissionError: ~/.cupy" in text
    assert found["kernels"] == {}
    assert all("PermissionError: ~/.cupy" in reason for reason in found["kernels_missing"].values())
    assert f"none for {', '.join(PRESETS)}: " in text


def test_info_with_a_gpu_names_it_and_its_kernels(tmp_path: Path) -> None:
    found, text = info(ONE_GPU, tmp_path)
    versions = {name: found[name] for name in ("cupy", "cupy_missing", "driver", "runtime", "nvrtc")}
    assert versions == {"cupy": "14.9.9", "cupy_missing": None, "driver": "13.1", "runtime": "12.9", "nvrtc": "13.0"}
    (device,) = found["devices"]
    assert (device["name"], device["capability"]) == ("Fast GPU", [9, 0])
    assert "Fast GPU (sm_90)" in text
    assert f"{found['kernels']['fast']}.cu" in found["sources"]
    assert f"{found['kernels']['fast']} for " in text


def test_explain_plans_what_the_arrays_would(run: Run) -> None:
    q, k, v = make_qkv("zeros", batch=2, heads=4, kv_heads=2, q_len=5, kv_len=33, head_dim=16, dtype=np.float16)
    plan = explain(q, k, v, is_causal=True, causal_alignment="bottom_right", recipe="precise", backend="numpy")
    shape = ("--batch=2", "--heads=4", "--kv-heads=2", "--q-len=5", "--kv-len=33", "--head-dim=16", "--dtype=float16")
    rest = ("--causal", "--alignment=bottom_right", "--recipe=precise", "--backend=numpy")
    arguments = ("explain", *shape, *rest)
    assert run(*arguments) == f"{plan}\n"
    found = json.loads(run(*arguments, "--json"))
    assert found["problem"]["causal_offset"] == plan.problem.causal_offset == 28
    assert found["recipe"]["p_reference"] == "tile"
    assert found["operations"] == plan.operations == 4 * 2 * 4 * 16 * sum(range(29, 34))
    assert found["reasons"] == list(plan.reasons)


def test_explain_defaults_to_as_many_keys_as_queries(run: Run) -> None:
    problem = json.loads(run("explain", "--q-len", "70", "--heads", "6", "--json"))["problem"]
    assert (problem["kv_len"], problem["kv_heads"], problem["causal_offset"]) == (70, 6, None)
