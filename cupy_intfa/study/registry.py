"""The studies there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cupy_intfa.study import (
    ablation,
    adversarial,
    architectures,
    depth,
    error_tables,
    length,
    low_bits,
    memory,
    peers,
    speed,
    v_quantisation,
)
from cupy_intfa.study.study import Study

_MODULES = (
    *(error_tables, ablation, peers, adversarial, v_quantisation, length, low_bits, memory, depth),
    *(speed, architectures),
)

STUDIES: Mapping[str, Study[Any]] = MappingProxyType({module.STUDY.name: module.STUDY for module in _MODULES})
"""In the order in which they are best read. A new one is a file that ends in ``STUDY``, its module here, a drawing."""
