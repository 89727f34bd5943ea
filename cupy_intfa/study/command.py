"""The command ``python -m cupy_intfa study``: list the studies, run one, draw one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from cupy_intfa.bench.report import save_report
from cupy_intfa.bench.tables import as_text
from cupy_intfa.plan import BACKENDS
from cupy_intfa.study.plots import draw
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import load_study
from cupy_intfa.study.runner import choose_size, run_study
from cupy_intfa.study.tables import make_study_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    Parameters
    ----------
    parser : ArgumentParser
        Of the command.
    """
    parser.add_argument("name", nargs="?", choices=tuple(STUDIES), help="which (default: list them)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="seconds, for a look")
    size.add_argument("--small", dest="size", action="store_const", const="small", help="minutes on two cores")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="default where there is a GPU")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--output", metavar="DIR", default="notebooks/results", help="default: %(default)s")
    parser.add_argument("--commit", metavar="TEXT", help="of git describe --always --dirty, away from a checkout")
    parser.add_argument("--plot", action="store_true", help="run nothing: draw the JSON file that is in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : Namespace
        As parsed.

    Returns
    -------
    int
        0.

    Raises
    ------
    FileNotFoundError
        If there is nothing to draw.
    """
    if arguments.name is None:
        return _list(arguments.json)
    folder = Path(arguments.output)
    if arguments.plot:
        return _plot(arguments.name, folder, arguments.size == "quick", arguments.json)
    size = arguments.size or choose_size(arguments.backend)
    study = STUDIES[arguments.name]
    report = run_study(study, size, arguments.backend, arguments.commit)
    file = save_report(report, folder)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(f"{study.question}\n\n{as_text(make_study_table(study, report))}\n\n{study.limits}\nwritten: {file}")
    return 0


def _plot(name: str, folder: Path, quick: bool, as_json: bool) -> int:
    report = load_study(name, folder, quick=quick)
    picture = (folder / report.file_name).with_suffix(".png")
    draw(report).savefig(picture, dpi=150)
    print(json.dumps({"picture": str(picture)}) if as_json else f"picture: {picture}")
    return 0


def _list(as_json: bool) -> int:
    if as_json:
        found = {
            name: {"question": study.question, "sizes": {size: asdict(made) for size, made in study.sizes.items()}}
            for name, study in STUDIES.items()
        }
        print(json.dumps(found, indent=1))
        return 0
    for name, study in STUDIES.items():
        print(f"{name:<16}{study.question}")
    return 0
