"""What every test shares: the GPU marker's rule and the hypothesis profiles."""

import functools
import os

import pytest
from hypothesis import HealthCheck, settings

# No deadline and no health check that reads a clock: a slow or busy machine must not turn a test red.
# `derandomize` is always named: under CI hypothesis turns it on in every profile that is silent about it.
for name, examples, derandomize in (("dev", 30, False), ("ci", 60, True), ("nightly", 1000, False)):
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
IN_CI = os.environ.get("CI") == "true"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IN_CI else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="a gpu test without a GPU: error, not skip")


@functools.cache
def missing_gpu() -> str | None:
    """Return why no GPU can be used, or None when one can."""
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # importing CuPy can raise more than ImportError, e.g. where HOME is read-only
        return f"no GPU through CuPy: {type(error).__name__}: {error}"
    return None if count else "no GPU through CuPy: it sees 0 devices"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or (reason := missing_gpu()) is None:
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail(f"{reason} (--require-gpu is set)", pytrace=False)
    pytest.skip(reason)
