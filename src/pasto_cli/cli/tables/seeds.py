"""Scores over several training runs."""

import math
from collections.abc import Mapping

from pasto_cli.base.format import format_estimate
from pasto_cli.base.statistics import Spread
from pasto_cli.cli.console import out
from pasto_cli.cli.tables.common import Figures, say


def show_spread(across: Mapping[str, Spread], runs: int) -> None:
    """Mean, spread, interval and agreement over training runs."""
    say(
        f"\nOver {runs} training runs (the interval is over runs, Student's t with {runs - 1} "
        f"degrees of freedom)",
        style="bold",
    )
    table = Figures("", "mean [95 %]", "SD", "sign agrees", "each")
    for name, s in across.items():
        rest = ["", "", ""]
        if not math.isnan(s.mean):
            each = ", ".join(f"{v:+.2f}" for v in s.values)
            rest = [f"{s.sd:.2f}", f"{s.agree} of {s.n}", each]
        table.add_row(name, format_estimate(s.interval), *rest)
    out.print(table)
