"""The attention problem: shapes, dtype, mask and scale, and every error that a user can make with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("bhsd", "bshd")
ALIGNMENTS = ("top_left", "bottom_right")
MAX_HEAD_DIM = 256  # the accumulator of one row no longer fits in registers beyond it


@dataclass(frozen=True, kw_only=True)
class AttentionProblem:
    """One call of attention, without its data.

    Parameters
    ----------
    batch, heads, kv_heads : int
        B, Hq, Hkv; Hq is a multiple of Hkv.
    q_len, kv_len, head_dim : int
        Sq, Skv, D.
    dtype : str
        dtype of inputs and output.
    scale : float
        Factor of the scores.
    causal_offset : int or None
        Query i sees the keys j ≤ i + causal_offset; None is no mask.
    layout : {"bhsd", "bshd"}
        Order of the axes.
    batched : bool
        False for arrays without a batch axis.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    dtype: str
    scale: float
    causal_offset: int | None = None
    layout: str = "bhsd"
    batched: bool = True

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, in the caller's layout."""
        inner = (self.heads, self.q_len) if self.layout == "bhsd" else (self.q_len, self.heads)
        shape = (self.batch, *inner, self.head_dim)
        return shape if self.batched else shape[1:]

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """Shape of the log-sum-exp: (B, Hq, Sq) in both layouts."""
        shape = (self.batch, self.heads, self.q_len)
        return shape if self.batched else shape[1:]

    @property
    def visible_pairs(self) -> int:
        """Query-key pairs of one head that the mask leaves."""
        if self.causal_offset is None:
            return self.q_len * self.kv_len
        first, last = self.causal_offset + 1, self.causal_offset + self.q_len
        ramp_end = min(last, self.kv_len)
        ramp_start = max(first, 1)
        ramp = (ramp_start + ramp_end) * (ramp_end - ramp_start + 1) // 2 if ramp_end >= ramp_start else 0
        full = max(0, last - max(self.kv_len, first - 1))
        return ramp + full * self.kv_len


def check_layout(layout: str) -> None:
    """Raise ValueError for an unknown layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {LAYOUTS}")


def make_problem(
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    dtypes: tuple[str, str, str],
    *,
    is_causal: bool = False,
    causal_alignment: str | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
) -> AttentionProblem:
    """Validate a call and describe it.

    Parameters
    ----------
    q_shape, k_shape, v_shape : tuple of int
        Shapes as the caller gave them, 3-D or 4-D.
    dtypes : tuple of str
        Names of the dtypes of q, k and v.
    is_causal, causal_alignment, scale, layout
        As in `cupy_intfa.attention`.

    Returns
    -------
    AttentionProblem
        Everything about the call but its data.

    Raises
    ------
    ValueError
        For shapes that do not fit together, an unsupported size, scale, layout or alignment.
    TypeError
        For a dtype that is not one of float16, bfloat16, float32, float64, or is not shared by q, k and v.

    Examples
    --------
    >>> p = make_problem((2, 8, 128, 64), (2, 2, 512, 64), (2, 2, 512, 64), ("float16",) * 3)
    >>> p.heads, p.kv_heads, p.scale, p.out_shape
    (8, 2, 0.125, (2, 8, 128, 64))
    """
    check_layout(layout)
    _check_dtypes(dtypes)
    shapes = {"q": q_shape, "k": k_shape, "v": v_shape}
    for name, shape in shapes.items():
        if len(shape) not in (3, 4):
            raise ValueError(f"{name} has shape {shape}: expected 4 axes ({layout}) or 3 without the batch")
        if len(shape) != len(shapes["q"]):
            raise ValueError(f"q has {len(shapes['q'])} axes and {name} has {len(shape)}: expected as many")
        if 0 in shape:
            raise ValueError(f"{name} has shape {shape}: every axis must be at least 1 long")
    if shapes["k"] != shapes["v"]:
        raise ValueError(f"k has shape {shapes['k']} and v has {shapes['v']}: expected the same shape")
    batched = len(shapes["q"]) == 4
    q_sizes, k_sizes = (_canonical(shapes[name], layout, batched) for name in ("q", "k"))
    (batch, heads, q_len, head_dim), (kv_batch, kv_heads, kv_len, kv_dim) = q_sizes, k_sizes
    if (batch, head_dim) != (kv_batch, kv_dim):
        raise ValueError(
            f"q is {shapes['q']} and k is {shapes['k']} in layout {layout!r}: expected one batch and one head dimension"
        )
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}: expected a multiple (is layout={layout!r} right?)")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head dimension is {head_dim}: expected at most {MAX_HEAD_DIM}")
    return AttentionProblem(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        dtype=dtypes[0],
        scale=_check_scale(scale, head_dim),
        causal_offset=_causal_offset(is_causal, causal_alignment, q_len, kv_len),
        layout=layout,
        batched=batched,
    )


def _check_dtypes(dtypes: tuple[str, str, str]) -> None:
    for name, dtype in zip("qkv", dtypes, strict=True):
        if dtype == "int8":
            raise TypeError(
                f"{name} is int8, which has lost its scale: quantise with quantize_qkv and call attention_quantized"
            )
        if dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {dtype}: expected one of {', '.join(DTYPES)}")
        if dtype != dtypes[0]:
            raise TypeError(f"q has dtype {dtypes[0]} and {name} has {dtype}: expected one dtype for q, k and v")


def _canonical(shape: tuple[int, ...], layout: str, batched: bool) -> tuple[int, int, int, int]:
    """(B, H, S, D) of a shape in the caller's layout."""
    batch, a, b, head_dim = shape if batched else (1, *shape)
    return (batch, a, b, head_dim) if layout == "bhsd" else (batch, b, a, head_dim)


def _check_scale(scale: object, head_dim: int) -> float:
    if scale is None:
        return float(head_dim**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.integer | np.floating):
        raise TypeError(f"scale is a {type(scale).__name__}: expected a real number or None for 1/sqrt(D)")
    value = float(scale)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"scale={value}: expected a finite number above 0 (the integer maximum needs it)")
    return value


def _causal_offset(is_causal: bool, alignment: str | None, q_len: int, kv_len: int) -> int | None:
    if alignment is not None and alignment not in ALIGNMENTS:
        raise ValueError(f"causal_alignment={alignment!r}: expected one of {ALIGNMENTS} or None")
    if not isinstance(is_causal, bool | np.bool_):
        raise TypeError(f"is_causal is a {type(is_causal).__name__}: expected True or False")
    if not is_causal:
        return None
    if alignment is None and q_len != kv_len:
        raise ValueError(
            f"is_causal with {q_len} queries and {kv_len} keys is ambiguous: pass causal_alignment='top_left' "
            "(query i sees keys up to i: PyTorch, JAX) or 'bottom_right' (the last query sees all keys: flash-attn)"
        )
    return kv_len - q_len if alignment == "bottom_right" else 0
