"""Scores over several training runs: the runs are the observations. No torch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.statistics import Estimate, Spread, spread
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun


def _value(estimate: Estimate | None) -> float:
    """Files of before a score was measured do not hold it."""
    return math.nan if estimate is None else estimate.value


SCORES: dict[str, Callable[[EvalRun], float]] = {
    "slope of the mean score, nats": lambda r: r.scores.slope.value,
    "selectivity": lambda r: _value(r.scores.selectivity),
    "shift at +1, nats": lambda r: r.scores.at(1.0).shift.value,
    "shift at -1, nats": lambda r: r.scores.at(-1.0).shift.value,
    "acquiescence at +1, nats": lambda r: r.scores.at(1.0).acquiescence.value,
    "acquiescence at -1, nats": lambda r: r.scores.at(-1.0).acquiescence.value,
    "Steering F1": lambda r: r.scores.steering_f1.value,
    "Surgical Informedness": lambda r: r.scores.informedness.value,
    "control shift at +1, nats": lambda r: _value(r.scores.at(1.0).control_shift),
    "control shift at -1, nats": lambda r: _value(r.scores.at(-1.0).control_shift),
    "control rows flipped, %": lambda r: 100 * r.scores.parts.arbitrary_rate,
    "KL p95 at +1, nats": lambda r: r.disturbance_at(1.0).kl_p95.value,
    "KL p95 at -1, nats": lambda r: r.disturbance_at(-1.0).kl_p95.value,
}


def across_seeds(runs: Sequence[EvalRun]) -> dict[str, Spread]:
    """Scores of several adapters: mean, spread, interval over them, and how many agree in sign.

    Raises:
        PastoError: If they were not measured on the same items and value.
    """
    if any(_asked(run) != _asked(runs[0]) for run in runs[1:]):
        raise PastoError(
            "these runs were not measured on the same items and value",
            "Give --benchmark, --value and --limit.",
        )
    return {name: spread([score(r) for r in runs]) for name, score in SCORES.items()}


def unlike(recipes: Sequence[Recipe]) -> list[str]:
    """Keys in which recipes differ, seeds, names and how they are measured left out.

    Scores over runs speak of seeds where there are none.
    """
    flat = [
        _flat(recipe.model_dump(mode="json", exclude={"name", "evaluation"})) for recipe in recipes
    ]
    keys = dict.fromkeys(key for one in flat for key in one if not key.endswith("seed"))
    return [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat[1:])]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _asked(run: EvalRun) -> tuple[str, str, list[str]]:
    return run.benchmark, run.value, [row.id for row in run.rows]


def sentiment_across_seeds(runs: Sequence[SentimentRun]) -> dict[str, Spread]:
    """The slope of sentiment over several adapters."""
    return {"slope of sentiment": spread([run.scores.slope.value for run in runs])}
