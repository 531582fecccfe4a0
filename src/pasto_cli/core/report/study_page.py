"""The page of a search: its front as a plot and a table, the finalists, every trial.

From records only, as the report of a run. No torch, no network.
"""

from collections import Counter
from typing import NamedTuple

from pasto_cli.base.format import format_estimate, format_settings
from pasto_cli.base.statistics import spread
from pasto_cli.core.records.study import Finalist, StudyRecord
from pasto_cli.core.report import plots
from pasto_cli.core.report.page import template


class _Row(NamedTuple):
    """A finalist as the table shows it."""

    number: int
    strength: str
    disturbance: str
    n: int


def render(study: StudyRecord) -> str:
    """The page."""
    states = Counter(trial.state for trial in study.trials)
    points = [
        plots.Point(str(t.number), t.objectives.disturbance, t.objectives.strength, t.best)
        for t in study.trials
        if t.objectives is not None
    ]
    plot = plots.front(
        points, "disturbance, nats", "strength, prompt-equivalents", "strength and disturbance"
    )
    return template("study_page.html").render(
        name=study.name,
        wanted=study.wanted,
        ended=states["complete"],
        pruned=states["pruned"],
        failed=states["failed"],
        plot=plot if points else "",
        front=study.front,
        finalists=[_row(finalist) for finalist in study.finalists],
        trials=study.trials,
        said={trial.number: format_settings(trial.settings) for trial in study.trials},
    )


def _row(finalist: Finalist) -> _Row:
    strength = spread([found.strength for found in finalist.each])
    disturbance = spread([found.disturbance for found in finalist.each])
    return _Row(
        finalist.number,
        format_estimate(strength.interval),
        format_estimate(disturbance.interval, signed=False),
        len(finalist.each),
    )
