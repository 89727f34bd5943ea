"""Instructions that approximate, and how far the PTX ISA lets them be off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from ptxsim.small import Array


@dataclass(frozen=True)
class Approximation:
    """What an instruction approximates, its largest relative error, and the absolute one of arguments in (0.5, 2)."""

    function: Callable[[Array], Array]
    relative: float
    near_one: float = 0.0
    exponents: bool = False

    def arguments(self) -> Array:
        """Draw 4096 whose results are normal, a quarter of them in (0.5, 2)."""
        rng = np.random.default_rng(0)
        x = rng.uniform(-125, 127, 4096) if self.exponents else 2.0 ** rng.uniform(-100, 100, 4096)
        x[:1024] = rng.uniform(0.5, 2, 1024)
        return x.astype(np.float32)

    def bound(self, x: Array) -> Array:
        """Give the largest error of each result."""
        relative = self.relative * np.abs(self.function(x.astype(np.float64)))
        allowed: Array = np.maximum(relative, np.where((x > 0.5) & (x < 2), self.near_one, 0))
        return allowed


APPROXIMATIONS: Mapping[str, Approximation] = MappingProxyType(
    {
        "ex2.approx.ftz.f32": Approximation(np.exp2, 2.0**-22, exponents=True),
        "rcp.approx.ftz.f32": Approximation(np.reciprocal, 2.0**-23),
        "sqrt.approx.ftz.f32": Approximation(np.sqrt, 2.0**-23),
        "rsqrt.approx.ftz.f32": Approximation(lambda x: 1 / np.sqrt(x), 2.0**-22.9),
        "lg2.approx.ftz.f32": Approximation(np.log2, 2.0**-22, near_one=2.0**-22),
    }
)
