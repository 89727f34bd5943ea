"""The recipe: every numerical choice of INT8 attention in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

INTEGER_PV = ("int8", "int8x2")
FLOAT8 = ("float8_e4m3", "float8_e5m2")

_CHOICES: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "qk": ("int8", "float16", *FLOAT8),
        "qk_bits": (8, 4),
        "pv": (*INTEGER_PV, "float16", *FLOAT8),
        "q_granularity": ("tensor", "block", "token"),
        "k_granularity": ("tensor", "block", "token", "group"),
        "v_granularity": ("tensor", "channel", "block", "block_channel", "token"),
        "key_block": (32, 64, 128, 256),
        "p_reference": ("running", "tile"),
        "row_sum": ("quantised", "exact"),
        "key_order": ("first_to_last", "last_to_first"),
        "smooth_k": (False, True),
        "smooth_v": (False, True),
        "rotate": (False, True),
    }
)

# What R may be for each format of P. 256 is the offset 2^8 that fills the range of an 8-bit float.
_P_LEVELS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "int8": (127, 255),
        "int8x2": (255,),
        "float16": (1,),
        "float8_e4m3": (1, 256),
        "float8_e5m2": (1, 256),
    }
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How q, k, v and the probabilities P are quantised, and in which order the keys are summed.

    The defaults are the paper's algorithm (arXiv 2409.16997, Algorithm 1). A recipe is checked when it is
    made; ``dataclasses.replace`` or `get_recipe` make a changed one.

    Parameters
    ----------
    qk : {"int8", "float16", "float8_e4m3", "float8_e5m2"}
        Format of Q and K in the first product.
    qk_bits : {8, 4}
        Levels of an int8 Q and K: 8 is ±127, 4 is ±7 in int8 storage.
    pv : {"int8", "int8x2", "float16", "float8_e4m3", "float8_e5m2"}
        Format of P and V in the second product; ``int8x2`` keeps P in two bytes (NumPy backend only).
    q_granularity : {"tensor", "block", "token"}
        What shares one scale of Q: a (batch, head), ``key_block`` consecutive rows, or one row.
    k_granularity : {"tensor", "block", "token", "group"}
        The same for K. ``group``: in each block of stored keys the positions p with equal
        ``(p mod 8) // 2`` share one, so that a thread of a tensor-core kernel owns one scale per block.
    v_granularity : {"tensor", "channel", "block", "block_channel", "token"}
        What shares one scale of V. ``token`` is folded into P before P is quantised.
    key_block : {32, 64, 128, 256}
        Keys per block, and per span of groups.
    p_levels : int
        R, the value of P at its reference: 127 (signed, the paper) or 255 (unsigned) for ``int8``; 255 for
        ``int8x2`` (65535 in two bytes); 1 for ``float16``; 1 or 256 for 8-bit floats.
    p_reference : {"running", "tile"}
        P relative to the running maximum of its row (the paper), or to the row's maximum in its key tile: as many keys
        as the kernel multiplies at once (`Plan.key_tile`), ``key_block`` on the NumPy backend.
    row_sum : {"quantised", "exact"}
        The softmax denominator: the sum of the rounded P (the paper), or of P in float32 before any rounding.
    key_order : {"first_to_last", "last_to_first"}
        Order of the key tiles.
    smooth_k, smooth_v : bool
        Subtract the mean key or value over the sequence before quantising.
    rotate : bool
        Rotate Q and K by a Hadamard matrix on blocks of the largest power of two that divides D.
    key_window : int
        0, or the number of keys (a power of two, at least ``key_block``) inside which keys are stored sorted by
        magnitude, so that keys which share a scale are of a size.

    Raises
    ------
    ValueError
        For a value that a field does not have, or a combination that no backend can run.

    Examples
    --------
    >>> Recipe().p_levels, Recipe(p_levels=255, v_granularity="channel").p_top
    (127, 255)
    >>> Recipe(pv="float16")
    Traceback (most recent call last):
        ...
    ValueError: p_levels=127 does not go with pv='float16': expected 1
    """

    qk: str = "int8"
    qk_bits: int = 8
    pv: str = "int8"
    q_granularity: str = "token"  # Algorithm 1, input S_Q: one scale per token
    k_granularity: str = "token"  # Algorithm 1, input S_K: one scale per token
    v_granularity: str = "tensor"  # Algorithm 1, input S_V: one scalar
    key_block: int = 64
    p_levels: int = 127  # R, section 3.2: P in [0, 127]
    p_reference: str = "running"  # Algorithm 1: m_i^(j) = max(m_i^(j-1), rowmax(S_i^(j)))
    row_sum: str = "quantised"  # Algorithm 1: l_i^(j) = e^(m_i^(j-1) - m_i^(j)) l_i^(j-1) + rowsum(P_i^(j))
    key_order: str = "first_to_last"  # Algorithm 1: for 1 <= j <= T_c
    smooth_k: bool = False
    smooth_v: bool = False
    rotate: bool = False
    key_window: int = 0

    def __post_init__(self) -> None:
        """Check every field, then the combinations."""
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed or type(value) is not type(allowed[0]):  # True is not 1, 32.0 is not 32
                raise ValueError(f"{name}={value!r} is not a choice: expected one of {allowed}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        levels = _P_LEVELS[self.pv]
        if type(self.p_levels) is not int or self.p_levels not in levels:  # True is not 1
            wanted = " or ".join(map(str, levels))
            raise ValueError(f"p_levels={self.p_levels} does not go with pv={self.pv!r}: expected {wanted}")
        if self.qk_bits != 8 and self.qk != "int8":
            raise ValueError(f"qk_bits={self.qk_bits} needs qk='int8', got qk={self.qk!r}")
        if self.qk != "int8" and (self.q_granularity, self.k_granularity) != ("tensor", "tensor"):
            raise ValueError(
                f"qk={self.qk!r} is scaled per tensor: expected q_granularity='tensor' and k_granularity='tensor', "
                f"got {self.q_granularity!r} and {self.k_granularity!r}"
            )
        if self.pv not in INTEGER_PV and self.v_granularity != "tensor":
            raise ValueError(
                f"pv={self.pv!r} is scaled per tensor: expected v_granularity='tensor', got {self.v_granularity!r}"
            )
        if self.v_granularity == "token" and self.row_sum != "exact":
            raise ValueError(
                "v_granularity='token' folds the scale of V into P, so a sum of quantised P is no row sum: "
                "expected row_sum='exact'"
            )
        window = self.key_window
        if isinstance(window, bool) or not isinstance(window, int) or window < 0 or window & (window - 1):
            raise ValueError(f"key_window={window!r}: expected 0 or a power of two")
        if 0 < window < self.key_block:
            raise ValueError(f"key_window={window} is smaller than key_block={self.key_block}: expected a multiple")

    @property
    def integer_pv(self) -> bool:
        """Whether P and V are multiplied as integers."""
        return self.pv in INTEGER_PV

    @property
    def p_top(self) -> int:
        """Largest value of P: R, or 65535 when P has two bytes."""
        return 65535 if self.pv == "int8x2" else self.p_levels

    @property
    def name(self) -> str:
        """Name of the preset that this recipe equals, else what differs from ``paper``."""
        for name, preset in PRESETS.items():
            if preset == self:
                return name
        paper = PRESETS["paper"]
        changed = (f.name for f in fields(self) if getattr(self, f.name) != getattr(paper, f.name))
        return "paper+" + ",".join(f"{name}={getattr(self, name)}" for name in changed)


def _presets() -> Mapping[str, Recipe]:
    paper = Recipe()
    tuned = replace(
        paper,
        k_granularity="group",
        key_window=64,
        p_levels=255,
        row_sum="exact",
        key_order="last_to_first",
        smooth_k=True,
    )
    fp8 = Recipe(
        qk="float8_e4m3",
        pv="float8_e4m3",
        q_granularity="tensor",
        k_granularity="tensor",
        p_levels=256,
        row_sum="exact",
    )
    return MappingProxyType(
        {
            "paper": paper,
            "paper_half": replace(paper, pv="float16", p_levels=1, row_sum="exact"),
            "fast": replace(tuned, v_granularity="channel", smooth_v=True),
            "precise": replace(tuned, v_granularity="channel", p_reference="tile", smooth_v=True, rotate=True),
            "half": replace(tuned, pv="float16", p_levels=1),
            "fp16": replace(fp8, qk="float16", pv="float16", p_levels=1),
            "fp8_e4m3": fp8,
            "fp8_e5m2": replace(fp8, qk="float8_e5m2", pv="float8_e5m2", p_levels=1),
        }
    )


PRESETS: Mapping[str, Recipe] = _presets()
"""The named recipes, from the paper's to ours, and the 16- and 8-bit float baselines in the same frame."""

DEFAULT_RECIPE = "fast"


def get_recipe(recipe: str | Recipe = DEFAULT_RECIPE, /, **changes: Any) -> Recipe:
    """Look a preset up by name and change fields of it.

    Parameters
    ----------
    recipe : str or Recipe
        A name in `PRESETS`, or a recipe.
    **changes
        Fields of `Recipe` to set.

    Returns
    -------
    Recipe
        The recipe with the changes, checked again.

    Raises
    ------
    ValueError
        For an unknown name, or an illegal recipe.
    TypeError
        For something that is neither a name nor a recipe, or a field that `Recipe` does not have.

    Examples
    --------
    >>> get_recipe("paper", p_levels=255).name
    'paper+p_levels=255'
    >>> get_recipe("fastest")
    Traceback (most recent call last):
        ...
    ValueError: recipe 'fastest' is unknown: expected paper, paper_half, fast, precise, half, fp16, ... or a Recipe
    """
    if isinstance(recipe, str):
        if recipe not in PRESETS:
            raise ValueError(f"recipe {recipe!r} is unknown: expected {', '.join(PRESETS)} or a Recipe")
        recipe = PRESETS[recipe]
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is a {type(recipe).__name__}: expected the name of a preset or a Recipe")
    return replace(recipe, **changes) if changes else recipe
