"""Quantisation: the same code, with the same bits, on NumPy and on CuPy arrays.

What attention needs (`quantize_arrays`), and the toolbox that it stands on: formats from 8 to 2 bits, calibration, fake
quantisation, weight quantisers. A tour is in the notebooks 02 and 04.
"""

from cupy_intfa.quantize.affine import quantize_asymmetric, quantize_symmetric
from cupy_intfa.quantize.awq import awq_quantize
from cupy_intfa.quantize.bits import pack_codes, unpack_codes
from cupy_intfa.quantize.blockwise import quantize_blockwise
from cupy_intfa.quantize.calibration import post_training
from cupy_intfa.quantize.fake import fake_gradients, fake_quantize
from cupy_intfa.quantize.gptq import gptq_quantize
from cupy_intfa.quantize.granularity import Granularity
from cupy_intfa.quantize.inputs import observe_inputs
from cupy_intfa.quantize.observers import observe
from cupy_intfa.quantize.outliers import decompose
from cupy_intfa.quantize.qkv import QuantizedQKV, quantize_arrays
from cupy_intfa.quantize.ranges import choose_range
from cupy_intfa.quantize.requantize import integer_matmul, multiplier_of, requantize
from cupy_intfa.quantize.smooth import smooth_quantize
from cupy_intfa.quantize.tensor import QuantizedTensor

__all__ = [
    "Granularity",
    "QuantizedQKV",
    "QuantizedTensor",
    "awq_quantize",
    "choose_range",
    "decompose",
    "fake_gradients",
    "fake_quantize",
    "gptq_quantize",
    "integer_matmul",
    "multiplier_of",
    "observe",
    "observe_inputs",
    "pack_codes",
    "post_training",
    "quantize_arrays",
    "quantize_asymmetric",
    "quantize_blockwise",
    "quantize_symmetric",
    "requantize",
    "smooth_quantize",
    "unpack_codes",
]
