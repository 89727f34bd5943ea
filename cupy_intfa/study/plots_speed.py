"""The figures of the studies ``speed`` and ``architectures``: rates over length, and what bounds them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from cupy_intfa.recipe import PRESETS
from cupy_intfa.study.panels import MARKERS, add_legend, make_panels, set_keys_axis
from cupy_intfa.study.rate_model import BOUNDS
from cupy_intfa.study.speed_rows import EARLIER, PLAIN, seen_as
from cupy_intfa.study.study import Row, Rows, distinct, pick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONG = 16384  # keys: where rates have settled


def draw_speed(rows: Rows) -> Figure:
    """Draw rates over length, kernels above and end to end below, and beside them what bounds our kernels.

    Parameters
    ----------
    rows : sequence of mapping
        Of the study ``speed``.

    Returns
    -------
    matplotlib.figure.Figure
        Ours in thick lines, what was measured on an earlier date dotted.
    """
    from matplotlib.figure import Figure

    plain, head_dims = pick(rows, mask=PLAIN), (64, 128)
    figure = Figure(figsize=(16.0, 8.0), layout="constrained")
    panels = figure.subplots(2, 3)
    names = distinct(plain, "contender")
    for form, line in zip(("kernel", "e2e"), panels, strict=True):
        for head_dim, panel in zip(head_dims, line, strict=False):
            _draw_rates(panel, pick(seen_as(plain, form), head_dim=head_dim), names)
            panel.set(title=f"D {head_dim}, {form}", ylabel="TOPS", ylim=(0.0, None))
    for head_dim, panel in zip(head_dims, panels[:, 2], strict=True):
        found = [row for row in pick(plain, head_dim=head_dim, keys=_LONG) if row["issue_tops"] is not None]
        _draw_roofline(panel, found, "contender", "tops")
        panel.set_title(f"D {head_dim}, what bounds our kernels")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    panels[0, 2].legend(fontsize="x-small")
    return figure


def _draw_rates(panel: Any, rows: Rows, names: Sequence[str]) -> None:
    """Draw a line for each contender; each has its colour in all panels."""
    from matplotlib import colormaps

    for name, colour, marker in zip(names, cycle(colormaps["tab20"](range(20))), cycle(MARKERS), strict=False):
        found = sorted(pick(rows, contender=name), key=lambda row: int(row["keys"]))
        style = ":" if any(row["measured_on"] == EARLIER for row in found) else "-"
        width = 2.2 if name in PRESETS else 1.0
        points = [row["keys"] for row in found], [row["tops"] for row in found]
        panel.plot(*points, style, color=colour, marker=marker, markersize=4, linewidth=width, label=name)
    set_keys_axis(panel, distinct(sorted(rows, key=lambda row: int(row["keys"])), "keys"))
    panel.grid(alpha=0.3)


def _draw_roofline(panel: Any, rows: Rows, label: str, *values: str) -> None:
    """Draw the three bounds of each row as lines across, and rates as marks."""
    places = range(len(rows))
    for bound, colour in zip(BOUNDS, ("C0", "C1", "C2"), strict=True):
        known = [i for i in places if rows[i][bound] is not None]
        heights = [rows[i][bound] for i in known]
        look = {"color": colour, "markersize": 18, "markeredgewidth": 2.5}
        panel.plot(known, heights, "_", label=f"bound: {bound.removesuffix('_tops')}", **look)
    for value, marker in zip(values, ("o", "x"), strict=False):
        known = [i for i in places if rows[i][value] is not None]
        name = "model, not measured" if value == "model_tops" else "measured"
        panel.plot(known, [rows[i][value] for i in known], marker, color="black", markersize=6, label=name)
    labels = [str(row[label]) for row in rows]
    panel.set_xticks(list(places), labels, rotation=60, horizontalalignment="right", fontsize="small")
    panel.set(yscale="log", ylabel="TOPS")
    panel.grid(alpha=0.3)


def draw_architectures(rows: Rows) -> Figure:
    """Draw instructions per score by class, and bounds with what was measured and what the model says.

    Parameters
    ----------
    rows : sequence of mapping
        Of the study ``architectures``.

    Returns
    -------
    matplotlib.figure.Figure
        Of the longest D, a panel for a few presets.
    """
    head_dim = max(distinct(rows, "head_dim"))
    made = [row for row in pick(rows, head_dim=head_dim) if row["kernel"] != "none"]
    recipes = [name for name in ("paper", "fast", "half", "fp16") if pick(made, recipe=name)]
    figure, panels = make_panels(len(recipes), width=3.6, height=5.2)
    for panel, recipe in zip(panels, recipes, strict=True):
        found: list[Row] = [{**row, "label": _label(row)} for row in pick(made, recipe=recipe)]
        _draw_roofline(panel, found, "label", "measured_tops", "model_tops")
        panel.set_title(f"{recipe}, D {head_dim}")
    add_legend(figure, panels[0])
    return figure


def _label(row: Row) -> str:
    return f"{row['chip']}, {row['kernel'].removeprefix('attention_')}"
