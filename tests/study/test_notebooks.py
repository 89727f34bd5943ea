"""The notebooks show the committed results: each study has its page, its figure, and the command under it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupy_intfa.study.pages import conclude, introduce
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import RESULTS, load_study

FILES = sorted(RESULTS.parent.glob("0[5-8]_*.ipynb"))


def shown(file: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Give the code cells of a notebook, and what each displays."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), [output.get("data", {}) for output in cell["outputs"]])
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_notebooks_are_small_enough_to_be_read_on_the_web() -> None:
    assert [file.name[:2] for file in FILES] == ["05", "06", "07", "08"]
    assert max(file.stat().st_size for file in FILES) < 1_000_000


@pytest.mark.parametrize("name", STUDIES)
def test_study_has_a_page_with_its_result(name: str) -> None:
    pages = {source: outputs for file in FILES for source, outputs in shown(file)}
    again = "the notebook is older than the result: run make notebooks"
    (question,) = pages[f'ask("{name}")']
    assert "".join(question["text/markdown"]) == introduce(STUDIES[name]), again
    figure, answer = pages[f'answer("{name}")']
    assert len(figure["image/png"]) > 10_000
    text = "".join(answer["text/markdown"])
    assert text == conclude(STUDIES[name], load_study(name)), again
    assert text.endswith(f"**Again:** `python -m cupy_intfa study {name} --{load_study(name).size}`")
