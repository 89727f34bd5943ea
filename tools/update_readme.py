"""Write the tables of README.md between their markers, from what was measured and from the presets themselves.

Errors come from ``notebooks/results/accuracy.json``, which ``--measure`` writes anew (NumPy, some seconds); speeds from
the reports beside it, which ``python -m cupy_intfa bench`` and ``python tools/bench_gemm.py`` write on a machine with a
GPU; what the studies found, and two pictures, from those of ``python -m cupy_intfa study``.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import cupy_intfa
from cupy_intfa.bench.cases import SUITES
from cupy_intfa.bench.report import Report, load_reports
from cupy_intfa.bench.tables import make_table
from cupy_intfa.demo import FULL, run_demo
from cupy_intfa.environment import environment
from cupy_intfa.recipe import DEFAULT_RECIPE, PRESETS, Recipe
from cupy_intfa.study import peers
from cupy_intfa.study.plots import draw
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import load_study
from cupy_intfa.study.study import Rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "notebooks" / "results" / "accuracy.json"
GEMM = RESULTS.with_name("gemm_nvidia-h200.json")
PICTURES = ("length", "speed")
# The table that the README begins with: who, and at which of the shapes of the suite `prefill`.
IN_SHORT = ("fast", "precise", "half", "paper", *peers.RIVALS, "FA2 fp16")
SHAPES = ("S16k D64", "S16k D128", "S8k D256")
NOT_MEASURED = "–"
# Findings of each study, from its first; of the speeds where they were measured, and `paper` against three rivals.
STUDIED = {"error_tables": 2, "speed": 7, "length": 2, "peers": 5, "adversarial": 4, "v_quantisation": 2, "memory": 2}


def measure() -> dict[str, Any]:
    """Run the demo and stamp what it found with what it ran on."""
    demo, found = run_demo(FULL, backend="numpy"), environment()
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return {
        "on": "CPU, NumPy",
        "date": date.today().isoformat(),
        "commit": subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip(),
        "version": cupy_intfa.__version__,
        "python": found.python,
        "packages": {name: found.packages[name] for name in ("numpy", "ml_dtypes")},
        "model": demo.model,
        "size": asdict(FULL),
        "table": asdict(demo.table),
        "lengths": asdict(demo.lengths),
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table, numbers to the right."""
    rule = ["---"] + ["---:" if re.fullmatch(r"[\d.]+( [/%].*)?", cell) else "---" for cell in rows[0][1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def accuracy_table(results: dict[str, Any]) -> str:
    """Relative RMSE, a row for each preset."""
    columns, size = results["table"]["columns"], results["size"]
    head = ["preset", *(f"layer {name}" if name.isdigit() else name for name in columns)]
    rows = [[f"`{name}`", *(f"{x:#.3g}" for x in row)] for name, row in results["table"]["errors"].items()]
    packages = ", ".join(f"{name} {version}" for name, version in results["packages"].items())
    return (
        f"{markdown(head, rows)}\n\n"
        f"Layers and their mean: {results['model']} on the text in `cupy_intfa/data`. The other sets: "
        f"{size['queries']} queries and {size['keys']} keys in {size['heads']} heads, D {size['head_dim']}. "
        f"Measured on {results['on']}: version {results['version']}, commit {results['commit']}, {packages}, "
        f"Python {results['python']}, {results['date']}."
    )


def growth_sentence(results: dict[str, Any]) -> str:
    """Say what longer rows cost."""
    lengths = results["lengths"]
    growth = (
        f"`{name}` from {lengths['errors'][name][0]:#.2g} to {lengths['errors'][name][-1]:#.2g}"
        for name in ("paper", "fast", "precise", "half")
    )
    return f"From {lengths['columns'][0]} to {lengths['columns'][-1]} keys of N(0, 1): {', '.join(growth)}."


def default_sentence(results: dict[str, Any]) -> str:
    """Say how the default compares on the real activations."""
    mean = results["table"]["columns"].index("mean")
    errors = {name: row[mean] for name, row in results["table"]["errors"].items()}

    def share(name: str) -> str:
        return f"`{name}` {errors[name] / errors['paper']:.2f}"

    others = ", ".join(share(name) for name in ("fast", "precise", "half", "fp8_e4m3") if name != DEFAULT_RECIPE)
    return (
        f"The default is `{DEFAULT_RECIPE}`. On the real activations its error is "
        f"{errors[DEFAULT_RECIPE] / errors['paper']:.2f} times that of `paper`, on average over the layers ({others})."
    )


def short_table(reports: Sequence[Report]) -> str:
    """Speed and error of the presets beside what a user would take instead: a row for each."""
    report = next((report for report in reports if report.suite == "prefill"), None)
    if report is None:
        return "Not measured yet."
    table, study = make_table(report), load_study(peers.STUDY.name)
    shapes = [title for title in SHAPES if title in table.head]
    places = [table.head.index(title) for title in (*shapes, "error")]
    rows = []
    for name in IN_SHORT:
        cells = next((row for row in table.rows if row[0].strip("`") == name), None)
        if cells:
            *rates, normal = (cells[place] for place in places)
            normal = mean_error(study.rows, name, ("normal",)) if normal == NOT_MEASURED else normal
            rows.append([cells[0], *rates, normal, mean_error(study.rows, name, peers.LAYERS)])
    return (
        f"{markdown(['TOPS', *shapes, 'error, N(0, 1)', 'error, real'], rows)}\n\n"
        "TOPS by the kernel alone / from 16-bit tensors, quantising included; relative RMSE against float64 of N(0, 1) "
        "in the last shape that ran, and on average over the layers of a small transformer. "
        f"{report.gpu}, commit {report.commit}, {report.date[:10]}; real: {study.machine}, {study.date[:10]}. * cited; "
        f"≈ emulated on a CPU, N(0, 1) at D{study.settings['head_dim']} and {study.settings['keys']} keys; ~ disturbed "
        "while it was measured. All shapes, and what they were measured with, are [below](#speed)."
    )


def mean_error(rows: Rows, name: str, cases: Sequence[str]) -> str:
    """Average the error over some cases, of a rival or of what stands for it."""
    for who, mark in ((name, ""), (peers.STAND_IN.get(name), "≈ ")):
        found = [row["relative_rmse"] for row in rows if row["recipe"] == who and row["case"] in cases]
        if found and None not in found:
            return f"{mark}{fmean(found):#.2g}"
    return NOT_MEASURED


def speed_tables(reports: Sequence[Report]) -> str:
    """Lay out every report, in the order of the suites; what several have to say is said once."""
    if not reports:
        return (
            "Not measured yet. `make bench` on a machine with a GPU writes reports into `notebooks/results`, and "
            "`python tools/update_readme.py` makes tables of them."
        )
    blocks, stamps = [], []
    for report in sorted(reports, key=lambda report: (list(SUITES).index(report.suite), report.gpu)):
        table = make_table(report)
        blocks += [f"`{report.suite}`: {SUITES[report.suite].text}.", markdown(table.head, table.rows), *table.notes]
        stamps.append(table.stamp)
    return "\n\n".join(dict.fromkeys(blocks + stamps))


def gemm_table(results: dict[str, Any]) -> str:
    """Lay out the TOPS of the INT8 products: a row for each contender, a column for each shape."""
    rates: dict[str, dict[str, str]] = {}
    for row in results["rows"]:
        rate = row["operations_per_s"] / 1e12
        side = f"{row['m']}³" if row["m"] == row["n"] else f"{row['m']} × {row['n']}²"
        shape = side if row["b"] == "column-major" else f"{side}, B {row['b']}"
        rates.setdefault(row["name"], {})[shape] = f"{rate:.0f}" if rate >= 100 else f"{rate:#.3g}"
    shapes = list(dict.fromkeys(shape for row in rates.values() for shape in row))
    rows = [[f"`{name}`", *(row.get(shape, "–") for shape in shapes)] for name, row in rates.items()]
    stamp = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{markdown(['TOPS', *shapes], rows)}\n\n"
        f"Measured on an {results['gpu']['name']}, driver {results['gpu']['driver_version']}, commit "
        f"{results['commit']}: {stamp}."
    )


def study_sentences() -> str:
    """Say what the studies found, in sentences that each makes of its rows."""
    blocks = []
    for name, count in STUDIED.items():
        study = STUDIES[name]
        blocks += [
            f"*{study.question}*",
            "",
            *(f"- {text}" for text in islice(study.findings(load_study(name).rows), count)),
            "",
        ]
    return "\n".join(blocks).rstrip()


def preset_table() -> str:
    """Describe the presets."""
    head = [
        "preset",
        "Q·Kᵀ",
        "P·V",
        "a scale per … of Q / K / V",
        "P, relative to",
        "row sum",
        "keys",
        "before quantising",
    ]
    return markdown(head, [[f"`{name}`", *in_words(recipe)] for name, recipe in PRESETS.items()])


def in_words(recipe: Recipe) -> list[str]:
    """Describe a recipe, field by field."""
    formats = {"int8": "INT8", "float16": "FP16", "float8_e4m3": "FP8 e4m3", "float8_e5m2": "FP8 e5m2"}
    shares = {
        "tensor": "head",
        "token": "token",
        "group": f"group of {recipe.key_block // 4} keys",
        "channel": "channel",
        "block_channel": f"{recipe.key_block} keys × channel",
    }
    granularities = (recipe.q_granularity, recipe.k_granularity, recipe.v_granularity)
    reference = "running maximum" if recipe.p_reference == "running" else "maximum of the tile"
    centred = " and ".join(name for name, on in (("K", recipe.smooth_k), ("V", recipe.smooth_v)) if on)
    before = [f"{centred} centred"] if centred else []
    before += ["Q and K rotated"] if recipe.rotate else []
    return [
        formats[recipe.qk],
        formats[recipe.pv],
        " / ".join(shares[granularity] for granularity in granularities),
        f"0…{recipe.p_levels}, {reference}",
        "rounded P" if recipe.row_sum == "quantised" else "P before rounding",
        recipe.key_order.replace("_", " ") + (f", sorted in each {recipe.key_window}" if recipe.key_window else ""),
        ", ".join(before) or "–",
    ]


def render(readme: str, results: dict[str, Any], reports: Sequence[Report]) -> str:
    """Fill every pair of markers."""
    texts = {
        "accuracy": accuracy_table(results),
        "default": default_sentence(results),
        "gemm": gemm_table(json.loads(GEMM.read_text(encoding="utf-8"))),
        "growth": growth_sentence(results),
        "short": short_table(reports),
        "presets": preset_table(),
        "speed": speed_tables(reports),
        "study": study_sentences(),
    }
    for name, text in texts.items():
        block = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", flags=re.DOTALL)
        if len(block.findall(readme)) != 1:
            raise ValueError(f"expected one '<!-- table:{name} -->' … '<!-- /table -->' in README.md")
        literal = text.replace("\\", "\\\\")  # reasons of missing rivals are free text, and sub() reads escapes
        readme = block.sub(rf"\g<1>{literal}\n\g<2>", readme)
    return readme


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure again first")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README.md would change")
    arguments = parser.parse_args()
    if arguments.measure:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    old = README.read_text(encoding="utf-8")
    new = render(old, json.loads(RESULTS.read_text(encoding="utf-8")), load_reports(RESULTS.parent))
    if arguments.check:
        print("README.md is up to date" if old == new else "README.md is not: run python tools/update_readme.py")
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    for name in PICTURES:
        draw(load_study(name)).savefig(RESULTS.parent / f"study_{name}.png", dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
