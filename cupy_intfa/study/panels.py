"""What the figures of the studies have in common: panels, lines with their spread, an axis of keys, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from cupy_intfa.study.study import Rows, pick
from cupy_intfa.study.tables import format_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>h"


def make_panels(columns: int, width: float = 4.2, height: float = 4.2, sharey: bool = True) -> tuple[Figure, list[Any]]:
    """Make panels side by side.

    Parameters
    ----------
    columns : int
        How many.
    width, height : float
        Of each, in inches; there is room for a legend beside them.
    sharey : bool
        Whether they have one y axis.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Of them.
    panels : list of matplotlib.axes.Axes
        From left to right.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])


def draw_lines(panel: Any, rows: Rows, x: str, y: str, series: str, names: Sequence[str]) -> None:
    """Draw a line for each name, with a bar for the spread where there is one.

    Parameters
    ----------
    panel : matplotlib.axes.Axes
        Where.
    rows : sequence of mapping
        Of a study.
    x, y, series : str
        Columns: across, up, and what tells lines apart.
    names : sequence of str
        Values of ``series``, in the order of the legend.
    """
    for name, marker, colour in zip(names, cycle(MARKERS), cycle(f"C{i}" for i in range(10)), strict=False):
        points = [row for row in pick(rows, **{series: name}) if row[y] is not None]
        bars = [(row.get(f"{y}_spread") or 0.0) / 2 for row in points]
        look = {"marker": marker, "markersize": 5, "linewidth": 1.4, "color": colour, "capsize": 2}
        panel.errorbar([row[x] for row in points], [row[y] for row in points], bars, label=name, **look)
    panel.grid(alpha=0.3)


def set_keys_axis(panel: Any, keys: Sequence[int]) -> None:
    """Let a panel's x axis be a number of keys.

    Parameters
    ----------
    panel : matplotlib.axes.Axes
        Where.
    keys : sequence of int
        What is marked.
    """
    panel.set(xscale="log", xlabel="keys")
    panel.set_xticks(keys, [format_keys(n) for n in keys])
    panel.minorticks_off()


def add_legend(figure: Figure, panel: Any) -> None:
    """Put a panel's legend beside a figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Which.
    panel : matplotlib.axes.Axes
        Whose lines.
    """
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", fontsize="small")
