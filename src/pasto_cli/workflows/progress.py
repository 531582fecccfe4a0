"""What a workflow has to say while it runs, and who hears it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.records.training import BaseSide, Elicitation, Step


class Watcher(Protocol):
    """Receives what a workflow has to say; the command line shows it, a script may ignore it."""

    def note(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def warn(self, text: str) -> None:
        """Something that may spoil the result."""
        ...

    def task(
        self, label: str, total: int | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Something that takes time; yields a function that is told of progress."""
        ...

    def elicitation(self, found: Elicitation) -> None:
        """What the personas do to the clean base model."""
        ...

    def training(self) -> AbstractContextManager[Callable[[BaseSide | Step], None]]:
        """Live view of training; yields a function that receives what stands before the first step,
        and each step.
        """
        ...


class Silent:
    """A watcher that says nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    def elicitation(self, found: Elicitation) -> None:
        """Ignore."""

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Ignore."""
        yield lambda _: None

    @contextmanager
    def training(self) -> Iterator[Callable[[BaseSide | Step], None]]:
        """Ignore."""
        yield lambda _: None


def mark_latest(run: Path, watch: Watcher) -> None:
    """Let `latest` point to a run; where it cannot, the run is as good as ever, and it is said."""
    try:
        runs.mark_latest(run)
    except PastoError as error:
        watch.warn(f"'latest' does not point to this run ({error.message}): name it, {run}")
