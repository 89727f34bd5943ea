"""How long a process waits for its first result: kernels compiled, and kernels found on disk.

Run as a module it is one such process: ``python -m cupy_intfa.bench.first_call RECIPE`` reads a case as JSON from
stdin and prints seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

import numpy as np

from cupy_intfa.attention import attention
from cupy_intfa.bench.cases import Case
from cupy_intfa.bench.timing import Timing, summarise
from cupy_intfa.data.families import make_qkv


def measure(case: Case, preset: str) -> dict[str, Timing]:
    """Time the first call of two processes that share a kernel cache, empty at the start.

    Parameters
    ----------
    case : Case
        The shape. B is taken as 1, H as 4: compiling does not depend on them.
    preset : str
        The recipe.

    Returns
    -------
    dict of str to Timing
        ``compile`` for the first process, ``disk_cache`` for the second.

    Raises
    ------
    OSError
        If a process fails; the text is the end of what it said.
    """
    with tempfile.TemporaryDirectory() as cache:
        return {form: summarise([1e3 * _seconds(case, preset, cache)]) for form in ("compile", "disk_cache")}


def _seconds(case: Case, preset: str, cache: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", __name__, preset],
        input=json.dumps(asdict(case)),
        env={**os.environ, "CUPY_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise OSError(f"the process of the first call failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def _main(preset: str, case: Case) -> None:
    import cupy

    shape = {"heads": 4, "q_len": case.q_len, "kv_len": case.kv_len, "head_dim": case.head_dim}
    q, k, v = (cupy.asarray(x) for x in make_qkv("normal", **shape, dtype=np.float16))  # makes the CUDA context too
    cupy.cuda.runtime.deviceSynchronize()
    start = time.perf_counter()
    attention(q, k, v, is_causal=case.causal, recipe=preset, backend="cuda")
    cupy.cuda.runtime.deviceSynchronize()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    _main(sys.argv[1], Case(**json.load(sys.stdin)))
