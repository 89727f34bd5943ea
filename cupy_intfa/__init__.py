"""INT8 FlashAttention in CUDA C++, compiled at run time by CuPy, driven from NumPy-style Python."""

from cupy_intfa.attention import attention, attention_quantized, explain, quantize_qkv
from cupy_intfa.encoder import Encoder
from cupy_intfa.encoder_bert import read_bert
from cupy_intfa.gemm import explain_int8_matmul, int8_matmul
from cupy_intfa.gemm_plan import GemmPlan
from cupy_intfa.linear import QuantizedLinear
from cupy_intfa.plan import Plan
from cupy_intfa.ptxsim import SimulationError, Trace
from cupy_intfa.quantize import QuantizedQKV
from cupy_intfa.recipe import PRESETS, Recipe, get_recipe
from cupy_intfa.simulate import simulate

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Encoder",
    "GemmPlan",
    "Plan",
    "QuantizedLinear",
    "QuantizedQKV",
    "Recipe",
    "SimulationError",
    "Trace",
    "attention",
    "attention_quantized",
    "explain",
    "explain_int8_matmul",
    "get_recipe",
    "int8_matmul",
    "quantize_qkv",
    "read_bert",
    "simulate",
]
