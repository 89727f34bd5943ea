"""Quantisation to a codebook, block by block: NF4, FP4, 8-bit floats, 8-bit optimiser state.

A block's absolute maximum is mapped to the largest level; its elements, times the rounded reciprocal of the scale, go
to the nearest level, and halfway to the lower one (8-bit floats and e2m1: to the even code). Blocks run through the
array in C order, as in QLoRA and bitsandbytes. On CuPy arrays, NF4 in blocks of 64 is made and read by kernels
(kernels_cu/formats_encode.cu, formats_decode.cu).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cupy_intfa.quantize.arithmetic import (
    FLOAT32_TINY,
    Array,
    Namespace,
    check_floats,
    flush,
    mean_over_tokens,
    read_finite,
)
from cupy_intfa.quantize.formats import KERNEL_FORMATS, Codebook, codebook
from cupy_intfa.quantize.granularity import (
    KERNEL_BLOCK,
    Granularity,
    as_granularity,
    namespace_of,
    reduce_groups,
    spread_groups,
)
from cupy_intfa.quantize.tensor import QuantizedTensor, pack_tensor

SCALE_BLOCK = 256  # scales that share a scale in double quantisation
_LARGEST_SCALE = np.float32(2.0**126)  # the reciprocal of a larger one is subnormal


def quantize_blockwise(
    x: Array,
    format: str = "nf4",
    granularity: Granularity | str = KERNEL_BLOCK,
    *,
    double: bool = False,
) -> QuantizedTensor:
    """Quantise to the nearest level of a codebook.

    Parameters
    ----------
    x : array
        float16, bfloat16, float32 or float64, read as float32; never written.
    format : str
        A codebook of `cupy_intfa.quantize.formats`.
    granularity : Granularity or str
        Which elements share a scale; blocks of 64 in C order by default, as QLoRA has them (bitsandbytes takes 256
        for optimiser state).
    double : bool
        Quantise the scales too: their mean subtracted, to ``dynamic8`` in blocks of 256 (arXiv 2305.14314, section 3).

    Returns
    -------
    QuantizedTensor
        A block of zeros has scale 2^-126. A block with a NaN, an infinity or a scale above 2^126 comes back as NaN;
        with `double`, so does everything that shares the scale of that block's scale.

    Raises
    ------
    TypeError
        If x is not an array of floats.
    ValueError
        For an unknown format or granularity.

    Notes
    -----
    Bits per element, float32 scales included: 4.5 for NF4 in blocks of 64, 4.127 with `double`.

    Examples
    --------
    >>> x = quantize_blockwise(np.float32([0.1, -0.3, 1.0, 0.0]))
    >>> x.codes().tolist(), x.dequantize().tolist()
    ([8, 4, 15, 7], [0.0795803..., -0.2844413..., 1.0, 0.0])
    """
    xp, book, spec = namespace_of(x), codebook(format), as_granularity(granularity)
    check_floats(x)
    if xp is not np and spec == KERNEL_BLOCK and format in KERNEL_FORMATS:
        from cupy_intfa.quantize import formats_launch  # compiles kernels: only where there is a GPU

        packed, scale = formats_launch.encode(x, format)
        made = QuantizedTensor(values=packed, scale=scale, shape=tuple(x.shape), format=format, granularity=spec)
    else:
        made = pack_tensor(*_encode(x, book, spec, xp), format, spec)
    return replace(made, scale=quantize_scales(made.scale, xp)) if double else made


def _encode(x: Array, book: Codebook, spec: Granularity, xp: Namespace) -> tuple[Array, Array]:
    """Give codes and scales."""
    values, bad = read_finite(x, xp)
    absmax = reduce_groups(xp.abs(values), spec, "max", xp)
    # Not 1 for a block of zeros: it would coarsen the other scales when they are quantised.
    scale = xp.maximum(absmax / np.float32(book.largest), FLOAT32_TINY)
    is_bad = reduce_groups(bad, spec, "any", xp) | (scale > _LARGEST_SCALE)
    inverse = flush(np.float32(1) / xp.where(is_bad, np.float32(np.inf), scale), xp)
    codes = book.encode(flush(values * spread_groups(inverse, spec, x.shape, xp), xp), xp)
    return codes, xp.where(is_bad, np.float32(np.nan), scale)


def quantize_scales(scale: Array, xp: Namespace) -> QuantizedTensor:
    """Quantise scales to 8 bits around their mean: the double quantisation of QLoRA.

    Parameters
    ----------
    scale : array, float32
        Any shape; NaN where a group is marked.
    xp : module
        numpy or cupy.

    Returns
    -------
    QuantizedTensor
        Of format ``dynamic8`` in blocks of 256; its minimum is the mean, a NaN counted as 0.

    Examples
    --------
    >>> quantize_scales(np.float32([1, 2, 3]), np).dequantize().tolist()
    [1.0070..., 2.0, 3.0]
    """
    flat = xp.where(xp.isfinite(scale), scale, np.float32(0)).reshape(1, 1, -1, 1)
    mean = mean_over_tokens(flat, xp).reshape(1) if scale.size else xp.zeros(1, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        centred = flush(scale - mean, xp)
    return replace(quantize_blockwise(centred, "dynamic8", Granularity("flat", SCALE_BLOCK)), minimum=mean)
