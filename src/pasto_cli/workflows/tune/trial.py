"""One training of a study: begun or gone on with, pruned on validation, judged by two numbers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.artifact import store
from pasto_cli.core.evaluation.disturbance import measure_disturbance
from pasto_cli.core.models.distributed import copied_by_the_others
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.study import Objectives
from pasto_cli.core.records.training import BaseSide, Step
from pasto_cli.core.training import checkpoint
from pasto_cli.workflows.dials import open_dial
from pasto_cli.workflows.evaluate import neutral_probe
from pasto_cli.workflows.progress import Silent, Watcher
from pasto_cli.workflows.train import Trained, resume_run, train_recipe

ENDS = ("1", "-1")
PEERS = 4
"""Trials that must have come as far before one is judged by them."""
WARM_UP = 0.3
"""Share of a training in which nothing is pruned: losses still ramp up."""
Curve = dict[str, float]
"""Share of the training, as text of two decimals -> strength on validation pairs."""


class Pruned(Exception):
    """A training that is not worth going on with."""


class Interrupted(Exception):
    """Ctrl-C in a training, which has kept its checkpoint."""


class TrialWatcher(Silent):
    """Shows the training of a trial, passes warnings on, and hears its validations."""

    def __init__(self, watch: Watcher, validated: Callable[[Step], None]) -> None:
        self.watch, self.validated = watch, validated

    def warn(self, text: str) -> None:
        """Pass on."""
        self.watch.warn(text)

    @contextmanager
    def training(self) -> Iterator[Callable[[BaseSide | Step], None]]:
        """Show the steps, and look at validations."""
        with self.watch.training() as show:

            def seen(what: BaseSide | Step) -> None:
                show(what)
                if isinstance(what, Step) and what.validation:
                    self.validated(what)

            yield seen


def strength_of(step: Step) -> float:
    """Strength on validation pairs, prompt-equivalents: the smaller one of both ends."""
    found = step.diagnostics
    return min(found["strength_pos"], -found["strength_neg"])


def is_behind(own: Curve, others: Sequence[Curve]) -> str:
    """Why a training is not worth going on with, or nothing.

    The best that it reached is compared with the median of what the others had reached by then
    (median stopping rule: Golovin et al., Google Vizier, KDD 2017, section 3.2.2).

    Args:
        own: Strength by the share of the training, up to now.
        others: Those of trials that ended.
    """
    now = max(map(float, own))
    reached = [
        max(value for share, value in curve.items() if float(share) <= now)
        for curve in others
        if any(float(share) <= now for share in curve)
    ]
    if now < WARM_UP or now >= 1 or len(reached) < PEERS:
        return ""
    best, middle = max(own.values()), median(reached)
    if best >= middle:
        return ""
    return (
        f"strength {best:+.2f} on validation pairs after {now:.0%} of the training; the median of "
        f"{len(reached)} others was {middle:+.2f}"
    )


class Job(NamedTuple):
    """A trial to be trained."""

    recipe: Recipe
    begun: Path | None
    """Its run, where there is one."""
    finished: bool
    """Whether that is trained to its end."""
    force: bool
    """Train although no template passes the screen."""


def job_of(recipe: Recipe, root: Path, *, force: bool) -> Job:
    """What is left to do for a recipe, whose name is its own among the runs in `root`."""
    begun = max((path.parent for path in root.glob(f"*-{recipe.name}/recipe.yaml")), default=None)
    return Job(recipe, begun, begun is not None and _is_finished(begun), force)


def run_trial(job: Job, root: Path, watch: Watcher) -> tuple[Path, Objectives]:
    """Train, or go on, and judge.

    Args:
        job: What to train.
        root: Folder for a run that is not begun.
        watch: A `TrialWatcher`, or one that hears nothing.

    Returns:
        The run's folder, and how good its dial is.

    Raises:
        Interrupted: After Ctrl-C.
        PastoError: If it cannot be trained.
    """
    if job.begun is None:
        trained = train_recipe(job.recipe, watch, root, force=job.force)
        return _judged(_uninterrupted(trained), watch)
    with nullcontext(job.begun) if job.finished else copied_by_the_others(job.begun) as folder:
        if not job.finished:
            _uninterrupted(resume_run(folder, watch))
        return _judged(folder, watch)


def _uninterrupted(trained: Trained) -> Path:
    if trained.result.interrupted:
        raise Interrupted
    return trained.folder


def _judged(folder: Path, watch: Watcher) -> tuple[Path, Objectives]:
    found = objectives_of(folder, watch)
    if not all(map(math.isfinite, found)):
        raise PastoError(f"strength or disturbance is not finite: {found}", "Lower training.lr.")
    return folder, found


def _is_finished(folder: Path) -> bool:
    return runs.holds_adapter(folder / "adapter") and not checkpoint.begun(folder)


def objectives_of(folder: Path, watch: Watcher) -> Objectives:
    """Strength and disturbance of a finished run, see `core.records.study`."""
    meta = store.read_meta(folder / "adapter")
    certificate = meta.certificate
    if certificate is None:
        raise PastoError(f"{folder} has no certificate", "Delete the folder to train it again.")
    strength = min(certificate.strength["1"].value, -certificate.strength["-1"].value)
    return Objectives(strength, _neutral_kl(folder, meta, watch) + _anchor_kl(meta))


def _neutral_kl(folder: Path, meta: Meta, watch: Watcher) -> float:
    """KL p95 on held-out neutral prompts, mean of both ends, nats."""
    if meta.calibration is not None:
        return sum(meta.calibration.reached[end].value for end in ENDS) / len(ENDS)
    dial = open_dial(str(folder), watch)
    probe = neutral_probe(dial.lm).without_words()
    read = [measure_disturbance(dial.lm, dial.steerer, probe, float(end)).kl_p95 for end in ENDS]
    return sum(read) / len(read)


def _anchor_kl(meta: Meta) -> float:
    """Mean KL on held-out anchors, mean of both ends, nats; 0 where the recipe has none."""
    found = meta.certificate.specificity if meta.certificate else None
    return sum(found[end].kl_mean.value for end in ENDS) / len(ENDS) if found else 0.0
