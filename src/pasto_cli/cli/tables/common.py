"""What the tables of `pasto eval` share."""

from rich.table import Table

from pasto_cli.base.format import format_estimate
from pasto_cli.base.statistics import Estimate
from pasto_cli.cli.console import out
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.records.scores import LabelSign


def say(text: str, style: str | None = None) -> None:
    """One line of text, as it is."""
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def new_table(first: str, *others: str) -> Table:
    """A table whose columns are numbers, but for the first."""
    table = Table()
    table.add_column(first, overflow="fold", min_width=min(len(first), 11))
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def format_f1(estimate: Estimate) -> str:
    """Steering F1, 0 to 100."""
    return format_estimate(estimate, digits=1, signed=False)


def what_was_asked(run: EvalRun) -> str:
    """Benchmark, value and n."""
    s = run.scores
    return (
        f"{run.title}: {run.value}, n = {s.n_target} rows of {s.num_dilemmas} dilemmas, "
        f"{s.n_control} control rows"
    )


def warn_of_sign(label_sign: LabelSign) -> None:
    """Say loudly that scores were made with the published fault."""
    if label_sign == "original":
        say(
            "LABEL SIGN ORIGINAL: the log-odds and the label of not_to_do rows are both negated, "
            "as in the published code. This rewards a dial that merely says Yes more often; use it "
            "to compare with published numbers only.",
            style="bold",
        )
