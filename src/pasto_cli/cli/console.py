"""What a user sees: data on stdout, everything else on stderr; live progress on a terminal, plain
lines elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pasto_cli.base.errors import PastoError
from pasto_cli.core.records.evaluation import without_nan

if TYPE_CHECKING:
    from pasto_cli.core.records.training import Elicitation, Step

out = Console(emoji=False, width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True, emoji=False, width=None if sys.stderr.isatty() else 110)


def show_error(error: PastoError) -> None:
    """Message and next step, on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
    if error.hint:
        err.print(f"[dim]next:[/]  {escape(error.hint)}", soft_wrap=True, highlight=False)


def print_json(data: Any) -> None:
    """JSON on stdout; NaN and infinities become null."""
    sys.stdout.write(json.dumps(without_nan(data), indent=1, ensure_ascii=False) + "\n")


class Screen:
    """The command line's `Watcher`."""

    def note(self, text: str) -> None:
        """One dim line."""
        err.print(f"[dim]{escape(text)}[/]", highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One loud line."""
        err.print(f"[bold yellow]warning:[/] {escape(text)}", soft_wrap=True, highlight=False)

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Progress bar (or spinner) on a terminal; one line with the time elsewhere."""
        started = time.monotonic()
        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        if total is not None:
            columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(
            *columns, console=err, transient=True, disable=not err.is_terminal
        ) as progress:
            task = progress.add_task(escape(label), total=total)
            yield lambda n: progress.advance(task, n)
        err.print(f"[dim]{escape(label)}: {time.monotonic() - started:.1f} s[/]", highlight=False)

    def elicitation(self, found: "Elicitation") -> None:
        """How far the personas move the clean model."""
        y = found.y
        span = found.span
        err.print(
            f"personas move the base model by {span.value:.3f} [{span.low:.3f}, {span.high:.3f}] "
            f"nats a token "
            f"(n = {span.n} openings);\n  on {found.num_dilemmas} dilemmas y = "
            f"{y['positive']:+.2f} / {y['neutral']:+.2f} / "
            f"{y['negative']:+.2f} nats under the positive / no / negative persona, range "
            f"{found.y_range:.2f}",
            highlight=False,
            markup=False,
        )

    @contextmanager
    def training(self) -> Iterator[Callable[["Step"], None]]:
        """Live view on a terminal; a line for each validation elsewhere."""
        if not err.is_terminal:
            yield _plain_step
            return
        view = _TrainingView()
        with Live(view.render(), console=err, refresh_per_second=4, transient=False) as live:

            def show(step: "Step") -> None:
                view.add(step)
                live.update(view.render())

            yield show


def _parts(step: "Step") -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in step.parts.items())


def _strength(step: "Step") -> str:
    d = step.diagnostics
    if "strength_pos" not in d:
        return ""
    return f"strength {d['strength_pos']:+.2f} at +1, {d['strength_neg']:+.2f} at -1"


def _plain_step(step: "Step") -> None:
    if step.validation:
        err.print(
            f"epoch {step.epoch}  step {step.step}/{step.total_steps}  validation {step.loss:.2f}  "
            f"({_parts(step)})  "
            f"{_strength(step)}  {step.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )


class _TrainingView:
    """Bar, loss parts and strength of the last step and the last validation."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=err,
        )
        self.bar = self.progress.add_task("training", total=None)
        self.last: dict[str, Step] = {}

    def add(self, step: "Step") -> None:
        self.last["validation" if step.validation else "training"] = step
        self.progress.update(self.bar, total=step.total_steps, completed=step.step)

    def render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("", "epoch", "loss", "parts", "strength (prompt-equivalents)"):
            table.add_column(column)
        for name, step in self.last.items():
            table.add_row(
                name,
                str(step.epoch),
                f"{step.loss:.2f}",
                _parts(step),
                _strength(step).removeprefix("strength "),
            )
        return Group(self.progress, table)
