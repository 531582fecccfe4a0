"""A search over recipes: what can be had, and what holds on other seeds."""

from rich.table import Table

from pasto_cli.base.format import format_estimate, format_settings
from pasto_cli.base.statistics import spread
from pasto_cli.cli.console import out
from pasto_cli.cli.tables.common import Figures, say
from pasto_cli.core.records.study import Finalist, StudyRecord


def show_study(study: StudyRecord) -> None:
    """The Pareto front, the finalists, and how the other trials ended."""
    states = [trial.state for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"{study.name}: {len(states)} of {study.wanted} trials ({counts})")
    if not study.front:
        say("no trial ended with a dial")
        return
    say(
        "no other trial is better in both: strength (prompt-equivalents, the smaller one of both "
        "ends) and disturbance (KL, nats)"
    )
    table = Table()
    for name in ("trial", "strength", "disturbance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for trial in study.front:
        assert trial.objectives is not None
        table.add_row(
            str(trial.number),
            f"{trial.objectives.strength:+.2f}",
            f"{trial.objectives.disturbance:.2f}",
            format_settings(trial.settings),
        )
    out.print(table)
    if study.finalists:
        _show_finalists(study.finalists)


def _show_finalists(finalists: list[Finalist]) -> None:
    say("trained again on other seeds, which is what counts (mean [95 %] over n seeds):")
    table = Figures("trial", "strength", "disturbance", "n")
    for finalist in finalists:
        strength = spread([found.strength for found in finalist.each])
        disturbance = spread([found.disturbance for found in finalist.each])
        table.add_row(
            str(finalist.number),
            format_estimate(strength.interval),
            format_estimate(disturbance.interval, signed=False),
            str(len(finalist.each)),
        )
    out.print(table)
