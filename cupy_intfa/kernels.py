"""Where the CUDA sources are, and what identifies them."""

import hashlib
from pathlib import Path

_PACKAGED = Path(__file__).parent / "kernels_cu"
_CHECKOUT = Path(__file__).parents[1] / "kernels_cu"


def kernels_dir() -> Path:
    """
    Return the folder of the CUDA sources.

    A wheel carries it inside the package; a checkout, and so an editable install, has it beside the package.

    Returns
    -------
    pathlib.Path
        An existing folder.

    Raises
    ------
    FileNotFoundError
        If neither folder exists: the installation is incomplete.

    Examples
    --------
    >>> kernels_dir().name
    'kernels_cu'
    """
    for folder in (_PACKAGED, _CHECKOUT):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"expected the CUDA sources in {_PACKAGED} (installed) or {_CHECKOUT} (checkout), found neither: "
        "install cupy-intfa again from its wheel or from a complete checkout"
    )


def source_names() -> tuple[str, ...]:
    """
    List the CUDA sources and headers.

    Returns
    -------
    tuple of str
        Paths relative to `kernels_dir`, with forward slashes, sorted.

    Examples
    --------
    >>> all(name.endswith((".cu", ".cuh")) for name in source_names())
    True
    """
    root = kernels_dir()
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in (".cu", ".cuh"))
    return tuple(sorted(found))


def source_digest() -> str:
    """
    Return the SHA-256 over the names and the contents of all sources.

    CuPy's disk cache sees a source's own text but not the headers that it includes (CuPy 14.2). A line with
    this digest in front of the source makes an edit of any header a new cache key.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> len(source_digest())
    64
    """
    root, digest = kernels_dir(), hashlib.sha256()
    for name in source_names():
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())  # lengths, so that no text can pass for a border
        digest.update(content)
    return digest.hexdigest()
