"""What holds for every study: columns, reports, tables, and findings that are made of the rows."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from study.runs import quick

from cupy_intfa import PRESETS
from cupy_intfa.bench.report import save_report
from cupy_intfa.study import ablation
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import from_json, load_study
from cupy_intfa.study.runner import choose_size
from cupy_intfa.study.study import SIZES, Pivot, distinct, one
from cupy_intfa.study.tables import make_study_table


@pytest.mark.parametrize("name", STUDIES)
def test_rows_have_the_columns_that_the_study_names(name: str) -> None:
    study, report = STUDIES[name], quick(name)
    keys = [tuple(row[key] for key in study.keys) for row in report.rows]
    assert len(set(keys)) == len(keys) > 0
    for row in report.rows:
        assert set(row) == {*study.keys, *study.values}
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers)
        spreads = [row[value] for value in row if value.endswith("_spread")]
        assert all(spread is None or spread >= 0.0 for spread in spreads)
    assert set(study.sizes) == set(SIZES)


@pytest.mark.parametrize("name", STUDIES)
def test_report_is_the_same_after_a_file(name: str, tmp_path: Path) -> None:
    report = quick(name)
    file = save_report(report, tmp_path)
    assert file.name == f"study_{name}_quick.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    read = from_json(stored)
    assert read.rows == report.rows
    assert read.to_json() == stored
    assert save_report(read, tmp_path / "again").read_text() == file.read_text()
    assert json.loads(json.dumps(asdict(STUDIES[name].sizes["quick"]))) == stored["settings"]


@pytest.mark.parametrize("name", STUDIES)
def test_findings_are_made_of_the_rows(name: str) -> None:
    study, rows = STUDIES[name], quick(name).rows
    measured = {value for value in study.values if isinstance(rows[0][value], float | int)} - {"cosine", "not_finite"}
    # Every row by a factor of its own, or ratios would stay what they are.
    changed = [
        {key: x * (1.5 + 0.01 * i) if key in measured and x else x for key, x in row.items()}
        for i, row in enumerate(rows)
    ]
    sentences = list(study.findings(rows))
    assert sentences == list(study.findings(json.loads(json.dumps(rows))))
    numbered = [text for text in sentences if any(c.isdigit() for c in text) and "not run" not in text]
    assert numbered
    kept = set(study.findings(changed)) & set(numbered)
    assert len(kept) <= len(numbered) // 4, kept


@pytest.mark.parametrize("name", STUDIES)
def test_table_prints_the_rows(name: str) -> None:
    study, report = STUDIES[name], quick(name)
    table = make_study_table(study, report)
    assert table.head[len(table.head) - len(study.table.beside) :] == study.table.beside
    cells = [cell for row in table.rows for cell in row[len(study.table.rows) : len(row) - len(study.table.beside)]]
    printed = sorted(float(cell) for cell in cells if cell != "–")
    values = sorted(row[study.table.value] for row in report.rows if row[study.table.value] is not None)
    assert_allclose(printed, values, rtol=5e-3)  # three digits
    assert table.notes == tuple(study.findings(report.rows))
    assert "commit 0123456789ab, " in table.stamp
    assert report.date[:10] in table.stamp


def test_table_can_be_laid_out_otherwise() -> None:
    study, report = STUDIES["error_tables"], quick("error_tables")
    pivot = Pivot(rows=("recipe",), columns=("keys",), value="cosine", where={"family": "normal"})
    table = make_study_table(study, report, pivot)
    assert table.head == ("recipe", "S256", "S512")
    assert [row[0] for row in table.rows] == [*(f"`{name}`" for name in PRESETS), "int8x2"]
    assert float(table.rows[0][2]) == pytest.approx(
        one(report.rows, "cosine", family="normal", keys=512, recipe="paper"), rel=5e-3
    )


def test_a_value_of_a_whole_line_stands_beside_it() -> None:
    rows = tuple({**row, "tops": 100.0 * len(row["setting"])} for row in quick("ablation").rows)
    table = make_study_table(STUDIES["ablation"], replace(quick("ablation"), rows=rows))
    assert table.head == ("base", "knob", "setting", "sink_first", "normal", "tops")
    assert [float(row[-1]) for row in table.rows] == [100.0 * len(row[2].strip("`")) for row in table.rows]


def test_report_says_where_it_ran() -> None:
    report = quick("memory")
    assert (report.commit, report.dirty, report.driver) == ("0123456789ab", False, None)
    assert report.machine.endswith("NumPy")
    assert {"numpy", "scipy", "ml_dtypes", "cupy-intfa"} <= set(report.versions)
    assert choose_size("numpy") == "small"


def test_another_schema_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    stored = quick("memory").to_json()
    for wrong in ({**stored, "schema": 2}, {"schema": 1, "suite": "paper"}):
        with pytest.raises(ValueError, match="expected the report of a study in schema 1"):
            from_json(wrong)
    with pytest.raises(FileNotFoundError, match="run python -m cupy_intfa study memory --output"):
        load_study("memory", tmp_path)


def test_one_row_is_one_row() -> None:
    with pytest.raises(LookupError, match=r"2 rows with \{'a': 1\}: expected one"):
        one([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "b", a=1)


def test_distinct_keeps_the_order() -> None:
    assert distinct(quick("ablation").rows, "base") == list(ablation.BASES)
