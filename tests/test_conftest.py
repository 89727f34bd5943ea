"""The GPU marker's rule and the profiles: pytest run on small files under this suite's conftest."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parent / "conftest.py").read_text(encoding="utf-8")
SUITE = """
import pytest

@pytest.mark.gpu
def test_on_gpu():
    pass

def test_anywhere():
    pass
"""
CUPY = """
class cuda:
    class runtime:
        getDeviceCount = staticmethod(lambda: {devices})
"""
PROFILE = """
from hypothesis import settings

def test_profile():
    profile = settings()
    assert (profile.max_examples, profile.derandomize, profile.deadline) == ({examples}, {derandomise}, None)
"""


def run_suite(pytester: pytest.Pytester, cupy: str, *options: str) -> pytest.RunResult:
    """Run one gpu and one plain test beside a stand-in `cupy.py`."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers = gpu: needs a GPU\npythonpath = .")
    pytester.makepyfile(cupy=cupy, test_suite=SUITE)
    return pytester.runpytest_subprocess("-rs", *options)


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        ("raise PermissionError('~/.cupy')", "*no GPU through CuPy: PermissionError: ~/.cupy*"),
        (CUPY.format(devices=0), "*no GPU through CuPy: it sees 0 devices*"),
    ],
    ids=["import fails", "no device"],
)
def test_without_gpu_skips_and_required_fails(pytester: pytest.Pytester, cupy: str, reason: str) -> None:
    skipped = run_suite(pytester, cupy)
    skipped.assert_outcomes(passed=1, skipped=1)
    skipped.stdout.fnmatch_lines([f"SKIPPED{reason}"])

    required = run_suite(pytester, cupy, "--require-gpu")
    required.assert_outcomes(passed=1, errors=1)
    required.stdout.fnmatch_lines([f"{reason}(--require-gpu is set)"])
    assert required.ret == pytest.ExitCode.TESTS_FAILED


def test_with_gpu_runs(pytester: pytest.Pytester) -> None:
    run_suite(pytester, CUPY.format(devices=1), "--require-gpu").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("environment", "examples", "derandomise"),
    [
        ({}, 30, False),
        ({"CI": "true"}, 60, True),
        ({"CI": "true", "HYPOTHESIS_PROFILE": "nightly"}, 1000, False),
    ],
    ids=["dev", "ci", "nightly"],
)
def test_profile_follows_environment(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    examples: int,
    derandomise: bool,
) -> None:
    for name in ("CI", "HYPOTHESIS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_profile=PROFILE.format(examples=examples, derandomise=derandomise))
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
