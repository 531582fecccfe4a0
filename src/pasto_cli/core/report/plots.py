"""The report's plots as SVG text, drawn by matplotlib.

Each function takes numbers and returns one `<svg>` element, the same bytes for the same numbers.
Every mark is told apart by shape or line as well as by colour.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.records.evaluation import ValueShift

# Okabe and Ito's colours, safe for colour-blind readers; styles and markers carry the same
# distinction without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
GREY = "#888888"
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
Points = Sequence[tuple[float, float]]
"""(step, value)."""


class Mark(NamedTuple):
    """One row of a forest plot."""

    name: str
    value: float
    low: float
    high: float
    filled: bool


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that scales with the page and has a label for screen readers."""
    buffer = io.StringIO()
    # The layout changes which ticks there are, and the width of their labels the layout: the second
    # time it fits.
    figure.draw_without_rendering()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
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


def _style() -> AbstractContextManager[None]:
    """The report's style inside a context, whatever the caller's own is."""
    untyped: Any = matplotlib
    return untyped.rc_context(STYLE)


def _axes(height: float, width: float = WIDTH) -> tuple[Figure, Any]:
    """A figure and its axes, typed as Any: matplotlib leaves their keyword arguments untyped."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def dose(
    coefficients: Sequence[float],
    series: Mapping[str, Sequence[Estimate]],
    ylabel: str,
    label: str,
    zero: bool = True,
) -> str:
    """Curves over the coefficient with 95 % bands.

    Args:
        coefficients: Values on the x axis.
        series: Name -> estimates, one per coefficient; one without an interval has no band.
        ylabel: Label of the y axis.
        label: What the plot shows, for screen readers.
        zero: Draw the line of 0.
    """
    with _style():
        figure, axes = _axes(2.8)
        if zero:
            axes.axhline(0, color=GREY, linewidth=0.8)
        for n, (name, estimates) in enumerate(series.items()):
            values = [e.value for e in estimates]
            low = [e.value if math.isnan(e.low) else e.low for e in estimates]
            high = [e.value if math.isnan(e.high) else e.high for e in estimates]
            axes.fill_between(coefficients, low, high, color=COLOURS[n], alpha=0.18, linewidth=0)
            axes.plot(
                coefficients,
                values,
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
    with _style():
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


def forest(shifts: Sequence[ValueShift], label: str) -> str:
    """Effects on values, first one on top; filled marks are those that count as moved."""
    marks = [
        Mark(f"{s.name} ({s.rows})", s.effect, s.low, s.high, s.moved) for s in reversed(shifts)
    ]
    return intervals(marks, "nats per unit of coefficient", label)


def intervals(marks: Sequence[Mark], xlabel: str, label: str) -> str:
    """Forest plot, first mark at the bottom."""
    with _style():
        figure, axes = _axes(0.85 + 0.2 * len(marks))
        axes.axvline(0, color=GREY, linewidth=0.8)
        for y, mark in enumerate(marks):
            colour = COLOURS[0] if mark.filled else COLOURS[6]
            axes.plot([mark.low, mark.high], [y, y], color=colour, linewidth=1.4)
            axes.plot(
                [mark.value],
                [y],
                marker="o",
                markersize=5,
                color=colour,
                markerfacecolor=colour if mark.filled else "white",
            )
        # Matplotlib would read what stands between two dollars as a formula.
        axes.set_yticks(range(len(marks)), [mark.name.replace("$", r"\$") for mark in marks])
        axes.set_ylim(-0.7, len(marks) - 0.3)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", visible=False)
        return _svg(figure, label)


def curves(
    steps: Mapping[str, Points], ylabel: str, label: str, points: Mapping[str, Points]
) -> str:
    """Training curves over the step; `points` are validations of the same names, as marks."""
    with _style():
        figure, axes = _axes(2.8)
        axes.axhline(0, color=GREY, linewidth=0.8)
        for n, (name, pairs) in enumerate(steps.items()):
            x, y = zip(*pairs, strict=True)
            axes.plot(x, y, color=COLOURS[n], linestyle=LINES[n], linewidth=1.2, label=name)
            if found := points.get(name):
                x, y = zip(*found, strict=True)
                axes.plot(x, y, color=COLOURS[n], linestyle="none", marker=MARKERS[n], markersize=5)
        axes.set_xlabel("step (marks: validation)")
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), ncols=2)
        return _svg(figure, label)


class Point(NamedTuple):
    """One trial of a search."""

    name: str
    x: float
    y: float
    best: bool


def front(points: Sequence[Point], xlabel: str, ylabel: str, label: str) -> str:
    """What a search found: filled and joined, the points that no other one beats in both numbers.

    Args:
        points: Less is better on the x axis, more on the y axis.
        xlabel: Label of the x axis.
        ylabel: Label of the y axis.
        label: What the plot shows, for screen readers.
    """
    best = sorted((point for point in points if point.best), key=lambda point: point.x)
    with _style():
        figure, axes = _axes(3.2)
        axes.step(
            [p.x for p in best], [p.y for p in best], where="post", color=COLOURS[0], linewidth=1.0
        )
        for chosen, marker, face in ((True, "o", COLOURS[0]), (False, "s", "white")):
            some = [point for point in points if point.best is chosen]
            axes.plot(
                [p.x for p in some],
                [p.y for p in some],
                linestyle="none",
                marker=marker,
                markersize=5,
                color=COLOURS[0] if chosen else COLOURS[6],
                markerfacecolor=face,
            )
        for point in points:
            axes.annotate(
                point.name,
                (point.x, point.y),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7.5,
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(figure, label)
