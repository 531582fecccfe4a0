"""The report's figures as SVG text, drawn by matplotlib. Every mark is told apart by shape or line
as well as by colour.

Each function takes plain numbers and returns one `<svg>` element, the same bytes for the same
numbers."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pasto_cli.core.evaluation.values import ValueShift

# Okabe and Ito's colours, safe for colour-blind readers; styles and markers carry the same
# distinction without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "x")
HATCHES = ("", "///", "...")
WIDTH = 4.3
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pasto",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "hatch.linewidth": 0.5,
}
Estimates = Sequence[Mapping[str, Any]]
"""Mappings with value, low and high."""
Points = Sequence[tuple[float, float]]
"""(step, value)."""


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that scales with the page and tells a screen reader what it
    shows."""
    buffer = io.StringIO()
    # The layout changes which ticks there are, and the width of their labels the layout: the second
    # time it fits.
    figure.draw_without_rendering()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', text[:600])[:2])
    text = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"',
        f'width="{width:.0f}pt" height="{height:.0f}pt"',
        text,
        count=1,
    )
    # Two figures on one page must not share ids.
    prefix = re.sub(r"\W+", "-", label.lower()).strip("-")[:60]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _axes(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def dose(
    coefficients: Sequence[float],
    series: Mapping[str, Estimates],
    ylabel: str,
    label: str,
    zero: bool = True,
) -> str:
    """Curves over the coefficient with 95 % bands."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.8)
        if zero:
            axes.axhline(0, color="#888888", linewidth=0.8)
        for n, (name, estimates) in enumerate(series.items()):
            low, high = (
                [e[k] if e[k] == e[k] else e["value"] for e in estimates] for k in ("low", "high")
            )
            axes.fill_between(coefficients, low, high, color=COLOURS[n], alpha=0.18, linewidth=0)
            axes.plot(
                coefficients,
                [e["value"] for e in estimates],
                color=COLOURS[n],
                linestyle=LINES[n],
                marker=MARKERS[n],
                markersize=5,
                label=name,
            )
        axes.set_xlabel("coefficient")
        axes.set_ylabel(ylabel)
        axes.set_xticks(list(coefficients))
        if len(series) > 1:
            axes.legend()
        return _svg(figure, label)


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], ylabel: str, label: str
) -> str:
    """Grouped bars, hatched, with their values written above."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.8)
        width = 0.8 / len(series)
        for n, (name, values) in enumerate(series.items()):
            places = [g + (n - (len(series) - 1) / 2) * width for g in range(len(groups))]
            drawn = axes.bar(
                places,
                values,
                width * 0.92,
                label=name,
                color=COLOURS[n],
                alpha=0.75,
                hatch=HATCHES[n],
                edgecolor="black",
                linewidth=0.5,
            )
            axes.bar_label(drawn, fmt="%.0f", fontsize=7.5, padding=1)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(ylabel)
        axes.grid(axis="x", visible=False)
        if len(series) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=len(series))
        return _svg(figure, label)


def forest(shifts: Sequence[ValueShift], label: str, limit: int = 24) -> str:
    """Effects on values, largest first; filled marks are those whose false-discovery rate is under
    the level."""
    shown = list(shifts[:limit])[::-1]
    rows = [(f"{s.name} ({s.rows})", s.effect, s.low, s.high, s.moved) for s in shown]
    return intervals(rows, "nats for one unit of coefficient", label)


def intervals(
    rows: Sequence[tuple[str, float, float, float, bool]], xlabel: str, label: str
) -> str:
    """Forest plot of (name, value, low, high, filled), first row at the bottom."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(0.85 + 0.2 * len(rows))
        axes.axvline(0, color="#888888", linewidth=0.8)
        for y, (_, value, low, high, filled) in enumerate(rows):
            colour = COLOURS[0] if filled else COLOURS[6]
            axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
            axes.plot(
                [value],
                [y],
                marker="o",
                markersize=5,
                color=colour,
                markerfacecolor=colour if filled else "white",
            )
        axes.set_yticks(
            range(len(rows)), [name.replace("$", r"\$") for name, *_ in rows]
        )  # no formulas
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", visible=False)
        return _svg(figure, label)


def curves(
    steps: Mapping[str, Points], ylabel: str, label: str, points: Mapping[str, Points]
) -> str:
    """Training curves over the step; `points` are what validation gave for the same names, drawn as
    marks."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(2.8)
        axes.axhline(0, color="#888888", linewidth=0.8)
        for n, (name, pairs) in enumerate(steps.items()):
            axes.plot(
                *zip(*pairs, strict=True),
                color=COLOURS[n],
                linestyle=LINES[n],
                linewidth=1.2,
                label=name,
            )
            if found := points.get(name):
                axes.plot(
                    *zip(*found, strict=True),
                    color=COLOURS[n],
                    linestyle="none",
                    marker=MARKERS[n],
                    markersize=5,
                )
        axes.set_xlabel("step (marks: validation)")
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
        return _svg(figure, label)
