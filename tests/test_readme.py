"""The README's tables are what the presets are and what was measured, and what was measured can be measured again."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from cupy_intfa.bench.report import load_reports
from cupy_intfa.demo import error_table, layer_samples
from cupy_intfa.recipe import DEFAULT_RECIPE, PRESETS

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((CHECKOUT / "notebooks" / "results" / "accuracy.json").read_text(encoding="utf-8"))
REPORTS = load_reports(CHECKOUT / "notebooks" / "results")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Load tools/update_readme.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("update_readme", CHECKOUT / "tools" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_up_to_date(tool: ModuleType) -> None:
    assert tool.render(README, RESULTS, REPORTS) == README, "run python tools/update_readme.py"


def test_tables_replace_what_stands_between_the_markers(tool: ModuleType) -> None:
    stale = README.replace("| `paper` |", "| `no preset` |")
    assert stale != README
    assert tool.render(stale, RESULTS, REPORTS) == README
    with pytest.raises(ValueError, match="table:presets"):
        tool.render(README.replace("<!-- table:presets -->", ""), RESULTS, REPORTS)


def test_accuracy_table_prints_the_results() -> None:
    table = README.split("<!-- table:accuracy -->")[1].split("<!-- /table -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    printed = {row.split("`")[1]: [float(cell) for cell in row.split("|")[2:-1]] for row in rows}
    assert list(printed) == list(PRESETS)
    for name, errors in RESULTS["table"]["errors"].items():
        assert printed[name] == pytest.approx(errors, rel=5e-3)  # three digits


def test_results_can_be_measured_again() -> None:
    found = error_table(layer_samples(), "numpy").errors
    for name, errors in RESULTS["table"]["errors"].items():
        # Another exp2 or BLAS moves one P in thousands by a level, far less than the third digit.
        assert errors[:6] == pytest.approx(found[name], rel=5e-3), "run python tools/update_readme.py --measure"


def test_default_sentence_divides_the_means() -> None:
    mean = RESULTS["table"]["columns"].index("mean")
    errors = {name: row[mean] for name, row in RESULTS["table"]["errors"].items()}
    sentence = README.split("<!-- table:default -->")[1].split("<!-- /table -->")[0]
    assert f"The default is `{DEFAULT_RECIPE}`." in sentence
    assert f"its error is {errors[DEFAULT_RECIPE] / errors['paper']:.2f} times that of `paper`" in sentence
