"""What every worker of a study does: take a slot, train it, until none is left; then the finalists.

The first slot is the recipe itself. Where a study has one worker, a slot begins when the one before
it has ended, and draws from a generator of its own, so that a study that was killed ends with the
same trials as one that was not. Workers that share one take what waits.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import NotWritten
from pasto_cli.base.format import format_settings
from pasto_cli.base.scratch import this_process
from pasto_cli.core.models import distributed
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.tune_spec import TuneSpec
from pasto_cli.core.records.study import Setting
from pasto_cli.core.records.training import Step
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.tune.space import own_values, suggest, trial_recipe
from pasto_cli.workflows.tune.storage import (
    PROBLEM,
    RECIPE,
    SLOT,
    WORKER,
    Place,
    add_slots,
    by_slot,
    create,
    give_again,
    recover,
)
from pasto_cli.workflows.tune.together import agreed_reason, announce
from pasto_cli.workflows.tune.trial import (
    Curve,
    Interrupted,
    Pruned,
    TrialWatcher,
    is_behind,
    job_of,
    run_trial,
    strength_of,
)
from pasto_cli.workflows.tune.where import Where

CURVE, RUN, OF, SEED, READY = "curve", "run", "of", "seed", "ready"
PAUSE, PATIENCE = 2.0, 60.0
"""Seconds between two looks at a shared study, and until slots of another process are ours."""
PER_FINALIST = 10_000
"""Slots of a finalist begin at its number times this."""

Named = Callable[[optuna.Trial], tuple[Recipe, str]]
"""Of a trial that was just taken: its recipe, and what to say of it."""


class Apart(Exception):
    """What ended a trial in this process alone, while the others go on with it."""


class NotGiven(Exception):
    """A trial that no slot stands for: another worker took the last one at the same moment."""


class Work(NamedTuple):
    """One study's worth of slots."""

    study: optuna.Study
    place: Place
    where: Where
    spec: TuneSpec
    named: Named
    waiting: Sequence[tuple[int, dict[str, Any], dict[str, Any]]]
    """Slots that this process may add."""
    prune: bool


def do_all(work: Work, watch: Watcher) -> None:
    """Take slots until none waits and none is being worked on.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the slot in progress waits again.
    """
    while True:
        if lost := recover(work.study, work.place):
            watch.note(f"{lost} trial was being trained when its process died: going on with it")
        states = [trial.state for trial in by_slot(work.study).values()]
        if TrialState.WAITING in states:
            _take_one(work, watch)
        elif TrialState.RUNNING in states:
            time.sleep(PAUSE)
        elif missing := _missing(work):
            # One worker draws the next values when it knows how the last ones did.
            add_slots(work.study, missing if work.place.shared else missing[:1])
        else:
            return


def _missing(work: Work) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    known = by_slot(work.study)
    return [slot for slot in work.waiting if slot[0] not in known]


def _take_one(work: Work, watch: Watcher) -> None:
    """Train the next slot that waits, if it is still there."""
    taken: list[int] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        if SLOT not in trial.user_attrs:
            raise NotGiven
        taken.append(trial.number)
        trial.set_user_attr(WORKER, this_process())
        try:
            return _train(work, trial, watch)
        except Pruned as why:
            trial.set_user_attr(PROBLEM, str(why))
            watch.note(f"pruned: {why}")
            raise optuna.TrialPruned from None
        except PastoError as error:
            if isinstance(error, NotWritten) and distributed.size() > 1:
                raise Apart from error
            trial.set_user_attr(PROBLEM, error.message)
            watch.warn(f"this trial failed: {error.message}")
            raise

    work.study.sampler = _sampler(work)
    try:
        work.study.optimize(objective, n_trials=1, catch=(PastoError, NotGiven))
    except (KeyboardInterrupt, Interrupted, Apart) as end:
        if taken:
            give_again(work.study, work.study.trials[taken[0]])
        if end.__cause__ is not None:
            raise end.__cause__ from None
        raise KeyboardInterrupt from None


def _sampler(work: Work) -> optuna.samplers.BaseSampler:
    """One that is seeded by the slot that waits, and so does not depend on what ran before."""
    waits = [n for n, t in by_slot(work.study).items() if t.state == TrialState.WAITING]
    seed = (work.spec.seed * 1_000_003 + min(waits, default=0)) % 2**32
    trials = work.spec.trials
    if work.spec.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(
            population_size=max(4, min(20, trials // 4)), seed=seed
        )
    return optuna.samplers.TPESampler(
        n_startup_trials=max(4, min(10, trials // 3)), multivariate=True, seed=seed
    )


def _train(work: Work, trial: optuna.Trial, watch: Watcher) -> tuple[float, float]:
    recipe, said = work.named(trial)
    watch.note(said)
    curve: Curve = dict(trial.user_attrs.get(CURVE, {}))

    def validated(step: Step) -> None:
        curve[f"{step.step / step.total_steps:.2f}"] = strength_of(step)
        trial.set_user_attr(CURVE, curve)
        others = [
            t.user_attrs[CURVE]
            for t in work.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            if CURVE in t.user_attrs
        ]
        if why := agreed_reason(is_behind(curve, others) if work.prune else ""):
            raise Pruned(why)

    root = work.where.folder
    job = job_of(recipe, root, force=work.where.force)
    announce(job)
    folder, found = run_trial(job, root, TrialWatcher(watch, validated))
    trial.set_user_attr(RUN, str(folder))
    watch.note(f"strength {found.strength:+.2f}, disturbance {found.disturbance:.2f} nats")
    return found


def search_of(study: optuna.Study, where: Where, recipe: Recipe, spec: TuneSpec) -> Work:
    """The search itself."""

    def named(trial: optuna.Trial) -> tuple[Recipe, str]:
        settings = suggest(trial, spec.keys)
        number = trial.user_attrs[SLOT]
        name = f"{recipe.name[:56]}-t{number:03d}"
        return trial_recipe(recipe, settings, name), f"trial {number}: {format_settings(settings)}"

    slots = [(n, own_values(recipe, spec.keys) if n == 1 else {}, {}) for n in where.slots]
    return Work(study, where.place, where, spec, named, slots, spec.prune)


def finals_of(search: optuna.Study, where: Where, recipe: Recipe, spec: TuneSpec) -> Work | None:
    """The finalists of a search that is done, on other seeds; None where there are none."""
    wanted = [
        (
            PER_FINALIST * number + seed,
            {},
            {OF: number, SEED: recipe.training.seed + 1 + seed, "settings": settings},
        )
        for number, settings in finalists(search, spec.finalists)
        for seed in range(spec.seeds)
    ]
    if not wanted:
        return None
    place = where.place._replace(name=f"{where.place.name}-seeds")
    study, new = create(place, where.storage, search.user_attrs[RECIPE])
    if new or not where.worker or not _is_ready(study):
        add_slots(study, wanted)
        study.set_user_attr(READY, True)

    def named(trial: optuna.Trial) -> tuple[Recipe, str]:
        of, seed = trial.user_attrs[OF], trial.user_attrs[SEED]
        settings = {**trial.user_attrs["settings"], "training.seed": seed}
        name = f"{recipe.name[:48]}-t{of:03d}-seed{seed}"
        return trial_recipe(recipe, settings, name), f"trial {of} again, seed {seed}"

    return Work(study, place, where, spec, named, wanted, prune=False)


def _is_ready(study: optuna.Study) -> bool:
    """Whether its slots are there; waits for the process that adds them, unless that has died."""
    end = time.monotonic() + PATIENCE
    while not study.user_attrs.get(READY):
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def finalists(search: optuna.Study, count: int) -> list[tuple[int, dict[str, Setting]]]:
    """(number, settings) of trials on the Pareto front, spread over it: both ends, and between."""
    front = sorted(
        (trial for trial in search.best_trials if SLOT in trial.user_attrs),
        key=lambda trial: (trial.values, trial.number),
        reverse=True,
    )
    if len(front) > count:
        places = [round(i * (len(front) - 1) / max(1, count - 1)) for i in range(count)]
        front = [front[i] for i in places]
    return [(trial.user_attrs[SLOT], dict(trial.params)) for trial in front]
