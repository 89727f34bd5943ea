"""Hypothesis strategies: problems with their masks, legal recipes, value families, dtypes, layouts, strides.

Arrays are made from a drawn family and seed, never element by element: a failing example prints as one short line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from cupy_intfa import PRESETS, Recipe
from cupy_intfa.data.families import FAMILIES, make_qkv

Array = npt.NDArray[Any]

# Around every border of a tile (64, 128), of a row chunk (256) and of a group (8), and far from them.
LENGTHS = (1, 2, 3, 8, 31, 63, 64, 65, 96, 127, 129, 200, 257)
HEAD_DIMS = (1, 2, 3, 7, 8, 16, 31, 33, 40, 64, 80, 96, 127, 128, 160, 255, 256)
DTYPES = ("float16", "bfloat16", "float32", "float64")
ALIGNMENTS = ("top_left", "bottom_right")


def dtype_of(name: str) -> np.dtype[Any]:
    """Look up a dtype by name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A drawn call of attention, in layout bhsd: everything that determines its arrays and its mask."""

    family: str = "normal"
    seed: int = 0
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    q_len: int = 64
    kv_len: int = 64
    head_dim: int = 64
    dtype: str = "float32"
    is_causal: bool = False
    causal_alignment: str | None = None
    scale: float | None = None

    def arrays(self) -> tuple[Array, Array, Array]:
        """Make q, k and v."""
        return make_qkv(
            self.family,
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            q_len=self.q_len,
            kv_len=self.kv_len,
            head_dim=self.head_dim,
            seed=self.seed,
            dtype=dtype_of(self.dtype),
        )

    @property
    def mask(self) -> dict[str, Any]:
        """Give the keywords of the mask."""
        return {"is_causal": self.is_causal, "causal_alignment": self.causal_alignment}

    @property
    def keywords(self) -> dict[str, Any]:
        """Give the keywords that the oracle and `attention` share."""
        return {**self.mask, "scale": self.scale}

    @property
    def softmax_scale(self) -> float:
        """Give the factor of the scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def causal_offset(self) -> int | None:
        """Query i sees the keys j ≤ i + offset; None is no mask."""
        if not self.is_causal:
            return None
        return self.kv_len - self.q_len if self.causal_alignment == "bottom_right" else 0


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    families: tuple[str, ...] = tuple(FAMILIES),
    dtypes: tuple[str, ...] = ("float32",),
    lengths: tuple[int, ...] = LENGTHS,
    head_dims: tuple[int, ...] = HEAD_DIMS,
    causal: bool | None = None,
) -> Case:
    """Draw a problem: sizes, group-query heads, mask with its alignment, family, seed, dtype, scale."""
    heads, kv_heads = draw(st.sampled_from(((1, 1), (2, 1), (3, 1), (2, 2), (4, 2))))
    q_len, kv_len = draw(st.sampled_from(lengths)), draw(st.sampled_from(lengths))
    is_causal = draw(st.booleans()) if causal is None else causal
    either: tuple[str | None, ...] = (None, *ALIGNMENTS) if q_len == kv_len or not is_causal else ALIGNMENTS
    family = draw(st.sampled_from(families))
    # Values of 1e4 with a plain scale are logits of 1e8, where float32 has steps of 8: a case of its own elsewhere.
    scales = (1e-9, 1e-8) if family == "huge" else (None, 0.01, 1.0)
    return Case(
        family=family,
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=draw(st.sampled_from(head_dims)),
        dtype=draw(st.sampled_from(dtypes)),
        is_causal=is_causal,
        causal_alignment=draw(st.sampled_from(either)),
        scale=draw(st.sampled_from(scales)),
    )


P_LEVELS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"int8": (127, 255), "int8x2": (255,), "float16": (1,), "float8_e4m3": (1, 256), "float8_e5m2": (1, 256)}
)
QK_FORMATS = ("int8", "float16", "float8_e4m3", "float8_e5m2")
INTEGER_PV = ("int8", "int8x2")


@st.composite
def recipes(
    draw: st.DrawFn,
    *,
    qk: tuple[str, ...] = QK_FORMATS,
    pv: tuple[str, ...] = tuple(P_LEVELS),
    v_granularities: tuple[str, ...] = ("tensor", "channel", "block", "block_channel", "token"),
) -> Recipe:
    """Draw any legal recipe."""
    qk_format, pv_format = draw(st.sampled_from(qk)), draw(st.sampled_from(pv))
    integer_qk, integer_pv = qk_format == "int8", pv_format in INTEGER_PV
    v_granularity = draw(st.sampled_from(v_granularities)) if integer_pv else "tensor"
    key_block = draw(st.sampled_from((32, 64, 128, 256)))
    windows = (0, *(size for size in (32, 64, 128, 256, 512) if size >= key_block))
    return Recipe(
        qk=qk_format,
        qk_bits=draw(st.sampled_from((8, 4))) if integer_qk else 8,
        pv=pv_format,
        q_granularity=draw(st.sampled_from(("tensor", "block", "token"))) if integer_qk else "tensor",
        k_granularity=draw(st.sampled_from(("tensor", "block", "token", "group"))) if integer_qk else "tensor",
        v_granularity=v_granularity,
        key_block=key_block,
        p_levels=draw(st.sampled_from(P_LEVELS[pv_format])),
        p_reference=draw(st.sampled_from(("running", "tile"))),
        row_sum="exact" if v_granularity == "token" else draw(st.sampled_from(("quantised", "exact"))),
        key_order=draw(st.sampled_from(("first_to_last", "last_to_first"))),
        smooth_k=draw(st.booleans()),
        smooth_v=draw(st.booleans()),
        rotate=draw(st.booleans()),
        key_window=draw(st.sampled_from(windows)),
    )


presets = st.sampled_from(tuple(PRESETS))
seeds = st.integers(0, 2**32 - 1)


def _misaligned(x: Array) -> Array:
    """Copy an array to an odd address."""
    buffer = bytearray(x.nbytes + 1)
    moved: Array = np.ndarray(x.shape, x.dtype, buffer=buffer, offset=1)
    moved[...] = x
    return moved


STRIDES: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "contiguous": np.ascontiguousarray,
        "fortran": np.asfortranarray,
        "negative": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
        "every_other": lambda x: np.repeat(np.repeat(x, 2, axis=-1), 3, axis=-2)[..., ::3, ::2],
        "heads_inside": lambda x: np.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2),
        "misaligned": _misaligned,
        "big_endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    }
)
"""Ways to store an array: the same values and shape with other strides, addresses or byte order."""


def restride(x: Array, how: str) -> Array:
    """Store an array in one of the ways of `STRIDES`, read-only: who writes an input raises."""
    # ml_dtypes has no byte order but the machine's.
    stored = STRIDES["contiguous" if how == "big_endian" and x.dtype.name == "bfloat16" else how](x)
    view = stored.view()
    view.flags.writeable = False
    return view


strides = st.sampled_from(tuple(STRIDES))
