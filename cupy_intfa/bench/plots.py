"""Pictures of reports: speed over length."""

from __future__ import annotations

from itertools import cycle
from os import PathLike
from typing import TYPE_CHECKING, Any

from cupy_intfa.bench.report import Entry, Report
from cupy_intfa.recipe import PRESETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMS = {"kernel": "from quantised tensors", "e2e": "from 16-bit tensors"}


def curve(report: Report, name: str, head_dim: int, form: str) -> list[tuple[int, float]]:
    """Give the speed of a contender over the number of keys.

    Parameters
    ----------
    report : Report
        Of a suite of speeds.
    name : str
        The contender.
    head_dim : int
        D.
    form : {"kernel", "e2e"}
        From tensors already quantised, or from 16-bit ones. A contender that quantises nothing has one speed for both.

    Returns
    -------
    list of (int, float)
        Skv and TOPS, by Skv; cited numbers are among them.
    """
    points = []
    for result in report.results:
        entry = result.entries.get(name, Entry())
        found = {**entry.cited, **{key: one.tops for key, one in entry.forms.items() if one.tops is not None}}
        tops = found.get("e2e") if set(found) == {"e2e"} else found.get(form)
        if result.case.head_dim == head_dim and tops is not None:
            points.append((result.case.kv_len, tops))
    return sorted(points)


def draw(report: Report) -> Figure:
    """Draw TOPS over length: a column for each head dimension of several lengths, kernels above, end to end below.

    Parameters
    ----------
    report : Report
        Of a suite of speeds.

    Returns
    -------
    matplotlib.figure.Figure
        Ours in thick lines, rivals in thin ones, what was not measured in the run of the report in dotted ones.

    Raises
    ------
    ValueError
        For a report without two lengths of one head dimension.
    ImportError
        Without matplotlib.
    """
    lengths: dict[int, set[int]] = {}
    for result in report.results:
        lengths.setdefault(result.case.head_dim, set()).add(result.case.kv_len)
    lengths = {head_dim: found for head_dim, found in sorted(lengths.items()) if len(found) > 1}
    if report.measures != "speed" or not lengths:
        raise ValueError(f"suite {report.suite!r} has no speeds over length to draw: expected two lengths of one D")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 + 4.5 * len(lengths), 8.0), layout="constrained")
    rows = figure.subplots(2, len(lengths), squeeze=False, sharey=True, sharex="col")
    for form, panels in zip(_FORMS, rows, strict=True):
        panels[0].set_ylabel(f"TOPS, {_FORMS[form]}")
        for panel, (head_dim, found) in zip(panels, lengths.items(), strict=True):
            _fill(panel, report, head_dim, form)
            ticks = sorted(found)
            panel.set(xscale="log", title=f"D {head_dim}")
            panel.set_xticks(ticks, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in ticks])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    rows[0, 0].set_ylim(bottom=0.0)  # of all panels, and last: a limit ends their scaling
    for panel in rows[-1]:
        panel.set_xlabel("length")
    lines = {str(line.get_label()): line for panel in rows.flat for line in panel.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize="small")
    figure.suptitle(f"{report.suite}: {report.gpu}, {report.date[:10]}")
    return figure


def _fill(panel: Any, report: Report, head_dim: int, form: str) -> None:
    """Draw the lines of one panel; a contender has its colour in all of them."""
    from matplotlib import colormaps

    names = dict.fromkeys(name for result in report.results for name in result.entries)
    for name, colour in zip(names, cycle(colormaps["tab20"](range(20))), strict=False):
        points = curve(report, name, head_dim, form)
        if not points:
            continue
        ours = name in PRESETS
        cited = any(result.entries.get(name, Entry()).cited for result in report.results)
        panel.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=":" if cited else "-",
            linewidth=2.2 if ours else 1.0,
            marker="o" if ours else "s",
            markersize=4,
            label=f"{name} (earlier date)" if cited else name,
        )


def save_picture(report: Report, file: str | PathLike[str]) -> None:
    """Draw a report into a PNG.

    Parameters
    ----------
    report : Report
        Of a suite of speeds.
    file : path
        The picture.
    """
    draw(report).savefig(file, dpi=150)
