"""What a user sees: data on stdout, everything else on stderr.

Progress is live on a terminal, and plain lines elsewhere.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
from pasto_cli.cli.streams import fits_output
from pasto_cli.core.records.evaluation import without_nan
from pasto_cli.core.records.training import BaseSide, Elicitation, Step

# Elsewhere than on a terminal a width of our own: lines of a log do not depend on who started it.
out = Console(emoji=False, width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True, emoji=False, width=None if sys.stderr.isatty() else 110)


LOG_SECONDS = 60.0
"""Elsewhere than on a terminal, how long nothing is said of something that goes on."""
BASE_SIDE = "the base's side of pairs and anchors"
"""What a training computes before its first step."""


def show_error(error: PastoError) -> None:
    """Message and next step, on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
    if error.hint:
        err.print(f"[dim]next:[/]  {escape(error.hint)}", soft_wrap=True, highlight=False)


def show_mistake(error: PastoError) -> None:
    """The same as one line, for a command that goes on."""
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)


def print_json(data: Any) -> None:
    """JSON on stdout; NaN and infinities become null.

    What the console has no character for is escaped: a program that reads it gets it whole.
    """
    text = json.dumps(without_nan(data), indent=1, ensure_ascii=False)
    print_text((text if fits_output(text) else json.dumps(without_nan(data), indent=1)) + "\n")


def print_text(text: str) -> None:
    """Data on stdout, character for character."""
    sys.stdout.write(text)


def print_line(text: str) -> None:
    """One line of data on stdout, word for word."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


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
        """Progress bar (or spinner) on a terminal; elsewhere a line a minute and one at the end."""
        started, done, due = time.monotonic(), 0, _Due()
        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        if total is not None:
            columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(
            *columns, console=err, transient=True, disable=not err.is_terminal
        ) as progress:
            task = progress.add_task(escape(label), total=total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress.advance(task, count)
                if total is not None and not err.is_terminal and done < total and due():
                    _dim(f"{label}: {done} of {total}")

            yield advance
        err.print(f"[dim]{escape(label)}: {time.monotonic() - started:.1f} s[/]", highlight=False)

    def elicitation(self, found: Elicitation) -> None:
        """How far the personas move the clean model."""
        span, y = found.span, found.y
        moved = f"{span.value:.3f} [{span.low:.3f}, {span.high:.3f}] nats per token"
        answers = " / ".join(f"{y[key]:+.2f}" for key in ("positive", "neutral", "negative"))
        lines = (
            f"personas move the base model by {moved} (n = {span.n} openings);\n"
            f"  on {found.num_dilemmas} dilemmas y = {answers} nats under the positive / no / "
            f"negative persona, range {found.y_range:.2f}"
        )
        err.print(lines, highlight=False, markup=False)

    @contextmanager
    def training(self) -> Iterator[Callable[[BaseSide | Step], None]]:
        """Live view on a terminal; lines of a log elsewhere."""
        if not err.is_terminal:
            yield _TrainingLog()
            return
        view = _TrainingView()
        with Live(view.render(), console=err, refresh_per_second=4, transient=False) as live:

            def show(what: BaseSide | Step) -> None:
                view.add(what)
                live.update(view.render())

            yield show


def _parts(step: Step) -> str:
    """The terms of the loss."""
    return "  ".join(f"{name} {value:.2f}" for name, value in step.parts.items())


def _strength(step: Step) -> str:
    """Strength at +1 and -1, prompt-equivalents; nothing without a neutral branch."""
    d = step.diagnostics
    if "strength_pos" not in d:
        return ""
    return f"{d['strength_pos']:+.2f} at +1, {d['strength_neg']:+.2f} at -1"


def _dim(text: str) -> None:
    err.print(f"[dim]{escape(text)}[/]", highlight=False, soft_wrap=True)


class _Due:
    """Whether nothing was said for `LOG_SECONDS`."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self.last >= LOG_SECONDS
        self.last = time.monotonic() if due else self.last
        return due


class _TrainingLog:
    """A line for each validation, and one a minute in between: one a step would fill a log."""

    def __init__(self) -> None:
        self.due = _Due()

    def __call__(self, what: BaseSide | Step) -> None:
        if isinstance(what, BaseSide):
            if self.due():
                _dim(f"{BASE_SIDE}: {what.done} of {what.total}")
            return
        whose = f"{what.member}  " if what.member else ""
        place = f"{whose}epoch {what.epoch}  step {what.step}/{what.total_steps}"
        if what.validation:
            strength = f"strength {found}" if (found := _strength(what)) else ""
            line = f"{place}  validation {what.loss:.2f}  ({_parts(what)})  {strength}"
            err.print(f"{line}  {what.seconds:.0f} s", highlight=False, soft_wrap=True)
            self.due = _Due()
        elif self.due():
            _dim(f"{place}  loss {what.loss:.2f}  {what.seconds:.0f} s")


class _TrainingView:
    """Bar, loss parts and strength of the last step and the last validation."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self.bar = self.progress.add_task("training steps", total=None)
        self.last: dict[str, Step] = {}

    def add(self, what: BaseSide | Step) -> None:
        if isinstance(what, BaseSide):
            self.progress.update(
                self.bar, total=what.total, completed=what.done, description=BASE_SIDE
            )
            return
        self.last["validation" if what.validation else "training"] = what
        self.progress.update(
            self.bar, total=what.total_steps, completed=what.step, description="training steps"
        )

    def render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("", "epoch", "loss", "parts", "strength (prompt-equivalents)"):
            table.add_column(column)
        for name, step in self.last.items():
            loss = f"{step.loss:.2f}"
            whose = f"{name}, {step.member}" if step.member else name
            table.add_row(whose, str(step.epoch), loss, _parts(step), _strength(step))
        return Group(self.progress, table)
