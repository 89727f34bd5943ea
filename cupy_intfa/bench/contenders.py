"""Who is measured: a name, the package behind it, and how it is made ready for a case; ours among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from typing import Any

from cupy_intfa.attention import attention, attention_quantized, quantize_qkv
from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.timing import Call
from cupy_intfa.recipe import PRESETS, Recipe

Inputs = tuple[Any, Any, Any]  # q, k, v: CuPy arrays (B, H, S, D)


def _as_it_is(out: Any) -> Any:
    return out


@dataclass(frozen=True)
class Forms:
    """The calls of a contender on one set of inputs.

    Parameters
    ----------
    kernel : callable or None
        Attention from tensors already quantised; None for a contender that quantises nothing.
    e2e : callable or None
        Attention from the 16-bit inputs, quantising included; None for one that brings no quantiser.
    decode : callable
        Turns what a call returns into (B, H, S, D); not timed.
    """

    kernel: Call | None = None
    e2e: Call | None = None
    decode: Callable[[Any], Any] = _as_it_is

    @property
    def named(self) -> dict[str, Call]:
        """The forms that there are."""
        return {name: call for name, call in (("kernel", self.kernel), ("e2e", self.e2e)) if call is not None}


@dataclass(frozen=True)
class Contender:
    """Something that computes attention.

    Parameters
    ----------
    name : str
        Its row in the tables.
    package : str or None
        Name of the distribution whose version is reported; None for this package itself.
    prepare : callable
        (case, inputs) → Forms; raises NotImplementedError for a case that it cannot run.
    modules : tuple of str
        What has to be importable.
    version : str
        What the distribution's version starts with.
    """

    name: str
    package: str | None
    prepare: Callable[[Case, Inputs], Forms]
    modules: tuple[str, ...] = ()
    version: str = ""

    def missing(self) -> str | None:
        """Tell why this contender cannot run here, if it cannot."""
        if self.package is None:
            return None
        try:
            found = metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return f"{self.package} is not installed"
        if not found.startswith(self.version):
            return f"{self.package} is {found}: expected {self.version}x"
        for module in self.modules:
            try:
                import_module(module)
            except Exception as error:  # extensions built for another torch or CUDA raise many kinds
                return f"{module}: {first_line(error)}"
        return None


def first_line(error: Exception) -> str:
    """Say what went wrong on one line of at most 200 characters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


def make_contender(name: str, recipe: str | Recipe) -> Contender:
    """Let a recipe of ours compete.

    Parameters
    ----------
    name : str
        Its row in the tables.
    recipe : str or Recipe
        As in `attention`.

    Returns
    -------
    Contender
        On the GPU, by the kernel that the plan takes.
    """
    return Contender(name, None, partial(_prepare, recipe))


def _prepare(recipe: str | Recipe, case: Case, inputs: Inputs) -> Forms:
    qkv = quantize_qkv(*inputs, recipe=recipe, backend="cuda")
    return Forms(
        kernel=partial(attention_quantized, qkv, is_causal=case.causal, backend="cuda"),
        e2e=partial(attention, *inputs, is_causal=case.causal, recipe=recipe, backend="cuda"),
    )


OURS: tuple[Contender, ...] = tuple(make_contender(preset, preset) for preset in PRESETS)
"""Every preset, under its own name."""
