"""What the tables of `pasto eval` share."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table

from pasto_cli.base.format import format_estimate
from pasto_cli.base.statistics import Estimate
from pasto_cli.cli.console import out
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.records.scores import LabelSign

PADDING = 3
"""A column's border and the space on both sides of it."""


def say(text: str, style: str | None = None) -> None:
    """One line of text, as it is."""
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class Figures:
    """Rows of labels and figures: one table, or several under each other where one is too wide.

    Labels stand in each of them and may be folded; a figure is never cut.

    Args:
        headers: Names of all columns.
        labels: How many of them, from the left, say what a row is.
    """

    def __init__(self, *headers: str, labels: int = 1) -> None:
        self.headers, self.labels = headers, labels
        self.rows: list[Sequence[str]] = []

    def add_row(self, *cells: str) -> None:
        """One row, as many cells as there are headers."""
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        every = [self.headers, *self.rows]
        sizes = [max(cell_len(row[i]) for row in every) for i in range(len(self.headers))]
        # A folded path is read more easily than a figure that is looked for in another table.
        longest = max(options.max_width // 3, 11)
        names = [min(size, longest) for size in sizes[: self.labels]]
        room = options.max_width - 1 - sum(size + PADDING for size in names)
        parts: list[list[int]] = [[]]
        for i in range(self.labels, len(self.headers)):
            taken = sum(sizes[k] + PADDING for k in parts[-1])
            if parts[-1] and taken + sizes[i] + PADDING > room:
                parts.append([])
            parts[-1].append(i)
        for part in parts:
            table = Table()
            for name, width in zip(self.headers, names, strict=False):
                table.add_column(name, overflow="fold", min_width=width, max_width=width)
            for i in part:
                table.add_column(self.headers[i], justify="right", no_wrap=True)
            for row in self.rows:
                table.add_row(*row[: self.labels], *(row[i] for i in part))
            yield table


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
