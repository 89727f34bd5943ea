"""The files around the package agree with each other."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import cupy_intfa

CHECKOUT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
TARGETS = {"demo", "test", "test-gpu", "bench", "notebooks", "lint", "sanitize", "clean", "help"}


def text(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def make(*arguments: str, path: Path | None = None) -> str:
    """Return what make prints. Commands in the folder `path` win; the flags of an outer make are kept out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    done = subprocess.run(["make", *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(path: Path, script: str) -> None:
    """Write a shell script that stands in for a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_plain_make_lists_every_target() -> None:
    listed = re.findall(r"^  make (\S+) +\S", make(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(TARGETS)


@pytest.mark.parametrize("target", ["demo", "test", "test-gpu", "bench", "notebooks", "lint"])
def test_target_makes_its_venv(target: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    commands = make("-n", target, f"VENV={venv}")
    assert f"-m venv {venv}" in commands
    extras = set(re.findall(rf"touch {venv}/.ready-(\S+)", commands))
    assert extras
    assert extras <= set(EXTRAS)


@pytest.mark.parametrize("target", ["demo", "test", "test-gpu", "bench", "notebooks", "lint", "sanitize"])
def test_named_interpreter_is_used_as_it_is(target: str) -> None:
    commands = make("-n", target, "PY=/some/python")
    assert "/some/python -m " in commands
    assert "venv" not in commands
    assert "pip" not in commands


@pytest.mark.parametrize(
    ("nvidia_smi", "extras", "said"),
    [
        ("echo '| Driver Version: 580.95   CUDA Version: 13.0   |'", "plot,cuda13x", "13"),
        ("echo '| Driver Version: 700.10   CUDA UMD Version: 14.1 |'", "plot,cuda13x", "14"),
        ("echo '| Driver Version: 570.86   CUDA Version: 12.8   |'", "plot,cuda12x", "12"),
        ("echo '| Driver Version: 470.57   CUDA Version: 11.4   |'", "plot", "11, too old for CuPy 14"),
        ("echo 'could not communicate with the NVIDIA driver'; exit 9", "plot", "none found, so no CuPy"),
    ],
    ids=["13", "later", "12", "11", "none"],
)
def test_driver_chooses_the_cupy_wheel(tmp_path: Path, nvidia_smi: str, extras: str, said: str) -> None:
    command(tmp_path / "bin" / "nvidia-smi", nvidia_smi)
    command(tmp_path / "venv" / "bin" / "python", 'echo "python $*"')
    printed = make("demo", f"VENV={tmp_path / 'venv'}", path=tmp_path / "bin")
    assert f"CUDA of the driver: {said}; installing .[{extras}] into" in printed
    assert f"python -m pip install --quiet -e .[{extras}]" in printed
    assert "python -m cupy_intfa demo" in printed
    again = make("demo", f"VENV={tmp_path / 'venv'}", path=tmp_path / "bin")
    assert "install" not in again


def test_gpu_target_requires_the_gpu() -> None:
    assert "-m gpu --require-gpu" in make("-n", "test-gpu", "PY=python")


def test_requirements_name_extras_alone() -> None:
    lines = [line for line in text("requirements.txt").splitlines() if line and not line.startswith("#")]
    (extras,) = re.findall(r"^-e \.\[([\w,]+)\]$", "\n".join(lines))
    assert set(extras.split(",")) <= set(EXTRAS)


def test_base_needs_no_gpu_and_no_framework() -> None:
    base = {re.split(r"[<>=!~]", line)[0] for line in PYPROJECT["project"]["dependencies"]}
    assert base == {"numpy", "scipy", "ml_dtypes", "array-api-compat", "threadpoolctl"}


def test_nvrtc_is_one_version_for_tests_and_gpu() -> None:
    (toolkit,) = (line for line in EXTRAS["cuda13x"] if line.startswith("cuda-toolkit"))
    version = toolkit.split("==")[1]
    assert "cupy-intfa[simulate]" in EXTRAS["test"]
    assert EXTRAS["simulate"] == [f"nvidia-cuda-nvrtc=={version}"]


def test_ci_lints_and_tests() -> None:
    commands = text(".ci/run").splitlines()
    assert "make lint" in commands
    assert commands[-1] == "make test"
    assert (CHECKOUT / ".ci" / "run").stat().st_mode & 0o111


def test_changelog_starts_with_this_version() -> None:
    first = re.search(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), flags=re.MULTILINE)
    assert first is not None
    assert first[1] == cupy_intfa.__version__
