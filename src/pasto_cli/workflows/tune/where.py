"""Where a study's runs go, and what this process may do to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import optuna

from pasto_cli.workflows.tune.storage import Place


class Where(NamedTuple):
    """A study as one process sees it."""

    folder: Path
    """Its runs, and the page, on this machine."""
    place: Place
    storage: optuna.storages.RDBStorage
    slots: Sequence[int]
    """Numbers of the trials that it shall have; empty for a worker, which adds none."""
    worker: bool
    """Whether it joined a study of another process."""
    force: bool
    """Train although no template passes the screen."""
