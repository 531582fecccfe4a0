"""Where a study is kept, and how its work is handed out.

A study is a list of slots, and a slot is a training that is done once. Each is a waiting trial of
Optuna's with a number of its own, which exactly one worker takes. Where a worker dies, its trial
fails, and a new one with the same slot, the same values and whatever the run had become waits for
the next. A worker is known to be dead by its process id on this machine, and on others by the
heart beat that Optuna writes into the storage.

SQLite knows no lock on a row, so that a file of ours is worked on by one process at a time; any
number of them share a study in PostgreSQL.
"""

import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from pasto_cli.base.errors import PastoError
from pasto_cli.base.scratch import is_dead

optuna.logging.set_verbosity(optuna.logging.ERROR)

BEAT, GRACE = 10, 45
"""Seconds between two signs of life of a worker, and after which it counts as dead."""
SLOT, WORKER, PROBLEM = "slot", "worker", "problem"
"""Facts of a trial: its place in the study, who took it, why it failed."""
RECIPE = "recipe"
"""Fact of a study: what it is about."""


class Place(NamedTuple):
    """Where a study is."""

    url: str
    """As SQLAlchemy takes it."""
    name: str

    @property
    def shown(self) -> str:
        """The storage without its password."""
        return re.sub(r"://([^:/@]+):[^@]*@", r"://\1:***@", self.url)

    @property
    def shared(self) -> bool:
        """Whether several processes may work on it."""
        return not self.url.startswith("sqlite")


def storage_url(text: str) -> str:
    """A user's URL with the driver that we have.

    Raises:
        PastoError: If it is no database's URL.
    """
    if text.startswith(("postgres://", "postgresql://")):
        return "postgresql+psycopg://" + text.partition("://")[2]
    if not re.match(r"[a-z0-9+]+://", text):
        raise PastoError(
            f"--storage {text}: this is no URL of a database",
            "Write postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for a file here.",
        )
    return text


@contextmanager
def reaching(place: Place) -> Generator[None, None, None]:
    """Turn what a database may answer into one line.

    Raises:
        PastoError: If it does not answer, or refuses.
    """
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        hint = "Start the database, or correct user, password, host and name of --storage."
        if isinstance(error, NoSuchModuleError | ArgumentError | ImportError):
            hint = "Give postgresql://..., with: pip install 'pasto-cli[tune]'"
        elif isinstance(cause, DBAPIError) and not place.shared:
            hint = "Free some disk, or choose another place with --out."
        raise PastoError(f"{place.shown} cannot be used: {reason}", hint) from None


def connect(place: Place) -> optuna.storages.RDBStorage:
    """A connection to a study's storage."""
    with reaching(place), warnings.catch_warnings():
        # Heart beats are called experimental, as they have been for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            place.url,
            engine_kwargs={} if place.shared else {"connect_args": {"timeout": 60}},
            heartbeat_interval=BEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=give_again,
        )


def exists(place: Place, storage: optuna.storages.RDBStorage) -> bool:
    """Whether there is such a study."""
    return place.name in optuna.get_all_study_names(storage)


def create(
    place: Place, storage: optuna.storages.RDBStorage, recipe: str
) -> tuple[optuna.Study, bool]:
    """A study of strength and disturbance: (the study, whether it is new)."""
    try:
        study = optuna.create_study(
            storage=storage, study_name=place.name, directions=["maximize", "minimize"]
        )
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(study_name=place.name, storage=storage), False
    study.set_user_attr(RECIPE, recipe)
    return study, True


def add_slots(
    study: optuna.Study, slots: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]
) -> None:
    """Let slots wait: (number, values that are given, facts) each; those that are there stay."""
    known = {trial.user_attrs.get(SLOT) for trial in study.get_trials(deepcopy=False)}
    for number, values, facts in slots:
        if number not in known:
            study.enqueue_trial(values, user_attrs={**facts, SLOT: number})


def give_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Let the slot of a trial that was not finished wait once more, with the same values."""
    if SLOT not in trial.user_attrs:
        return
    facts = {k: v for k, v in trial.user_attrs.items() if k not in (WORKER, PROBLEM)}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=facts,
            system_attrs=trial.system_attrs,
        )
    )


def recover(study: optuna.Study, place: Place) -> int:
    """Give the slots of dead workers again; how many there were on this machine."""
    if place.shared:  # several may find out at once: only the storage knows who was first
        optuna.storages.fail_stale_trials(study)
        return 0
    lost = [
        trial
        for trial in study.get_trials(states=[TrialState.RUNNING])
        if is_dead(str(trial.user_attrs.get(WORKER, ""))) is not False
    ]
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL)
        give_again(study, trial)
    return len(lost)


def by_slot(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Slot -> its last trial, in order."""
    found = {
        trial.user_attrs[SLOT]: trial
        for trial in study.get_trials(deepcopy=False)
        if SLOT in trial.user_attrs
    }
    return dict(sorted(found.items()))
