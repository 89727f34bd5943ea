"""The command that lists, runs and draws studies."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from cupy_intfa import cli
from cupy_intfa.bench.report import save_report
from cupy_intfa.study import command
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import RESULTS, StudyReport, load_study

STORED = {name: load_study(name) for name in STUDIES}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(("study", *arguments)) == 0
    return capsys.readouterr().out


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)
    assert [line.split(maxsplit=1)[1] for line in lines] == [study.question for study in STUDIES.values()]
    listed = json.loads(run(capsys, "--json"))
    assert listed["memory"]["sizes"]["quick"]["lengths"] == [1024, 4096]


def test_a_run_writes_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("memory", "--quick", "--backend", "numpy", "--output", str(tmp_path), "--commit", "abc-dirty")
    text = run(capsys, *options)
    (file,) = tmp_path.iterdir()
    assert text.splitlines()[0] == STUDIES["memory"].question
    assert text.splitlines()[-1] == f"written: {file}"
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert (stored["study"], stored["size"], stored["commit"], stored["dirty"]) == ("memory", "quick", "abc", True)
    for row in stored["rows"]:
        if row["planned_bytes"] is not None:
            assert f" {row['planned_bytes']}" in text
    again = json.loads(run(capsys, *options, "--json"))
    assert again["rows"] == stored["rows"]


def test_a_gpu_gets_the_full_settings_and_nobody_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def remember(study: Any, size: str, backend: str, commit: str | None) -> StudyReport:
        asked.append((size, backend))
        return replace(STORED["memory"], size=size)

    monkeypatch.setattr(command, "run_study", remember)
    monkeypatch.setattr(command, "choose_size", lambda backend: "small" if backend == "numpy" else "full")
    for arguments in ((), ("--backend", "numpy"), ("--quick",), ("--small",), ("--full", "--backend", "numpy")):
        run(capsys, "memory", "--output", str(tmp_path), *arguments)
    assert asked == [("full", "auto"), ("small", "numpy"), ("quick", "auto"), ("small", "auto"), ("full", "numpy")]


def test_plot_draws_the_file_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_study", None)
    save_report(STORED["adversarial"], tmp_path)
    picture = tmp_path / "study_adversarial.png"
    assert run(capsys, "adversarial", "--plot", "--output", str(tmp_path)) == f"picture: {picture}\n"
    assert imread(picture).shape[1] > 800
    found = json.loads(run(capsys, "adversarial", "--plot", "--json", "--output", str(tmp_path)))
    assert found == {"picture": str(picture)}
    save_report(replace(STORED["adversarial"], size="quick"), tmp_path)
    of_quick = run(capsys, "adversarial", "--plot", "--quick", "--output", str(tmp_path))
    assert of_quick == f"picture: {tmp_path / 'study_adversarial_quick.png'}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("depth", "--plot"), "is not there: run python -m cupy_intfa study depth --output"),
        (("depth", "--plot", "--quick"), "is not there: run python -m cupy_intfa study depth --quick --output"),
        (("depths",), "invalid choice: 'depths'"),
        (("depth", "--quick", "--full"), "not allowed with argument"),
        (("ablation", "--quick", "--backend", "sm90"), "backend='sm90': "),
    ],
)
def test_what_cannot_be_done_exits_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(("study", *arguments, "--output", str(tmp_path)))
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_plot_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(("study", "memory", "--plot", "--output", str(RESULTS)))
    assert caught.value.code == 2
    assert "matplotlib" in capsys.readouterr().err
