"""Quantised Q, K and V: all that attention needs later, and how they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from typing import Any

import numpy as np

from cupy_intfa.quantize.archive import read_archive, write_archive
from cupy_intfa.quantize.arithmetic import (
    Array,
    Namespace,
    flush,
    load_float32,
    mean_over_tokens,
    power_of_two_scale,
    round_to_codes,
    scale_from_absmax,
)
from cupy_intfa.quantize.codes import FORMATS, Format
from cupy_intfa.quantize.keys import (
    absmax_per_block,
    absmax_per_group,
    invert_index,
    scale_per_token,
    sorted_key_index,
    take_tokens,
)
from cupy_intfa.quantize.rotate import rotate
from cupy_intfa.recipe import FLOAT8, Recipe


@dataclass(frozen=True, eq=False)
class QuantizedQKV:
    """Q, K and V after quantisation, with what it takes to run attention later and to dequantise.

    Keys and values stand in their original order, D is not padded; a kernel's own packing is made from this and
    never saved. Arrays are NumPy or CuPy.

    Parameters
    ----------
    q : array (B, Hq, Sq, D)
        Codes of Q: int8, float16, float8_e4m3fn or float8_e5m2 (uint8 in CuPy, which has no 8-bit floats).
    k, v : array (B, Hkv, Skv, D)
        Codes of K and V.
    q_scale : array, float32
        (B, Hq) per tensor, (B, Hq, blocks) per block, (B, Hq, Sq) per token.
    k_scale : array, float32
        As ``q_scale`` with Hkv and Skv; (B, Hkv, blocks, 4) per group, in stored order (see ``key_index``).
    v_scale : array, float32
        (B, Hkv) per tensor, (B, Hkv, D) per channel, (B, Hkv, blocks) per block, (B, Hkv, blocks, D) per block and
        channel, (B, Hkv, Skv) per token.
    q_mark : array (B, Hq, Sq), float32
        0, or NaN where the query row was not finite: the epilogue adds it to output and lse.
    kv_mark : array (B, Hkv), float32
        0, or NaN where any key or value of the head was not finite.
    k_mean, v_mean : array (B, Hkv, D), float32, or None
        What smoothing subtracted; ``k_mean`` is in the coordinates of K before rotation.
    key_index : array (B, Hkv, Skv), int32, or None
        Original index of the key at each stored position, when the recipe sorts keys in windows.
    recipe : Recipe
        How it was quantised.
    dtype : str
        dtype of the inputs, and of the output unless another is asked for.
    layout : {"bhsd", "bshd"}
        Layout of the inputs, and of the output. The arrays here are always (B, H, S, D).
    batched : bool
        False for inputs without a batch axis.
    packed : array or None
        The kernels' packing of the same data, if they made it: attention then need not pack again.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 2, 8, 4), np.float32)
    >>> quantize_arrays(x, x, x, recipe=Recipe(v_granularity="channel")).v_scale.shape
    (1, 2, 4)
    """

    q: Array
    k: Array
    v: Array
    q_scale: Array
    k_scale: Array
    v_scale: Array
    q_mark: Array
    kv_mark: Array
    k_mean: Array | None
    v_mean: Array | None
    key_index: Array | None
    recipe: Recipe
    dtype: str
    layout: str = "bhsd"
    batched: bool = True
    packed: Array | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for array in self._arrays().values())

    def _arrays(self) -> dict[str, Array]:
        named = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "packed")
        return {name: value for name, value in named if hasattr(value, "nbytes")}

    def to_host(self) -> QuantizedQKV:
        """Give the same with NumPy arrays; nothing is copied that is on the host already."""
        arrays: dict[str, Any] = {name: _to_host(array) for name, array in self._arrays().items()}
        for name, stored in (("q", self.recipe.qk), ("k", self.recipe.qk), ("v", self.recipe.pv)):
            if stored in FLOAT8:
                arrays[name] = arrays[name].view(FORMATS[stored].dtype)
        return replace(self, packed=None, **arrays)

    def dequantize(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give back what the codes stand for.

        Returns
        -------
        q : ndarray (B, Hq, Sq, D), float32
            On the host, in the coordinates of the inputs: rotation undone, NaN where marked.
        k, v : ndarray (B, Hkv, Skv, D), float32
            On the host, in the coordinates of the inputs: rotation undone, means added, NaN where marked.

        Examples
        --------
        >>> import numpy as np
        >>> q = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 1, 2, 4)
        >>> qkv = quantize_arrays(q, q, q, recipe=Recipe())
        >>> float(abs(qkv.dequantize()[0] - q).max()) <= 0.5 / 127
        True
        """
        host = self.to_host()._arrays()
        recipe, block = self.recipe, self.recipe.key_block
        index = host.get("key_index")
        back = None if index is None else invert_index(index, np)
        q_scale = scale_per_token(host["q_scale"], recipe.q_granularity, self.q.shape[2], block, np)
        q = host["q"].astype(np.float32) * q_scale[..., None]
        k_scale = scale_per_token(host["k_scale"], recipe.k_granularity, self.k.shape[2], block, np)
        if recipe.k_granularity != "token":
            k_scale = take_tokens(k_scale, back, np)
        k = host["k"].astype(np.float32) * k_scale[..., None]
        v_scale = value_scales(host["v_scale"], recipe, self.v.shape[2], np)
        if recipe.v_granularity in ("block", "block_channel"):
            v_scale = take_tokens(v_scale, back, np)
        v = host["v"].astype(np.float32) * v_scale
        if recipe.rotate:
            q, k = rotate(q, np), rotate(k, np)
        if self.k_mean is not None:
            k = k + host["k_mean"][:, :, None]
        if self.v_mean is not None:
            v = v + host["v_mean"][:, :, None]
        kv_mark = host["kv_mark"][..., None, None]
        return q + host["q_mark"][..., None], k + kv_mark, v + kv_mark

    def save(self, file: str | PathLike[str]) -> None:
        """Write everything to an ``.npz`` file that `load` reads (no pickle).

        Parameters
        ----------
        file : str or path
            Where to; NumPy appends ``.npz`` if it is missing.
        """
        header = {
            "recipe": asdict(self.recipe),
            "dtype": self.dtype,
            "layout": self.layout,
            "batched": self.batched,
        }
        arrays = self.to_host()._arrays()
        # NumPy stores ml_dtypes as anonymous bytes: they travel as uint8 and the recipe names them.
        raw: dict[str, Any] = {
            name: a.view(np.uint8) if a.dtype.name.startswith("float8") else a for name, a in arrays.items()
        }
        write_archive(file, type(self).__name__, header, raw)

    @classmethod
    def load(cls, file: str | PathLike[str]) -> QuantizedQKV:
        """Read what `save` wrote.

        Parameters
        ----------
        file : str or path
            An ``.npz`` file.

        Returns
        -------
        QuantizedQKV
            With NumPy arrays.

        Raises
        ------
        ValueError
            When the file is not one of ours, or of a later version.
        """
        header, arrays = read_archive(file, cls.__name__)
        optional: dict[str, Any] = dict.fromkeys(("k_mean", "v_mean", "key_index"))
        rest = {name: header[name] for name in ("dtype", "layout", "batched")}
        return cls(**(optional | arrays), recipe=Recipe(**header["recipe"]), **rest).to_host()


def quantize_arrays(
    q: Array, k: Array, v: Array, *, recipe: Recipe, xp: Namespace = np, layout: str = "bhsd", batched: bool = True
) -> QuantizedQKV:
    """Quantise Q, K and V for attention, on NumPy or on CuPy arrays.

    In order: read as float32, mark and zero what is not finite, subtract the means, rotate, sort keys in windows,
    find absolute maxima, round half to even.

    Parameters
    ----------
    q : array (B, Hq, Sq, D)
        float16, bfloat16, float32 or float64, any strides; never written.
    k, v : array (B, Hkv, Skv, D)
        Same dtype.
    recipe : Recipe
        What to do.
    xp : module
        numpy or cupy, the library of the arrays; 8-bit floats are quantised on NumPy arrays only.
    layout : {"bhsd", "bshd"}
        Remembered in the result.
    batched : bool
        Remembered in the result.

    Returns
    -------
    QuantizedQKV
        Arrays of the same library.
    """
    dtype = q.dtype.name
    q32, q_bad = load_float32(q, xp)
    k32, k_bad = load_float32(k, xp)
    v32, v_bad = load_float32(v, xp)
    k32, k_mean = _centre(k32, xp) if recipe.smooth_k else (k32, None)
    v32, v_mean = _centre(v32, xp) if recipe.smooth_v else (v32, None)
    if recipe.rotate:
        q32, k32 = rotate(q32, xp), rotate(k32, xp)
    # Centring and rotating can overflow; what is then not finite is marked like any other.
    (q32, q_over), (k32, k_over), (v32, v_over) = (load_float32(x, xp) for x in (q32, k32, v32))
    nan, zero = np.float32(np.nan), np.float32(0)
    kv_bad = (k_bad | v_bad | k_over | v_over).any(axis=-1)
    key_index = None
    if recipe.key_window:
        key_index = sorted_key_index(xp.abs(k32).max(axis=-1), recipe.key_window, recipe.key_block, xp)
    q_codes, q_scale = _quantise_tokens(q32, recipe, recipe.q_granularity, None, xp)
    k_codes, k_scale = _quantise_tokens(k32, recipe, recipe.k_granularity, key_index, xp)
    v_codes, v_scale = _quantise_values(v32, recipe, key_index, xp)
    return QuantizedQKV(
        q=q_codes,
        k=k_codes,
        v=v_codes,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        q_mark=xp.where(q_bad | q_over, nan, zero),
        kv_mark=xp.where(kv_bad, nan, zero),
        k_mean=k_mean,
        v_mean=v_mean,
        key_index=key_index,
        recipe=recipe,
        dtype=dtype,
        layout=layout,
        batched=batched,
    )


def _to_host(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()


def _centre(x: Array, xp: Namespace) -> tuple[Array, Array]:
    mean = mean_over_tokens(x, xp)
    with np.errstate(over="ignore", invalid="ignore"):
        return flush(x - mean[:, :, None], xp), mean


def _encode(x: Array, scale: Array, fmt: Format, xp: Namespace) -> Array:
    if fmt.dtype == np.int8:
        return round_to_codes(x, scale, int(fmt.largest), xp)
    return (x * (np.float32(1) / scale)).astype(fmt.dtype)


def _scales(absmax: Array, fmt: Format, xp: Namespace) -> Array:
    if fmt.dtype == np.float16:
        return power_of_two_scale(absmax, xp)
    return scale_from_absmax(absmax, fmt.largest, xp)


def _quantise_tokens(
    x: Array, recipe: Recipe, granularity: str, index: Array | None, xp: Namespace
) -> tuple[Array, Array]:
    """Quantise Q or K: scales in stored order unless per token, codes in the original order."""
    fmt = FORMATS["int4" if recipe.qk_bits == 4 else recipe.qk]
    block, length = recipe.key_block, x.shape[2]
    if granularity == "token":
        absmax = xp.abs(x).max(axis=-1)
    elif granularity == "tensor":
        absmax = xp.abs(x).max(axis=(-2, -1))
    elif granularity == "block":
        absmax = absmax_per_block(take_tokens(x, index, xp), block, xp).max(axis=-1)
    else:
        absmax = absmax_per_group(take_tokens(x, index, xp), block, xp)
    scale = _scales(absmax, fmt, xp)
    per_token = scale_per_token(scale, granularity, length, block, xp)
    if granularity != "token" and index is not None:
        per_token = take_tokens(per_token, invert_index(index, xp), xp)
    return _encode(x, per_token[..., None], fmt, xp), scale


def _quantise_values(x: Array, recipe: Recipe, index: Array | None, xp: Namespace) -> tuple[Array, Array]:
    """Quantise V, as `_quantise_tokens`."""
    fmt = FORMATS["int8" if recipe.integer_pv else recipe.pv]
    granularity = recipe.v_granularity
    if granularity == "tensor":
        absmax = xp.abs(x).max(axis=(-2, -1))
    elif granularity == "channel":
        absmax = xp.abs(x).max(axis=-2)
    elif granularity == "token":
        absmax = xp.abs(x).max(axis=-1)
    else:
        absmax = absmax_per_block(take_tokens(x, index, xp), recipe.key_block, xp)
        absmax = absmax.max(axis=-1) if granularity == "block" else absmax
    scale = _scales(absmax, fmt, xp)
    spread = value_scales(scale, recipe, x.shape[2], xp)
    if granularity in ("block", "block_channel") and index is not None:
        spread = take_tokens(spread, invert_index(index, xp), xp)
    return _encode(x, spread, fmt, xp), scale


def value_scales(scale: Array, recipe: Recipe, length: int, xp: Namespace) -> Array:
    """Spread scales of V so that they broadcast against (B, H, S, D), in stored order."""
    block = xp.arange(length) // recipe.key_block
    if recipe.v_granularity == "tensor":
        return scale[..., None, None]
    if recipe.v_granularity == "channel":
        return scale[..., None, :]
    if recipe.v_granularity == "token":
        return scale[..., None]
    if recipe.v_granularity == "block":
        return scale[..., block][..., None]
    return scale[..., block, :]
