"""What the kernels' tests share."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: the workers of pytest-xdist share the cores already, and the heads of a case too."""
    with threadpool_limits(1, "blas"):
        yield
