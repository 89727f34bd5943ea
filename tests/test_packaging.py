"""Every form of installing brings every CUDA source: wheel, sdist made into a wheel, editable."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cupy_intfa import kernels

CHECKOUT = Path(__file__).parents[1]
FIND_SOURCES = """
import site, sys
own = len(sys.path)
site.addsitedir(sys.argv[1])              # reads the .pth file of an editable install, PYTHONPATH would not
sys.path[:0] = sys.path[own:]             # before the install that runs these tests
from cupy_intfa import kernels
print(kernels.__file__, kernels.kernels_dir(), kernels.source_digest(), sep="\\n")
"""


def tree(folder: str, pattern: str) -> set[str]:
    """Return the files of a folder of the checkout, named as they are in it."""
    files = {path for path in (CHECKOUT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {path.relative_to(CHECKOUT).as_posix() for path in files if re.search(pattern, path.name)}


def python(*arguments: str | Path, cwd: Path) -> str:
    """Run this interpreter and return what it prints; its errors are shown when it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(target: Path, *what: str | Path) -> Path:
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    python("-m", "pip", "install", *offline, "--target", target, *what, cwd=target.parent)
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build from the checkout: the sdist, a wheel from that sdist, and a wheel directly."""
    root = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", root / "via", CHECKOUT, cwd=root)
    python("-m", "build", "--no-isolation", "--wheel", "--outdir", root / "direct", CHECKOUT, cwd=root)
    (sdist,) = (root / "via").glob("*.tar.gz")
    (via_sdist,) = (root / "via").glob("*.whl")
    (direct,) = (root / "direct").glob("*.whl")
    return {"sdist": sdist, "wheel via sdist": via_sdist, "wheel": direct}


@pytest.mark.parametrize("kind", ["wheel", "wheel via sdist"])
def test_wheel_holds_sources_and_data(dist: dict[str, Path], kind: str) -> None:
    sources = {f"cupy_intfa/{name}" for name in tree("kernels_cu", r"\.cuh?$")}
    data = tree("cupy_intfa/data", r"")
    modules = tree("cupy_intfa", r"\.py$")
    assert sources, "the checkout holds no CUDA source"
    assert data, "the checkout holds no data"
    with zipfile.ZipFile(dist[kind]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith((".cu", ".cuh"))} == sources
    assert {name for name in names if name.startswith("cupy_intfa/data/")} == data
    assert {name for name in names if name.endswith(".py")} == modules
    assert "cupy_intfa/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"cupy_intfa"}


def test_sdist_holds_what_builds_and_tests_it(dist: dict[str, Path]) -> None:
    with tarfile.open(dist["sdist"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = tree("kernels_cu", r"\.cuh?$") | tree("tests", r"\.py$") | tree("notebooks", r"^\d+_.*\.ipynb$")
    assert wanted - names == set()
    assert {"pyproject.toml", "Makefile", "requirements.txt", ".ci/run", "LICENSE"} - names == set()


@pytest.mark.parametrize("kind", ["wheel", "wheel via sdist"])
def test_installed_wheel_finds_its_sources(dist: dict[str, Path], tmp_path: Path, kind: str) -> None:
    target = install(tmp_path / "site", dist[kind])
    module, folder, digest = python("-c", FIND_SOURCES, target, cwd=tmp_path).splitlines()
    assert Path(module) == target / "cupy_intfa" / "kernels.py"
    assert Path(folder) == target / "cupy_intfa" / "kernels_cu"
    assert digest == kernels.source_digest()


def test_editable_install_finds_the_checkout(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("cupy_intfa", "kernels_cu"):
        shutil.copytree(CHECKOUT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, clone / name)
    target = install(tmp_path / "site", "--editable", clone)
    module, folder, digest = python("-c", FIND_SOURCES, target, cwd=tmp_path).splitlines()
    assert Path(module) == clone / "cupy_intfa" / "kernels.py"
    assert Path(folder) == clone / "kernels_cu"
    assert digest == kernels.source_digest()
    assert not (target / "cupy_intfa").exists(), "a copy beside the checkout would go stale"
