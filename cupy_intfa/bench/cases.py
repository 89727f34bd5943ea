"""What is measured: shapes, and the named suites of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of attention.

    Parameters
    ----------
    batch, heads, kv_heads : int
        B, Hq and Hkv.
    q_len, kv_len : int
        Sq and Skv.
    head_dim : int
        D.
    causal : bool
        Whether key j hides from query i < j. Only for equal lengths, where every library means the same by it.
    dtype : {"float16", "bfloat16"}
        Of the inputs that an end-to-end call starts from.

    Raises
    ------
    ValueError
        For a causal case of unequal lengths.

    Examples
    --------
    >>> case = square(batch=4, heads=32, length=16384, head_dim=128, causal=True)
    >>> print(case)
    B4 H32 S16k D128 causal
    >>> round(case.tops(20.0), 1)
    439.8
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    causal: bool = False
    dtype: str = "float16"

    def __post_init__(self) -> None:
        """Refuse a mask that libraries align differently."""
        if self.causal and self.q_len != self.kv_len:
            raise ValueError(f"a causal case of {self.q_len} queries and {self.kv_len} keys: expected equal lengths")

    def __str__(self) -> str:
        """Name the shape."""
        heads = f"H{self.heads}" if self.heads == self.kv_heads else f"H{self.heads}/{self.kv_heads}"
        return f"B{self.batch} {heads} {self.label}"

    @property
    def label(self) -> str:
        """Length and head dimension, for the head of a column."""
        lengths = [_short(n) for n in dict.fromkeys((self.q_len, self.kv_len))]
        return f"S{'×'.join(lengths)} D{self.head_dim}{' causal' if self.causal else ''}"

    @property
    def q_shape(self) -> tuple[int, int, int, int]:
        """Shape of q."""
        return self.batch, self.heads, self.q_len, self.head_dim

    @property
    def kv_shape(self) -> tuple[int, int, int, int]:
        """Shape of k and of v."""
        return self.batch, self.kv_heads, self.kv_len, self.head_dim

    @property
    def operations(self) -> float:
        """Count 4 · B · Hq · Sq · Skv · D, and half of it when causal: what publications divide by the time."""
        products = 4 * self.batch * self.heads * self.q_len * self.kv_len * self.head_dim
        return products / 2 if self.causal else float(products)

    def tops(self, ms: float) -> float:
        """Give 10¹² operations per second for a call of so many milliseconds."""
        return self.operations / ms / 1e9


def square(*, batch: int, heads: int, length: int, head_dim: int, causal: bool = False) -> Case:
    """Make a case of as many keys as queries and one key head for each query head.

    Parameters
    ----------
    batch, heads, length, head_dim : int
        B, H, S and D.
    causal : bool
        Whether it is masked.

    Returns
    -------
    Case
        In float16.
    """
    return Case(batch=batch, heads=heads, kv_heads=heads, q_len=length, kv_len=length, head_dim=head_dim, causal=causal)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


@dataclass(frozen=True)
class Suite:
    """Cases that are measured in one way and reported together.

    Parameters
    ----------
    name : str
        What the command line calls it.
    measures : {"speed", "host", "first_call", "bandwidth"}
        What is measured.
    text : str
        What it shows.
    cases : tuple of Case
        In the order of the report.
    """

    name: str
    measures: str
    text: str
    cases: tuple[Case, ...]


def _cases(lengths: tuple[int, ...], *head_dims: int, causal: bool = False) -> tuple[Case, ...]:
    return tuple(square(batch=4, heads=32, length=n, head_dim=d, causal=causal) for d in head_dims for n in lengths)


_LENGTHS = (1024, 2048, 4096, 8192, 16384)
_PREFILL = (
    *_cases((1024, 4096, 16384), 64),
    *_cases(_LENGTHS, 128),
    square(batch=2, heads=16, length=8192, head_dim=256),
)
_CAUSAL = (*_cases((1024, 4096, 16384), 128, causal=True), *_cases((4096, 16384), 64, causal=True))
_TINY = (square(batch=1, heads=8, length=128, head_dim=64),)

_SUITES = (
    Suite(
        "paper",
        "speed",
        "the paper's comparison, D64 and lengths of 1k to 16k",
        _cases(_LENGTHS, 64),
    ),
    Suite("prefill", "speed", "no mask: D64 of three lengths, D128 of five, D256", _PREFILL),
    Suite("causal", "speed", "causal mask: D128 of three lengths, D64 of two", _CAUSAL),
    Suite("host", "host", "what a tiny call costs the host, which does not wait for the GPU", _TINY),
    Suite("first_call", "first_call", "the first call of a process: compiling, or from disk", _cases((1024,), 128)),
    Suite("quantise", "bandwidth", "the quantise kernels against a device copy of the same run", _cases((16384,), 128)),
)

SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _SUITES})
