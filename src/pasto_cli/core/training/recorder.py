"""Who is told of what while a training runs, and what a run's folder keeps of it.

    RUN/history.jsonl      one line per optimiser step and per validation
    RUN/adapter/           the best weights so far, replaced whenever they get better
    RUN/checkpoint/        what a killed run goes on from
    RUN/failed_batch.json  the pairs of a loss that was not finite

The trainer knows none of these files: it tells a `Recorder` what happened.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from pasto_cli.base.files import write_text, writing
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.records.training import BaseSide, Step, TrainingRecord
from pasto_cli.core.training import checkpoint
from pasto_cli.core.training.checkpoint import Snapshot

HISTORY = "history.jsonl"


class Recorder:
    """Hears what happens while a training runs; this one keeps nothing of it."""

    def on_base(self, side: BaseSide) -> None:
        """Some more of the base's side is computed."""

    def on_step(self, step: Step) -> None:
        """An optimiser step was done, or a validation."""

    def on_best(self) -> None:
        """The adapter holds the best weights so far."""

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """This is what a killed training would go on from."""

    def warn(self, text: str) -> None:
        """Something that may matter to the result."""


class RunRecorder(Recorder):
    """Keeps a training in the folder of its run; a context, for the time of the training.

    Args:
        folder: Folder of the run.
        save_adapter: Saves the adapter as it is now, with what is to be said of its training.
        show: Receives each step, and what stands before the first, for a live view.
        warn: Receives what may matter to the result.
        resume_from: The snapshot that the training goes on from.
    """

    def __init__(
        self,
        folder: Path,
        save_adapter: Callable[[TrainingRecord], None],
        *,
        show: Callable[[BaseSide | Step], None],
        warn: Callable[[str], None],
        resume_from: Snapshot | None = None,
    ) -> None:
        self._folder = folder
        self._path = folder / HISTORY
        self._save_adapter, self._show, self._warn = save_adapter, show, warn
        self._so_far = TrainingRecord(steps=0, best_epoch=0, best_loss=math.nan, interrupted=True)
        length = 0
        if resume_from is not None:
            self._so_far = resume_from.state.so_far or self._so_far
            length = resume_from.state.history_bytes
        with writing(self._path):
            self._history = self._path.open("a", encoding="utf-8")
            # Lines after the snapshot belong to steps that will be done again.
            self._history.truncate(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with writing(self._path):
            self._history.close()

    def on_base(self, side: BaseSide) -> None:
        """Show it."""
        self._show(side)

    def on_step(self, step: Step) -> None:
        """Append a line to history.jsonl and show it."""
        with writing(self._path):
            self._history.write(json.dumps(step.record()) + "\n")
            self._history.flush()  # whoever watches the file sees it now, and a kill costs no line
        best = self._so_far.best_loss
        if step.validation and (math.isnan(best) or step.loss < best):
            self._update(best_epoch=step.epoch, best_loss=step.loss)
        self._update(steps=step.step)
        self._show(step)

    def on_best(self) -> None:
        """Save the adapter, marked as interrupted: whether training will end is not known yet."""
        self._save_adapter(self._so_far)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the run's checkpoint."""
        with writing(self._path):
            length = self._path.stat().st_size
        state = snapshot.state.model_copy(update={"so_far": self._so_far, "history_bytes": length})
        checkpoint.save_state(self._folder, snapshot._replace(state=state))

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self._warn(text)

    def _update(self, **changes: float) -> None:
        self._so_far = self._so_far.model_copy(update=changes)


def write_failed_batch(
    folder: Path, problem: str, batch: Sequence[TokenPair], decode: Callable[[list[int]], str]
) -> Path:
    """Write down, as text, the pairs on which the loss was not finite; the file."""
    pairs = [
        {
            "chosen": decode(list(pair.chosen)),
            "rejected": decode(list(pair.rejected)),
            "neutral": decode(list(pair.neutral)),
        }
        for pair in batch
    ]
    path = folder / "failed_batch.json"
    write_text(path, json.dumps({"problem": problem, "pairs": pairs}, indent=1) + "\n")
    return path
