"""Quantisation: the same code, with the same bits, on NumPy and on CuPy arrays."""

from cupy_intfa.quantize.qkv import QuantizedQKV, quantize_arrays

__all__ = ["QuantizedQKV", "quantize_arrays"]
