"""A study from its beginning to its page: what `pasto tune` does."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import optuna
import yaml

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text, writing
from pasto_cli.core.recipe.load import dump_recipe
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.tune_spec import TuneSpec
from pasto_cli.core.records.study import StudyRecord, TrialRecord
from pasto_cli.core.training import checkpoint
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.tune import storage
from pasto_cli.workflows.tune.result import record_of
from pasto_cli.workflows.tune.search import do_all, finals_of, search_of
from pasto_cli.workflows.tune.space import require_valid, spec_of
from pasto_cli.workflows.tune.storage import Place, reaching
from pasto_cli.workflows.tune.together import announce
from pasto_cli.workflows.tune.where import Where

FOLDER, FILE, PAGE = "tune", "study.db", "report.html"


class Wanted(NamedTuple):
    """What a user asks for."""

    recipe: Recipe
    trials: int | None = None
    """The recipe's number where it is None."""
    resume: bool = False
    worker: bool = False
    """Join a study in a shared storage, without adding trials to it."""
    storage: str | None = None
    """URL of a database; None for a file in the study's folder."""
    study: str | None = None
    """Its name; the recipe's where it is None."""
    out: Path = Path("runs")
    force: bool = False


class Tuned(NamedTuple):
    """What a study found, and how it ended."""

    record: StudyRecord
    folder: Path
    page: Path | None
    """Where its page is; None for a worker's."""
    interrupted: bool


def tune(wanted: Wanted, watch: Watcher) -> Tuned:
    """Search until the trials are done, train the finalists on other seeds, and write the page.

    Raises:
        PastoError: If the space, the storage or the study is not what it should be.
    """
    spec = spec_of(wanted.recipe)
    if wanted.trials is not None:
        spec = spec.model_copy(update={"trials": wanted.trials})
    require_valid(wanted.recipe, spec.keys)
    if wanted.worker and wanted.storage is None:
        raise PastoError(
            "--worker joins a study that other processes work on, and a file here has one process",
            "Give --storage postgresql://USER:PASSWORD@HOST/DATABASE.",
        )
    place, folder = _where(wanted)
    with nullcontext() if place.shared else checkpoint.held(_made(folder)), reaching(place):
        study, where = _open(wanted, spec, place, folder, watch)
        interrupted, finals = False, None
        try:
            do_all(search_of(study, where, wanted.recipe, spec), watch)
            finals = finals_of(study, where, wanted.recipe, spec)
            if finals is not None:
                do_all(finals, watch)
            announce(None)
        except KeyboardInterrupt:
            interrupted = True
            watch.warn("interrupted: the trial in progress keeps its checkpoint")
        found = record_of(study, finals.study if finals else None, place, spec.trials)
        page = None if wanted.worker else _write_page(found, folder, watch)
        return Tuned(found, folder, page, interrupted)


def pick(wanted: Wanted, number: int) -> TrialRecord:
    """A trial of a study.

    Raises:
        PastoError: If there is no such study or trial, or its training did not end.
    """
    place, _ = _where(wanted)
    with reaching(place):
        connection = _existing(wanted, place)
        study = optuna.load_study(study_name=place.name, storage=connection)
        trials = record_of(study, None, place, 0).trials
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None or found.run is None:
        done = ", ".join(str(t.number) for t in trials if t.run is not None) or "none"
        state = "there is none" if found is None else f"it is {found.state}"
        raise PastoError(
            f"trial {number} of {place.name} has no dial: {state}", f"Trials with one: {done}"
        )
    return found


def _where(wanted: Wanted) -> tuple[Place, Path]:
    name = wanted.study or wanted.recipe.name
    if "/" in name or name in ("", ".", ".."):
        raise PastoError(f"--study {name!r} cannot name a folder", "Write letters and digits.")
    folder = wanted.out / FOLDER / name
    url = storage.storage_url(wanted.storage) if wanted.storage else f"sqlite:///{folder / FILE}"
    return Place(url, name), folder


def _made(folder: Path) -> Path:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _existing(wanted: Wanted, place: Place) -> optuna.storages.RDBStorage:
    """A connection to a storage that has the study."""
    _, folder = _where(wanted)
    if place.shared or (folder / FILE).is_file():
        connection = storage.connect(place)
        if storage.exists(place, connection):
            return connection
    raise PastoError(
        f"there is no study {place.name} in {place.shown}", "Begin it: pasto tune RECIPE"
    )


def _open(
    wanted: Wanted, spec: TuneSpec, place: Place, folder: Path, watch: Watcher
) -> tuple[optuna.Study, Where]:
    """The study, new or gone on with, and what this process may do to it."""
    about = _about(wanted.recipe, spec)
    connection = _existing(wanted, place) if wanted.worker else storage.connect(place)
    study, new = storage.create(place, connection, about)
    if not new:
        if study.user_attrs.get(storage.RECIPE, about) != about:
            raise PastoError(
                f"the study {place.name} in {place.shown} is about another recipe",
                "Give another name with --study, or the recipe that it was begun with.",
            )
        known = storage.by_slot(study)
        ended = sum(trial.state.is_finished() for trial in known.values())
        if not wanted.resume and not wanted.worker:
            raise PastoError(
                f"the study {place.name} has {ended} of {max(known, default=0)} trials",
                "Go on with --resume, or begin another one with --study NAME.",
            )
        watch.note(f"going on with the study {place.name}: {ended} trials have ended")
    slots = () if wanted.worker else range(1, spec.trials + 1)
    where = Where(_made(folder), place, connection, slots, wanted.worker, wanted.force)
    return study, where


def _about(recipe: Recipe, spec: TuneSpec) -> str:
    """What must be the same for two processes to work on one study: all but how much is done."""
    search = spec.model_dump(mode="json", exclude={"trials", "finalists", "seeds"})
    return dump_recipe(recipe.model_copy(update={"tune": None})) + yaml.safe_dump({"tune": search})


def _write_page(found: StudyRecord, folder: Path, watch: Watcher) -> Path:
    from pasto_cli.core.report.study_page import render

    path = folder / PAGE
    with watch.task("drawing"):
        write_text(path, render(found))
    write_text(folder / "study.json", found.model_dump_json(indent=1))
    return path
