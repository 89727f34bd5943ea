"""Run the kernels' PTX without a GPU: a NumPy interpreter with checks that no GPU makes."""

from cupy_intfa.ptxsim.errors import PtxError, SimulationError
from cupy_intfa.ptxsim.kernel import launch
from cupy_intfa.ptxsim.machine import PLAIN, Options
from cupy_intfa.ptxsim.memory import GlobalMemory
from cupy_intfa.ptxsim.trace import Trace

__all__ = ["PLAIN", "GlobalMemory", "Options", "PtxError", "SimulationError", "Trace", "launch"]
