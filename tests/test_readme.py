"""The README's tables are what the presets are and what was measured, and what was measured can be measured again."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from cupy_intfa.bench.report import load_reports
from cupy_intfa.demo import error_table, layer_samples
from cupy_intfa.recipe import DEFAULT_RECIPE, PRESETS
from cupy_intfa.study.report import load_study

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


def test_short_table_has_the_rates_of_the_report_and_the_errors_of_the_study(tool: ModuleType) -> None:
    (report,) = (report for report in REPORTS if report.suite == "prefill")
    table = README.split("<!-- table:short -->")[1].split("<!-- /table -->")[0]
    lines = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"]
    printed = {name: cells for name, *cells in lines[2:]}
    assert list(printed) == list(tool.IN_SHORT)
    for place, label in enumerate(tool.SHAPES):
        (case,) = (result for result in report.results if result.case.label == label)
        for name, cells in printed.items():
            entry = case.entries.get(name)
            rates = [f"{form.tops:.0f}" for form in entry.forms.values() if form.tops] if entry else []
            assert all(rate in cells[place] for rate in rates), (name, label)
            assert rates or cells[place] == "–" or "*" in cells[place]
    rows = load_study("peers").rows
    for name, stands, mark in (("fast", "fast", ""), ("SageAttention 2", "SageAttention 2, emulated", "≈ ")):
        errors = [row["relative_rmse"] for row in rows if row["recipe"] == stands and row["case"].startswith("layer")]
        assert printed[name][-1] == f"{mark}{sum(errors) / 6:#.2g}"


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
