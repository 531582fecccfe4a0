"""A study as records: what `--json` prints, the table shows and the page draws."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from pasto_cli.core.records.study import Finalist, Objectives, StudyRecord, TrialRecord
from pasto_cli.workflows.tune.search import OF, RUN, SEED
from pasto_cli.workflows.tune.storage import PROBLEM, WORKER, Place, by_slot

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def record_of(
    study: optuna.Study, finals: optuna.Study | None, place: Place, wanted: int
) -> StudyRecord:
    """Everything that a study found so far."""
    best = {trial.number for trial in study.best_trials}
    return StudyRecord(
        name=place.name,
        storage=place.shown,
        wanted=wanted,
        trials=[_trial(n, trial, best) for n, trial in by_slot(study).items()],
        finalists=_finalists(finals) if finals is not None else [],
    )


def _trial(number: int, trial: FrozenTrial, best: set[int]) -> TrialRecord:
    done = trial.state == TrialState.COMPLETE
    return TrialRecord.model_validate(
        {
            "number": number,
            "state": STATES[trial.state],
            "settings": trial.params,
            "objectives": Objectives(*trial.values) if done else None,
            "best": trial.number in best,
            "run": trial.user_attrs.get(RUN),
            "worker": trial.user_attrs.get(WORKER),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "problem": trial.user_attrs.get(PROBLEM),
        }
    )


def _finalists(finals: optuna.Study) -> list[Finalist]:
    ended = [t for t in by_slot(finals).values() if t.state == TrialState.COMPLETE]
    numbers = dict.fromkeys(trial.user_attrs[OF] for trial in ended)
    return [_finalist(n, [t for t in ended if t.user_attrs[OF] == n]) for n in numbers]


def _finalist(number: int, trials: list[FrozenTrial]) -> Finalist:
    return Finalist(
        number=number,
        seeds=[trial.user_attrs[SEED] for trial in trials],
        each=[Objectives(*trial.values) for trial in trials],
        runs=[trial.user_attrs[RUN] for trial in trials],
    )
