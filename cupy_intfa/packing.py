"""The kernels' packing: where each quantised array lies in one workspace, padded and ordered for the tensor cores.

Every attention kernel reads this packing and every quantise kernel writes it. `pack` makes it from a
`QuantizedQKV` with array operations, `unpack` goes back; the quantise kernels write the same bytes directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from cupy_intfa.problem import AttentionProblem
from cupy_intfa.quantize import QuantizedQKV
from cupy_intfa.quantize.arithmetic import Array, Namespace, dot_in_pairs, flush
from cupy_intfa.quantize.codes import FORMATS
from cupy_intfa.quantize.keys import invert_index, scale_per_token, take_tokens
from cupy_intfa.quantize.rotate import rotate
from cupy_intfa.recipe import Recipe

HEAD_DIM_TILES = (32, 64, 96, 128, 192, 256)
QUERY_PAD = 128  # rows: no kernel's query tile is longer
KEY_PAD = 128  # keys: no kernel's key tile is longer
KEY_BLOCK = 64  # the only key_block, and with 0 the only key_window, that kernels run
ALIGNMENT = 256  # bytes, of every array in the workspace

# Position p of 16 keys of V holds key V_ORDER[p]: the accumulators of S then pack into A fragments of P in place.
V_ORDER = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)


def has_offset_values(recipe: Recipe) -> bool:
    """
    Tell whether 8-bit codes of V are stored 128 too large, as bytes without a sign.

    Where a tile's P V goes to floats: sums that are never negative need no conversion
    (kernels_cu/intfa/products_wgmma.cuh).
    """
    return recipe.integer_pv and recipe.p_reference == "tile" and "block" not in recipe.v_granularity


@dataclass(frozen=True)
class Region:
    """One array of the workspace: byte offset, shape, dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes without the padding to the next region."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Packing:
    """Layout of the workspace for one problem and recipe: names of arrays → regions.

    Parameters
    ----------
    head_dim : int
        D padded to a tile: 32, 64, 96, 128, 192 or 256.
    q_len, kv_len : int
        Lengths padded to `QUERY_PAD` and `KEY_PAD`.
    regions : mapping of str to Region
        ``q`` (B, Hq, Sq, D); ``k`` (B, Hkv, Skv, D) in stored order; ``v`` (B, Hkv, Skv/64, D, 64) for 8-bit codes,
        keys of each 16 in `V_ORDER`, integers 128 too large where `has_offset_values`, or (B, Hkv, Skv, D) for float16;
        ``q_scale``, ``q_mark`` (B, Hq, Sq); ``k_scale`` (B, Hkv, Skv) per token, else (B, Hkv, Skv/64, 4);
        ``k_scale_max``, ``kv_mark`` (B, Hkv); ``v_scale`` (B, Hkv, Skv/64, D) per block, else (B, Hkv, D); if smoothed
        ``k_mean``, ``v_mean`` (B, Hkv, D) and ``q_kmean`` (B, Hq, Sq) = s_q · Q8 · k̄; if sorted ``key_index``
        (B, Hkv, Skv) uint8, the original place inside its block of the key at each position. Lengths and D are padded;
        padding holds codes 0 and scales 1.
    nbytes : int
        Size of the workspace.
    """

    head_dim: int
    q_len: int
    kv_len: int
    regions: Mapping[str, Region]
    nbytes: int

    def views(self, workspace: Array) -> dict[str, Array]:
        """See the arrays inside a workspace of bytes; CuPy has no 8-bit floats, there they stay uint8."""
        raw = {name: workspace[r.offset : r.offset + r.nbytes] for name, r in self.regions.items()}
        on_host = isinstance(workspace, np.ndarray)
        return {
            name: raw[name]
            .view(r.dtype if on_host or not r.dtype.name.startswith("float8") else np.uint8)
            .reshape(r.shape)
            for name, r in self.regions.items()
        }


def _pad(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _shapes(p: AttentionProblem, recipe: Recipe) -> Iterator[tuple[str, tuple[int, ...], np.dtype[np.generic]]]:
    d = next(tile for tile in HEAD_DIM_TILES if tile >= p.head_dim)
    sq, skv = _pad(p.q_len, QUERY_PAD), _pad(p.kv_len, KEY_PAD)
    q, kv, blocks = (p.batch, p.heads), (p.batch, p.kv_heads), skv // KEY_BLOCK
    f32, u8 = np.dtype(np.float32), np.dtype(np.uint8)
    qk_dtype = FORMATS[recipe.qk].dtype
    v_dtype = u8 if has_offset_values(recipe) else FORMATS["int8" if recipe.integer_pv else recipe.pv].dtype
    yield "q", (*q, sq, d), qk_dtype
    yield "k", (*kv, skv, d), qk_dtype
    yield "v", (*kv, skv, d) if v_dtype.itemsize == 2 else (*kv, blocks, d, KEY_BLOCK), v_dtype
    yield "q_scale", (*q, sq), f32
    yield "q_mark", (*q, sq), f32
    yield "k_scale", (*kv, skv) if recipe.k_granularity == "token" else (*kv, blocks, 4), f32
    yield "k_scale_max", kv, f32
    yield "kv_mark", kv, f32
    yield "v_scale", (*kv, blocks, d) if recipe.v_granularity in ("block", "block_channel") else (*kv, d), f32
    if recipe.smooth_k:
        yield "k_mean", (*kv, d), f32
        yield "q_kmean", (*q, sq), f32
    if recipe.smooth_v:
        yield "v_mean", (*kv, d), f32
    if recipe.key_window:
        yield "key_index", (*kv, skv), u8


@lru_cache(maxsize=512)
def make_packing(problem: AttentionProblem, recipe: Recipe) -> Packing:
    """Lay the workspace out.

    Parameters
    ----------
    problem : AttentionProblem
        Sizes.
    recipe : Recipe
        Formats, granularities and options; ``v_granularity="token"``, key blocks other than 64 and windows other
        than 64 have no packing (the plan refuses them).

    Returns
    -------
    Packing
        Offsets, each a multiple of 256 bytes.
    """
    regions: dict[str, Region] = {}
    offset = 0
    for name, shape, dtype in _shapes(problem, recipe):
        regions[name] = Region(offset, shape, dtype)
        offset = _pad(offset + regions[name].nbytes, ALIGNMENT)
    return Packing(
        head_dim=regions["q"].shape[3],
        q_len=regions["q"].shape[2],
        kv_len=regions["k"].shape[2],
        regions=MappingProxyType(regions),
        nbytes=offset,
    )


def _fill(target: Array, source: Array) -> None:
    target[tuple(slice(0, n) for n in source.shape)] = source


def pack(qkv: QuantizedQKV, packing: Packing, workspace: Array, xp: Namespace) -> None:
    """Write a `QuantizedQKV` into a workspace, by array operations.

    Parameters
    ----------
    qkv : QuantizedQKV
        NumPy or CuPy arrays.
    packing : Packing
        From `make_packing`, for the same sizes and recipe.
    workspace : array (at least ``packing.nbytes``,), uint8
        Filled.
    xp : module
        numpy or cupy.
    """
    recipe = qkv.recipe
    to = packing.views(workspace)
    for name in to:
        to[name][...] = 1 if "scale" in name else 0
    q_scale = scale_per_token(qkv.q_scale, recipe.q_granularity, qkv.q.shape[2], KEY_BLOCK, xp)
    _fill(to["q"], qkv.q)
    _fill(to["q_scale"], q_scale)
    _fill(to["q_mark"], qkv.q_mark)
    _fill(to["kv_mark"], qkv.kv_mark)
    index = qkv.key_index
    _fill(to["k"], take_tokens(qkv.k, index, xp))
    _fill(to["k_scale"], _packed_key_scales(qkv, xp))
    to["k_scale_max"][...] = qkv.k_scale.reshape(*qkv.k_scale.shape[:2], -1).max(axis=-1)
    v = take_tokens(qkv.v, index, xp)
    if v.dtype.itemsize == 2:
        _fill(to["v"], v)
    else:
        tiles = _tiles_of_values(v, to["v"].shape, xp)
        to["v"].view(np.uint8)[...] = tiles ^ np.uint8(0x80) if has_offset_values(recipe) else tiles
    scale = qkv.v_scale
    if recipe.v_granularity in ("tensor", "block"):
        scale = xp.broadcast_to(scale[..., None], (*scale.shape, qkv.v.shape[3]))
    _fill(to["v_scale"], scale)
    if qkv.v_mean is not None:
        _fill(to["v_mean"], qkv.v_mean)
    if qkv.k_mean is not None:
        _fill(to["k_mean"], qkv.k_mean)
        mean = rotate(qkv.k_mean, xp) if recipe.rotate else qkv.k_mean
        mean = xp.repeat(mean, qkv.q.shape[1] // qkv.k.shape[1], axis=1)[:, :, None]
        with np.errstate(over="ignore", invalid="ignore"):  # of heads that are marked
            _fill(to["q_kmean"], flush(q_scale * dot_in_pairs(qkv.q.astype(np.float32), mean, xp), xp))
    if index is not None:
        _fill(to["key_index"], (index % KEY_BLOCK).astype(np.uint8))


def _packed_key_scales(qkv: QuantizedQKV, xp: Namespace) -> Array:
    scale, blocks = qkv.k_scale, -(-qkv.k.shape[2] // KEY_BLOCK)
    if qkv.recipe.k_granularity == "token":
        return take_tokens(scale, qkv.key_index, xp)
    if qkv.recipe.k_granularity == "group":
        return scale
    if qkv.recipe.k_granularity == "tensor":
        scale = xp.broadcast_to(scale[..., None], (*scale.shape, blocks))
    return xp.broadcast_to(scale[..., None], (*scale.shape, 4))


def _tiles_of_values(v: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """(B, Hkv, Skv, D) → bytes (B, Hkv, blocks, D, 64) with the keys of each 16 in `V_ORDER`."""
    batch, heads, blocks, head_dim, block = shape
    padded = xp.zeros((batch, heads, blocks * block, head_dim), np.uint8)
    padded[:, :, : v.shape[2], : v.shape[3]] = v.view(np.uint8)
    tiles = padded.reshape(batch, heads, blocks, block // 16, 16, head_dim)[:, :, :, :, list(V_ORDER)]
    return tiles.reshape(batch, heads, blocks, block, head_dim).swapaxes(-1, -2)


def unpack(
    packing: Packing, workspace: Array, problem: AttentionProblem, recipe: Recipe, xp: Namespace, *, keep: bool = False
) -> QuantizedQKV:
    """Read a `QuantizedQKV` out of a workspace that a quantise kernel or `pack` has written.

    Parameters
    ----------
    packing, workspace, problem, recipe
        As they were for writing.
    xp : module
        numpy or cupy.
    keep : bool
        Whether the result holds the workspace as ``packed``.

    Returns
    -------
    QuantizedQKV
        Copies, in the original order of the keys and without padding.
    """
    p, a = problem, packing.views(workspace)
    blocks, d = -(-p.kv_len // KEY_BLOCK), p.head_dim
    index = back = None
    if recipe.key_window:
        first = xp.arange(p.kv_len, dtype=np.int32) // KEY_BLOCK * KEY_BLOCK
        index = a["key_index"][..., : p.kv_len].astype(np.int32) + first
        back = invert_index(index, xp)
    if a["v"].ndim == 4:
        v = a["v"][:, :, : p.kv_len, :d]
    else:
        order = xp.asarray(np.argsort(V_ORDER))
        v = a["v"].view(np.uint8).swapaxes(-1, -2).reshape(p.batch, p.kv_heads, -1, 16, packing.head_dim)[..., order, :]
        v = v.reshape(p.batch, p.kv_heads, packing.kv_len, -1)[:, :, : p.kv_len, :d]
        v = (v ^ np.uint8(0x80)).view(np.int8) if has_offset_values(recipe) else v.view(a["v"].dtype)
    k_scale, v_scale = a["k_scale"], a["v_scale"]
    k_cut = {
        "token": lambda: take_tokens(k_scale[..., : p.kv_len], back, xp),
        "group": lambda: k_scale[:, :, :blocks],
        "block": lambda: k_scale[:, :, :blocks, 0],
        "tensor": lambda: k_scale[:, :, 0, 0],
    }[recipe.k_granularity]()
    v_cut = {
        "tensor": lambda: v_scale[..., 0],
        "channel": lambda: v_scale[..., :d],
        "block": lambda: v_scale[:, :, :blocks, 0],
        "block_channel": lambda: v_scale[:, :, :blocks, :d],
    }[recipe.v_granularity]()
    q_scale = a["q_scale"][..., : p.q_len]
    if recipe.q_granularity != "token":
        q_scale = q_scale[..., ::KEY_BLOCK] if recipe.q_granularity == "block" else q_scale[..., 0]
    return QuantizedQKV(
        q=a["q"][:, :, : p.q_len, :d].copy(),
        k=take_tokens(a["k"][:, :, : p.kv_len, :d], back, xp).copy(),
        v=take_tokens(v, back, xp).copy(),
        q_scale=q_scale.copy(),
        k_scale=k_cut.copy(),
        v_scale=v_cut.copy(),
        q_mark=a["q_mark"][..., : p.q_len].copy(),
        kv_mark=a["kv_mark"].copy(),
        k_mean=a["k_mean"][..., :d].copy() if recipe.smooth_k else None,
        v_mean=a["v_mean"][..., :d].copy() if recipe.smooth_v else None,
        key_index=index,
        recipe=recipe,
        dtype=p.dtype,
        layout=p.layout,
        batched=p.batched,
        packed=workspace if keep else None,
    )
