"""Finding the CUDA sources, telling two states of them apart, and loading each kernel once."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cupy_intfa import kernels


@pytest.fixture(autouse=True)
def _nothing_is_loaded() -> Iterator[None]:
    kernels.reload()
    yield
    kernels.reload()  # kernels of a made-up CuPy, the digest of made-up sources


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small folder of sources that stands in for the checkout's."""
    root = tmp_path / "kernels_cu"
    (root / "intfa").mkdir(parents=True)
    (root / "b.cu").write_text("// b")
    (root / "intfa" / "config.cuh").write_text("// config")
    (root / "README.md").write_text("not a source")
    (root / "old.cubin").write_text("not a source")
    monkeypatch.setattr(kernels, "_PACKAGED", tmp_path / "absent")
    monkeypatch.setattr(kernels, "_CHECKOUT", root)
    return root


def test_names_are_sorted_relative_and_sources_only(sources: Path) -> None:
    assert kernels.source_names() == ("b.cu", "intfa/config.cuh")


def test_packaged_folder_comes_before_checkout(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PACKAGED", sources / "intfa")
    assert kernels.kernels_dir() == sources / "intfa"


def test_missing_sources_say_where_they_were_expected(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CHECKOUT", sources / "gone")
    with pytest.raises(FileNotFoundError, match=r"absent.*gone.*found neither: install cupy-intfa again"):
        kernels.kernels_dir()


def test_digest_is_the_same_for_the_same_sources(sources: Path) -> None:
    before = kernels.source_digest()
    (sources / "README.md").write_text("a page, not a source")
    assert kernels.source_digest() == before


def test_digest_sees_a_header_edit_a_new_file_and_a_new_name(sources: Path) -> None:
    header = sources / "intfa" / "config.cuh"
    digests = [kernels.source_digest()]
    header.write_text("// Config")
    digests.append(kernels.source_digest())
    (sources / "a.cu").write_text("")
    digests.append(kernels.source_digest())
    header.rename(sources / "intfa" / "setup.cuh")
    digests.append(kernels.source_digest())
    assert len(set(digests)) == 4


def test_digest_keeps_name_and_content_apart(sources: Path) -> None:
    (sources / "c.cu").write_text("xd.cu\x001\x00y")
    one_file = kernels.source_digest()
    (sources / "c.cu").write_text("x")
    (sources / "d.cu").write_text("y")
    assert kernels.source_digest() != one_file


def test_text_begins_with_the_digest_and_names_the_file(sources: Path) -> None:
    assert kernels.source_text("b") == f'// {kernels.source_digest()}\n#line 1 "b.cu"\n// b'


def test_text_is_read_as_utf8(sources: Path) -> None:
    (sources / "b.cu").write_text("// 255 · 127", "utf-8")
    assert kernels.source_text("b").endswith("\n// 255 · 127")


def test_reload_makes_a_header_edit_another_key_of_the_disk_cache(sources: Path) -> None:
    before = kernels.source_text("b")
    (sources / "intfa" / "config.cuh").write_text("// another line, in a header that CuPy's key does not see")
    assert kernels.source_text("b") == before, "looked for changes at every call"
    kernels.reload()
    first, rest = kernels.source_text("b").split("\n", 1)
    assert first == f"// {kernels.source_digest()}" != before.split("\n", 1)[0]
    assert rest == before.split("\n", 1)[1]


def test_options_name_the_headers_and_the_macros(sources: Path) -> None:
    assert kernels.compile_options(("D=64", "QK=0")) == ("--std=c++17", f"-I{sources}", "-DINTFA_D=64", "-DINTFA_QK=0")


class FakeCuPy:
    """Stands in for the module: keeps what is compiled, and lets a test look in while it is."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.while_compiling: Callable[[], None] = lambda: None

    def RawModule(self, **options: Any) -> SimpleNamespace:
        self.compiled.append(options)
        self.while_compiling()
        return SimpleNamespace(get_function=self._function)

    def _function(self, entry: str) -> SimpleNamespace:
        kernel = SimpleNamespace(entry=entry, max_dynamic_shared_size_bytes=0, num_regs=40, local_size_bytes=8)
        kernel.kernel = kernel  # a RawKernel's Function
        return kernel


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCuPy:
    fake = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_kernel_is_compiled_from_its_text_with_its_options(sources: Path, cupy: FakeCuPy) -> None:
    kernel = kernels.load_kernel("b", ("D=64",), 0)
    (call,) = cupy.compiled
    assert call == {
        "code": kernels.source_text("b"),
        "options": kernels.compile_options(("D=64",)),
        "backend": "nvrtc",
    }
    assert isinstance(call["options"], tuple), "CuPy takes nothing else"
    assert kernel.entry == "b"
    assert kernels.load_kernel("b", ("D=64",), 0, entry="other").entry == "other"


def test_kernel_is_compiled_once_for_each_device_and_each_set_of_macros(sources: Path, cupy: FakeCuPy) -> None:
    asked = [("b", ("D=64",), 0), ("b", ("D=64",), 1), ("b", ("D=96",), 0)]
    first = [kernels.load_kernel(*arguments) for arguments in asked]
    again = [kernels.load_kernel(*arguments) for arguments in asked]
    assert len(cupy.compiled) == len({id(kernel) for kernel in first}) == 3
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_attributes_are_those_of_a_loaded_kernel_and_load_none(sources: Path, cupy: FakeCuPy) -> None:
    assert kernels.find_loaded("b", ("D=64",), 0) is None
    assert not cupy.compiled
    kernels.load_kernel("b", ("D=64",), 0)
    found = kernels.find_loaded("b", ("D=64",), 0)
    assert found
    assert (found.registers, found.local_bytes) == (40, 8)
    assert kernels.find_loaded("b", ("D=64",), 1) is None


def test_reload_compiles_what_has_been_edited(sources: Path, cupy: FakeCuPy) -> None:
    kernels.load_kernel("b", (), 0)
    (sources / "b.cu").write_text("// edited")
    kernels.load_kernel("b", (), 0)
    assert len(cupy.compiled) == 1
    kernels.reload()
    kernels.load_kernel("b", (), 0)
    assert [call["code"].splitlines()[-1] for call in cupy.compiled] == ["// b", "// edited"]


@pytest.mark.parametrize(("asked", "granted"), [(48 * 1024, 0), (48 * 1024 + 1, 48 * 1024 + 1)])
def test_shared_memory_is_asked_for_beyond_what_every_block_has(
    sources: Path, cupy: FakeCuPy, asked: int, granted: int
) -> None:
    assert kernels.load_kernel("b", (), 0, asked).max_dynamic_shared_size_bytes == granted


def test_two_threads_compile_once(sources: Path, cupy: FakeCuPy) -> None:
    both = threading.Barrier(2)

    def meet() -> None:
        """Wait for a second thread in here: where the lock holds, none comes."""
        try:
            both.wait(timeout=0.2)
        except threading.BrokenBarrierError:
            return
        pytest.fail("two threads compile at once")

    cupy.while_compiling = meet
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: kernels.load_kernel("b", (), 0), range(2))
    assert one is other
    assert len(cupy.compiled) == 1


@pytest.mark.parametrize(
    ("seconds", "logged"), [(0.75, ["compiled b (D=64 QK=0) in 0.8 s, once: CuPy keeps it on disk"]), (0.25, [])]
)
def test_slow_compile_logs_one_line_and_a_disk_cache_hit_none(
    sources: Path,
    cupy: FakeCuPy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    logged: list[str],
) -> None:
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for _ in range(2):
        kernels.load_kernel("b", ("D=64", "QK=0"), 0)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("cupy_intfa", "WARNING", line) for line in logged
    ]
