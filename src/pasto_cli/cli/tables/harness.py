"""Capability against the coefficient, in another harness's own metrics."""

import json as library

from pasto_cli.base.format import format_coefficient
from pasto_cli.cli.console import out, print_json
from pasto_cli.cli.tables.common import Figures, say
from pasto_cli.core.records.harness import HarnessScore
from pasto_cli.workflows.harnesses.run import HarnessMeasured


def show_harness(found: HarnessMeasured, json: bool) -> None:
    """One row for each metric of each task, one column for each coefficient."""
    run = found.run
    if json:
        print_json(library.loads(run.model_dump_json()))
        return
    part = "" if run.limit is None else f", at most {run.limit} documents of each task"
    version = run.provenance.get(run.harness, "")
    say(f"{run.harness} {version}{part}: value ± the harness's own standard error")
    table = Figures("task", "metric", "n", *map(format_coefficient, run.coefficients), labels=2)
    for line in run.lines():
        table.add_row(line.task, line.metric, str(line.n), *map(_value, line.scores))
    out.print(table)
    if found.path:
        say(f"kept in {found.path}")


def _value(score: HarnessScore) -> str:
    error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{error}"
