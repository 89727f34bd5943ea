"""Finding the CUDA sources and telling two states of them apart."""

from pathlib import Path

import pytest

from cupy_intfa import kernels


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
