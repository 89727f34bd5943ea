"""Run the kernels' PTX without a GPU: a NumPy interpreter with checks that no GPU makes."""

from cupy_intfa.ptxsim.compiler import CompileError, compile_ptx
from cupy_intfa.ptxsim.errors import PtxError, SimulationError
from cupy_intfa.ptxsim.kernel import launch
from cupy_intfa.ptxsim.memory import GlobalMemory
from cupy_intfa.ptxsim.options import PLAIN, Options
from cupy_intfa.ptxsim.trace import Trace

__all__ = [
    "PLAIN",
    "CompileError",
    "GlobalMemory",
    "Options",
    "PtxError",
    "SimulationError",
    "Trace",
    "compile_ptx",
    "launch",
]
