"""The command line: ``python -m cupy_intfa demo | info | check | explain | simulate | bench | study``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cupy_intfa.backends import attend_on_numpy, numpy_dtype, quantise_on_numpy
from cupy_intfa.bench.cases import SUITES
from cupy_intfa.bench.plots import save_picture
from cupy_intfa.bench.report import save_report
from cupy_intfa.bench.runner import CONTENDERS, choose_contenders, run_suite
from cupy_intfa.bench.tables import as_text, make_table
from cupy_intfa.bench.timing import Budget
from cupy_intfa.data.families import make_qkv
from cupy_intfa.demo import FULL, QUICK, Demo, ErrorTable, draw, run_demo
from cupy_intfa.device import default_device
from cupy_intfa.environment import environment
from cupy_intfa.kernel_table import NAMED_KERNELS
from cupy_intfa.plan import BACKENDS, make_plan
from cupy_intfa.problem import ALIGNMENTS, DTYPES, AttentionProblem, make_problem
from cupy_intfa.ptxsim import CompileError, PtxError, SimulationError
from cupy_intfa.recipe import DEFAULT_RECIPE, PRESETS, get_recipe
from cupy_intfa.selftest import self_test
from cupy_intfa.simulate import simulate
from cupy_intfa.simulator import ARCHITECTURES, DEFAULT_ARCH, simulated_device
from cupy_intfa.study import command as study_command

_REFUSALS = (ValueError, NotImplementedError, OSError, ImportError, SimulationError, PtxError, CompileError)
_PICTURE = "cupy_intfa_demo.png"
_RESULTS = "notebooks/results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if not given.

    Returns
    -------
    int
        0, or 1 where a check failed or the picture that ``--output`` names could not be made.

    Raises
    ------
    SystemExit
        With status 2, for arguments that are not understood, cannot run or cannot be written to.

    Examples
    --------
    >>> main(["explain", "--q-len", "128", "--causal", "--backend", "numpy"])
    numpy: emulator, key tile 64, recipe fast
      q (1, 8, 128, 64), k and v (1, 8, 128, 64), float16, layout bhsd, mask: query i sees keys up to i+0, scale 0.125
      0.01691 Gop in both products
      because backend='numpy' was asked for
    0
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except _REFUSALS as error:  # a wrong shape, backend or path, a kernel's mistake: the text says which
        parser.exit(2, f"python -m cupy_intfa {arguments.command}: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cupy_intfa", description="INT8 FlashAttention.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="the error of every preset on real activations, a table and a picture")
    demo.add_argument("--quick", action="store_true", help="short synthetic sets")
    demo.add_argument("--output", metavar="PNG", help=f"where the picture goes (default: {_PICTURE})")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions, GPUs, kernels, and why what is missing is missing")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="a self-test; exits with 1 if anything failed")
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="what a call would run, and why")
    explain.set_defaults(run=_explain)
    _add_problem(explain, heads=8, q_len=4096)

    simulation = commands.add_parser("simulate", help="run the kernels without a GPU, on random input: the trace")
    simulation.set_defaults(run=_simulate)
    _add_problem(simulation, heads=1, q_len=64)
    simulation.add_argument(
        "--arch", choices=ARCHITECTURES, default=DEFAULT_ARCH, help="the GPU (default: %(default)s)"
    )
    simulation.add_argument("--seed", type=int, metavar="N", help="draws the order of warps (default: all in step)")
    simulation.add_argument("--kernel", choices=("cuda", *NAMED_KERNELS), default="cuda", help="default: the plan's")

    _add_bench(commands.add_parser("bench", help="speed and error against the rivals that are installed, as JSON"))

    study = commands.add_parser("study", help="questions about the error, with their answers as JSON and figures")
    study_command.add_arguments(study)
    study.set_defaults(run=study_command.run)

    for command in (demo, check, explain):
        command.add_argument("--backend", choices=BACKENDS, default="auto")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON to stdout, and nothing else")
    return parser


def _add_problem(command: argparse.ArgumentParser, heads: int, q_len: int) -> None:
    for name, default, text in (
        ("batch", 1, "B"),
        ("heads", heads, "Hq, heads of q"),
        ("kv-heads", None, "Hkv, heads of k and v (default: as q)"),
        ("q-len", q_len, "Sq, queries"),
        ("kv-len", None, "Skv, keys (default: as q)"),
        ("head-dim", 64, "D"),
    ):
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    command.add_argument("--dtype", choices=DTYPES, default="float16")
    command.add_argument("--causal", action="store_true", help="hide the keys behind each query")
    command.add_argument("--alignment", choices=ALIGNMENTS, help="of the causal mask, where Sq and Skv differ")
    command.add_argument("--recipe", choices=tuple(PRESETS), default=DEFAULT_RECIPE)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--suite", nargs="+", choices=tuple(SUITES), default=tuple(SUITES), help="which (default: all)")
    bench.add_argument("--only", nargs="+", metavar="NAME", help="contenders, as --list names them (default: all)")
    duration = bench.add_mutually_exclusive_group()
    duration.add_argument("--seconds", type=float, default=Budget.seconds, metavar="T", help="timed for a case, about")
    duration.add_argument("--rounds", type=int, metavar="N", help="timed for a case, whatever they take")
    bench.add_argument("--output", metavar="DIR", default=_RESULTS, help="of the JSON files (default: %(default)s)")
    bench.add_argument("--commit", metavar="TEXT", help="of git describe --always --dirty, away from a checkout")
    bench.add_argument("--plot", action="store_true", help="also draw TOPS over length beside each file")
    bench.add_argument("--list", action="store_true", help="the suites and contenders, and why one is missing; no GPU")
    bench.set_defaults(run=_bench)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _demo(arguments: argparse.Namespace) -> int:
    demo = run_demo(QUICK if arguments.quick else FULL, arguments.backend)
    if not arguments.json:
        print(f"relative RMSE against float64: the layers of {demo.model} on real text, then synthetic sets\n")
        print(_format(demo.table))
        print(f"\nbackend {demo.backend}, {demo.seconds:.1f} s")
    picture = _draw(demo, arguments.output or _PICTURE)
    if arguments.json:
        _print_json({**asdict(demo), "table": asdict(demo.table), "picture": picture})
    elif picture:
        print(f"picture: {picture}")
    return int(picture is None and arguments.output is not None)


def _draw(demo: Demo, file: str) -> str | None:
    try:
        draw(demo, file)
    except ImportError as error:
        print(f"no picture: {error}; pip install 'cupy-intfa[plot]' brings matplotlib", file=sys.stderr)
        return None
    return file


def _format(table: ErrorTable) -> str:
    head = " " * 12 + "".join(f"{'layer ' + name if name.isdigit() else name:>10}" for name in table.columns)
    rows = (f"{name:<12}" + "".join(f"{error:#10.3g}" for error in row) for name, row in table.errors.items())
    return "\n".join([head, *rows])


def _info(arguments: argparse.Namespace) -> int:
    found = environment()
    if arguments.json:
        _print_json(asdict(found))
    else:
        print(found)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    checks = []
    for check in self_test(arguments.backend):
        checks.append(check)
        if not arguments.json:
            print(check, flush=True)
    failed = sum(not check.passed for check in checks)
    if arguments.json:
        _print_json({"passed": failed == 0, "checks": [asdict(check) for check in checks]})
    else:
        print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return int(failed > 0)


def _problem(arguments: argparse.Namespace) -> AttentionProblem:
    heads = arguments.heads if arguments.kv_heads is None else arguments.kv_heads
    length = arguments.q_len if arguments.kv_len is None else arguments.kv_len
    kv_shape = (arguments.batch, heads, length, arguments.head_dim)
    return make_problem(
        (arguments.batch, arguments.heads, arguments.q_len, arguments.head_dim),
        kv_shape,
        kv_shape,
        (arguments.dtype,) * 3,
        is_causal=arguments.causal,
        causal_alignment=arguments.alignment,
    )


def _explain(arguments: argparse.Namespace) -> int:
    problem = _problem(arguments)
    plan = make_plan(problem, get_recipe(arguments.recipe), arguments.backend, default_device())
    if arguments.json:
        _print_json({**asdict(plan), "operations": plan.operations})
    else:
        print(plan)
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    a, problem = arguments, _problem(arguments)
    plan = make_plan(problem, get_recipe(a.recipe), a.kernel, simulated_device(a.arch))
    sizes = {name: getattr(problem, name) for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")}
    made = make_qkv("normal", **sizes, seed=0, dtype=numpy_dtype(a.dtype))
    options = {"is_causal": a.causal, "causal_alignment": a.alignment, "recipe": a.recipe}
    start = time.perf_counter()
    out, trace = simulate(*made, arch=a.arch, seed=a.seed, backend=a.kernel, **options)
    seconds = time.perf_counter() - start
    twin, _ = attend_on_numpy(plan, quantise_on_numpy(plan, made), None)
    off = float(np.abs(out.astype(np.float64) - twin.astype(np.float64)).max())
    traces = (*trace.before, trace)
    if a.json:
        _print_json({"arch": a.arch, "seconds": seconds, "off": off, "launches": [one.to_json() for one in traces]})
        return 0
    print(*traces, sep="\n\n")
    print(f"\n{a.arch}, {seconds:.1f} s; farthest from the emulator: {off:.3g}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list_bench(arguments.json)
    contenders = choose_contenders(arguments.only)
    budget = Budget(seconds=arguments.seconds, rounds=arguments.rounds)
    reports = []
    for name in arguments.suite:
        report = run_suite(SUITES[name], contenders, budget, _tell, arguments.commit)
        file = save_report(report, Path(arguments.output))
        reports.append(report)
        if arguments.plot and report.measures == "speed":
            save_picture(report, file.with_suffix(".png"))
        if not arguments.json:
            print(f"{name}: {SUITES[name].text}\n\n{as_text(make_table(report))}\nwritten: {file}\n", flush=True)
    if arguments.json:
        _print_json([report.to_json() for report in reports])
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _list_bench(as_json: bool) -> int:
    missing = {contender.name: contender.missing() for contender in CONTENDERS}
    if as_json:
        suites = {name: [asdict(case) for case in suite.cases] for name, suite in SUITES.items()}
        _print_json({"suites": suites, "missing": missing})
        return 0
    for name, suite in SUITES.items():
        print(f"suite {name:<12}{suite.text}\n" + "\n".join(f"{'':<18}{case}" for case in suite.cases))
    for name, reason in missing.items():
        print(f"contender {name:<20}{f'missing: {reason}' if reason else 'here'}")
    return 0
