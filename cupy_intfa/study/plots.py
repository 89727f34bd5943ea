"""The figures of the studies, each drawn from the rows of a report alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from cupy_intfa.study.ablation import effects
from cupy_intfa.study.adversarial import BROKEN
from cupy_intfa.study.error_tables import CITED
from cupy_intfa.study.length import SERIES, common_keys, series
from cupy_intfa.study.panels import MARKERS, add_legend, draw_lines, make_panels, set_keys_axis
from cupy_intfa.study.plots_speed import draw_architectures, draw_speed
from cupy_intfa.study.report import StudyReport
from cupy_intfa.study.study import Rows, distinct, one, pick
from cupy_intfa.study.tables import format_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(report: StudyReport) -> Figure:
    """Draw a report.

    Parameters
    ----------
    report : StudyReport
        Of any study.

    Returns
    -------
    matplotlib.figure.Figure
        With what it was measured on in its title.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    figure = DRAWINGS[report.study](report.rows)
    measured = report.study == "speed"  # on a GPU, though the study may have been run elsewhere
    machine = report.rows[0]["measured_on"].split(",")[0] if measured else report.machine.split(" ", 1)[1]
    figure.suptitle(f"{report.study}: {machine}, {report.date[:10]}", fontsize="medium")
    return figure


def _error_tables(rows: Rows) -> Figure:
    """Draw error over length, a panel for each family; the real activations beside them."""
    rows = [row for row in rows if row["ran"] != CITED]
    head_dim = distinct(rows, "head_dim")[0]
    families, names = distinct(rows, "family"), distinct(rows, "recipe")
    figure, panels = make_panels(len(families), width=3.0)
    for panel, family in zip(panels, families, strict=True):
        shown = [row for row in pick(rows, family=family) if row["head_dim"] in (head_dim, 32)]
        draw_lines(panel, shown, "keys", "relative_rmse", "recipe", names)
        panel.set(title=f"{family}, D {shown[0]['head_dim']}", yscale="log")
        set_keys_axis(panel, distinct(shown, "keys"))
    panels[0].set_ylabel("relative RMSE against float64")
    add_legend(figure, panels[0])
    return figure


def _ablation(rows: Rows) -> Figure:
    """Draw what each knob does to the error, in units of the preset that it is turned in; a panel for each."""
    bases, data = distinct(rows, "base"), distinct(rows, "data")
    figure, panels = make_panels(len(bases), width=4.6, height=7.0, sharey=False)
    for panel, base in zip(panels, bases, strict=True):
        names = list(dict.fromkeys((r["knob"], r["setting"]) for r in pick(rows, base=base)))[1:]
        for place, name in enumerate(data):
            shares = effects(rows, base, name)
            heights = [i + 0.8 * (place + 0.5) / len(data) - 0.4 for i in range(len(names))]
            panel.plot([shares[key] for key in names], heights, MARKERS[place], markersize=5, label=name)
        panel.axvline(1.0, color="black", linewidth=0.8)
        tops = {(row["knob"], row["setting"]): row["tops"] for row in pick(rows, base=base)}
        labels = [f"{knob} = {it}" + (f", {tops[knob, it]:.0f} TOPS" if tops[knob, it] else "") for knob, it in names]
        panel.set_yticks(range(len(names)), labels, fontsize="small")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set(title=base, xlabel=f"error / error of {base}")
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
    add_legend(figure, panels[0])
    return figure


def _cases(rows: Rows) -> Figure:
    """Draw the error of everyone on each case."""
    cases = distinct(rows, "case")
    figure, (panel,) = make_panels(1, width=9.5, height=4.8)
    for name, marker in zip(distinct(rows, "recipe"), cycle(MARKERS), strict=False):
        found = [row for row in pick(rows, recipe=name) if row["relative_rmse"]]
        if found:
            places = [cases.index(row["case"]) for row in found]
            panel.plot(places, [r["relative_rmse"] for r in found], marker, markersize=6, alpha=0.8, label=name)
    panel.set_xticks(range(len(cases)), cases, rotation=35, horizontalalignment="right")
    panel.set(yscale="log", ylabel="relative RMSE against float64")
    panel.grid(alpha=0.3)
    add_legend(figure, panel)
    return figure


def _adversarial(rows: Rows) -> Figure:
    """Draw the error of each recipe on each case, and the line above which it counts as broken."""
    figure = _cases(rows)
    figure.axes[0].axhline(BROKEN, color="black", linewidth=0.8, linestyle="--")
    return figure


def _v_quantisation(rows: Rows) -> Figure:
    """Draw error by scheme, a panel for each reference of P; then error and speed, for the schemes that have one."""
    references, data = distinct(rows, "reference"), distinct(rows, "data")
    figure, panels = make_panels(len(references) + 1, width=4.2, height=4.8)
    numbers: dict[tuple[str, str], int] = {}
    for panel, reference in zip(panels, references, strict=False):
        found = pick(rows, reference=reference)
        schemes = distinct(found, "scheme")
        for name, marker in zip(data, cycle(MARKERS), strict=False):
            errors = [one(found, "relative_rmse", data=name, scheme=scheme) for scheme in schemes]
            panel.plot(range(len(schemes)), errors, marker, markersize=5, label=name)
        numbers |= {(reference, scheme): len(numbers) + i for i, scheme in enumerate(schemes, 1)}
        named = [f"{scheme}  {numbers[reference, scheme]}" for scheme in schemes]
        panel.set_xticks(range(len(schemes)), named, rotation=60, horizontalalignment="right", fontsize="small")
        panel.set(yscale="log", title=f"P relative to the {reference} maximum")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative RMSE against float64")
    _pareto(panels[-1], rows, numbers)
    add_legend(figure, panels[0])
    return figure


def _pareto(panel: Any, rows: Rows, numbers: Mapping[tuple[str, str], int]) -> None:
    """Draw the error over the speed: a mark for each scheme, its geometric mean over the data, by its number."""
    for (reference, scheme), number in numbers.items():
        found = pick(rows, reference=reference, scheme=scheme)
        error = math.exp(sum(math.log(row["relative_rmse"]) for row in found) / len(found))
        tops, inside = found[0]["tops"], "white" if reference == "tile" else "black"
        place = tops or 0.0, error
        panel.plot(*place, "x" if tops is None else "o", markersize=5, color="black", markerfacecolor=inside)
        panel.annotate(str(number), place, (3, 3), textcoords="offset points", fontsize="small")
    panel.margins(x=0.1)
    panel.set(yscale="log", title="mean over the data, and speed", xlabel="TOPS; crosses: no kernel, or not measured")
    panel.title.set_fontsize("medium")
    panel.grid(alpha=0.3)


def _length(rows: Rows) -> Figure:
    """Draw error over length with the theory as lines, over head dimension, and by layout."""
    names = distinct(rows, "recipe")
    figure, (by_length, by_head_dim, by_layout) = make_panels(3, height=4.6)
    draw_lines(
        by_length, [row for name in names for row in series(rows, name)], "keys", "relative_rmse", "recipe", names
    )
    for i, name in enumerate(names):
        found = [row for row in series(rows, name) if row["predicted"] is not None]
        by_length.plot([r["keys"] for r in found], [r["predicted"] for r in found], "--", color=f"C{i}", linewidth=1.0)
    set_keys_axis(by_length, [row["keys"] for row in series(rows, names[0])])
    by_length.set(yscale="log", ylabel="relative RMSE against float64", title="N(0, 1); dashed: predicted")
    length = common_keys(rows)
    of_head_dim = sorted(pick(rows, layout=SERIES, keys=length), key=lambda row: int(row["head_dim"]))
    draw_lines(by_head_dim, of_head_dim, "head_dim", "relative_rmse", "recipe", names)
    by_head_dim.set(xscale="log", xlabel="D", title=f"{format_keys(length)} keys")
    by_head_dim.set_xticks(distinct(of_head_dim, "head_dim"), distinct(of_head_dim, "head_dim"))
    by_head_dim.minorticks_off()
    draw_lines(by_layout, [r for r in rows if r["layout"] != SERIES], "layout", "relative_rmse", "recipe", names)
    by_layout.tick_params(axis="x", labelrotation=25, labelsize="small")
    by_layout.set_title(f"layouts of models, {format_keys(length)} keys")
    add_legend(figure, by_length)
    return figure


def _low_bits(rows: Rows) -> Figure:
    """Draw the error of each way to quantise Q and K, a panel for each set of data."""
    data = distinct(rows, "data")
    figure, panels = make_panels(len(data), width=2.8, height=4.6)
    turned = {(False, False): "plain", (True, False): "smoothed", (False, True): "rotated", (True, True): "both"}
    kinds = list(dict.fromkeys((row["bits"], row["scales"]) for row in rows))
    kinds.sort(key=lambda kind: -kind[0])
    for panel, name in zip(panels, data, strict=True):
        for place, ((smooth, rotated), label) in enumerate(turned.items()):
            found = pick(rows, data=name, smooth_k=smooth, rotate=rotated)
            heights = [one(found, "relative_rmse", bits=bits, scales=scales) for bits, scales in kinds]
            panel.plot(range(len(kinds)), heights, MARKERS[place], markersize=5, alpha=0.8, label=label)
        labels = [f"{bits} bits, {scales}" for bits, scales in kinds]
        panel.set_xticks(range(len(kinds)), labels, rotation=60, horizontalalignment="right", fontsize="small")
        panel.set(yscale="log", title=name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative RMSE against float64")
    add_legend(figure, panels[0])
    return figure


def _memory(rows: Rows) -> Figure:
    """Draw bytes over length: what the plan asks for as lines, what was measured as crosses."""
    figure, (panel,) = make_panels(1, width=6.0)
    for i, name in enumerate(distinct(rows, "recipe")):
        for value, style in (("planned_bytes", "-"), ("measured_bytes", "x")):
            found = [row for row in pick(rows, recipe=name) if row[value] is not None]
            heights = [row[value] / 2**30 for row in found]
            label = name if value == "planned_bytes" else None
            panel.plot([row["keys"] for row in found], heights, style, color=f"C{i}", label=label)
    own = {row["keys"]: row["own_bytes"] / 2**30 for row in rows}
    panel.plot(list(own), list(own.values()), ":", color="black", label="inputs and output")
    set_keys_axis(panel, distinct(rows, "keys"))
    panel.set(yscale="log", ylabel="GiB beyond inputs and output")
    panel.grid(alpha=0.3)
    add_legend(figure, panel)
    return figure


def _depth(rows: Rows) -> Figure:
    """Draw error over layers, a panel for each stack."""
    stacks, names = distinct(rows, "layers"), distinct(rows, "recipe")
    figure, panels = make_panels(len(stacks))
    for panel, depth in zip(panels, stacks, strict=True):
        found = pick(rows, layers=depth)
        draw_lines(panel, found, "layer", "relative_rmse", "recipe", names)
        panel.set(xscale="log", yscale="log", xlabel="after layer", title=f"{depth} layers")
        panel.set_xticks(distinct(found, "layer"), distinct(found, "layer"))
        panel.minorticks_off()
    panels[0].set_ylabel("relative RMSE of the residual stream")
    add_legend(figure, panels[0])
    return figure


DRAWINGS: Mapping[str, Callable[[Rows], Figure]] = {
    "error_tables": _error_tables,
    "ablation": _ablation,
    "peers": _cases,
    "adversarial": _adversarial,
    "v_quantisation": _v_quantisation,
    "length": _length,
    "low_bits": _low_bits,
    "memory": _memory,
    "depth": _depth,
    "speed": draw_speed,
    "architectures": draw_architectures,
}
"""By study, what draws its rows."""
