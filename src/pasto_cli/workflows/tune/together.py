"""Several processes that train the trials of a study together, as under torchrun.

The first one has the study: it tells the others which trial comes next and whether one is pruned.
Each trains its shard of every batch, so that all of them come to the same dial; the others keep
theirs in a folder that is thrown away.
"""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models import distributed
from pasto_cli.core.records.training import Step
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.tune.trial import Interrupted, Job, Pruned, TrialWatcher, run_trial


def announce(job: Job | None) -> None:
    """Tell the others what to train; None lets them end."""
    distributed.all_gather_object(job)


def agreed_reason(why: str) -> str:
    """Why a trial is pruned, or nothing: the first process's word in all of them."""
    return str(distributed.all_gather_object(why)[0])


def follow(watch: Watcher) -> None:
    """Train what the first process announces, until it has nothing more."""

    def validated(step: Step) -> None:  # noqa: ARG001 (the first process judges it)
        if why := agreed_reason(""):
            raise Pruned(why)

    with TemporaryDirectory() as folder:
        while (job := distributed.all_gather_object(None)[0]) is not None:
            # What ends a trial ends it in every process, and the first one tells of it.
            with suppress(Pruned, Interrupted, PastoError):
                run_trial(job, Path(folder), TrialWatcher(watch, validated))
