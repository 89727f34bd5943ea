"""The pictures of the studies show what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from cupy_intfa.study.plots import DRAWINGS, draw
from cupy_intfa.study.registry import STUDIES
from cupy_intfa.study.report import StudyReport, load_study
from cupy_intfa.study.study import pick

STORED = {name: load_study(name) for name in STUDIES}


def drawn_values(report: StudyReport) -> np.ndarray:
    """Collect the coordinates of every line of a picture."""
    lines = [line for axes in draw(report).axes for line in axes.get_lines()]
    return np.concatenate([x for line in lines for x in line.get_data(orig=False)])


def test_every_study_has_a_picture() -> None:
    assert list(DRAWINGS) == list(STUDIES)


@pytest.mark.parametrize(
    "name", [name for name in STUDIES if name not in ("ablation", "memory", "speed", "architectures")]
)
def test_pictures_show_the_measured_errors(name: str) -> None:
    report = STORED[name]
    shown = [row for row in report.rows if name != "error_tables" or (row["head_dim"] != 128 and row["ran"] != "cited")]
    values = np.array([row["relative_rmse"] for row in shown if row["relative_rmse"] is not None])
    if name == "length":  # every length of one D, then every D and layout of one length
        assert len(values) == len(report.rows)
    assert np.isin(values, drawn_values(report)).all()


def test_picture_of_knobs_shows_shares() -> None:
    report = STORED["ablation"]
    rows = pick(report.rows, base="fast", data="normal")
    (whole,) = (row["relative_rmse"] for row in rows if row["knob"] == "none")
    shares = [row["relative_rmse"] / whole for row in rows if row["knob"] != "none"]
    assert np.isin(shares, drawn_values(report)).all()


def test_picture_of_memory_shows_gigabytes() -> None:
    report = STORED["memory"]
    planned = [row["planned_bytes"] / 2**30 for row in report.rows if row["planned_bytes"] is not None]
    assert np.isin(planned, drawn_values(report)).all()
    measured = replace(report, rows=tuple({**row, "measured_bytes": 12345 << 10} for row in report.rows))
    assert np.isin(12345 / 2**20, drawn_values(measured))


def test_picture_of_speed_shows_rates_and_bounds() -> None:
    report = STORED["speed"]
    drawn = drawn_values(report)
    for row in pick(report.rows, mask="no mask"):
        if row["head_dim"] in (64, 128):
            assert row["tops"] in drawn
    bounded = [row for row in pick(report.rows, mask="no mask", keys=16384) if row["issue_tops"] is not None]
    assert bounded
    for row in bounded:
        assert {row["issue_tops"], row["exponential_tops"], row["tensor_tops"]} <= set(drawn)


def test_picture_of_architectures_shows_what_was_measured_and_the_model() -> None:
    report = STORED["architectures"]
    drawn = drawn_values(report)
    for row in pick(report.rows, recipe="fast", head_dim=128):
        for value in ("issue_tops", "exponential_tops", "tensor_tops", "measured_tops", "model_tops"):
            assert row[value] is None or row[value] in drawn


@pytest.mark.parametrize("name", STUDIES)
def test_pictures_are_drawn_without_a_warning(name: str, tmp_path: Path) -> None:
    with mpl.rc_context({"figure.dpi": 60}):
        figure = draw(STORED[name])
        figure.savefig(tmp_path / "a.png")
    assert STORED[name].date[:10] in figure.get_suptitle()
    assert len(np.unique(imread(tmp_path / "a.png").reshape(-1, 4), axis=0)) > 50


def test_picture_of_v_has_every_scheme_beside_its_speed() -> None:
    report = STORED["v_quantisation"]
    lines: list[Any] = draw(report).axes[-1].get_lines()
    places = sorted(np.concatenate([np.transpose(line.get_data(orig=False)) for line in lines]).tolist())
    expected = []
    for reference, scheme in {(row["reference"], row["scheme"]) for row in report.rows}:
        found = pick(report.rows, reference=reference, scheme=scheme)
        error = np.exp(np.mean([np.log(row["relative_rmse"]) for row in found]))
        expected.append((found[0]["tops"] or 0.0, error))
    np.testing.assert_allclose(places, sorted(expected), rtol=1e-12)
