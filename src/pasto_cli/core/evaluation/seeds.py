"""Scores over several training runs."""

from collections.abc import Callable, Sequence

from pasto_cli.base.errors import PastoError
from pasto_cli.base.statistics import Spread, spread
from pasto_cli.core.records.evaluation import EvalRun

SCORES: dict[str, Callable[[EvalRun], float]] = {
    "slope of the mean score, nats": lambda r: r.scores["slope"]["value"],
    "shift at +1, nats": lambda r: r.scores["coefficients"]["1"]["shift"]["value"],
    "shift at -1, nats": lambda r: r.scores["coefficients"]["-1"]["shift"]["value"],
    "acquiescence at +1, nats": lambda r: r.scores["coefficients"]["1"]["acquiescence"]["value"],
    "acquiescence at -1, nats": lambda r: r.scores["coefficients"]["-1"]["acquiescence"]["value"],
    "Steering F1": lambda r: r.scores["steering_f1"]["value"],
    "Surgical Informedness": lambda r: r.scores["informedness"]["value"],
    "control rows flipped, %": lambda r: 100 * r.scores["parts"]["arbitrary_rate"],
    "KL p95 at +1, nats": lambda r: r.disturbance["1"]["kl_p95"]["value"],
    "KL p95 at -1, nats": lambda r: r.disturbance["-1"]["kl_p95"]["value"],
}


def across_seeds(runs: Sequence[EvalRun]) -> dict[str, Spread]:
    """Figures of several adapters: mean, spread, interval over them, and how many agree in sign.

    Raises:
        PastoError: If they were not measured on the same items and value.
    """
    first = runs[0]
    for other in runs[1:]:
        if (other.benchmark, other.value, [r.id for r in other.rows]) != (
            first.benchmark,
            first.value,
            [r.id for r in first.rows],
        ):
            raise PastoError(
                "these runs were not measured on the same items and value",
                "Give --benchmark, --value and --limit.",
            )
    return {name: spread([score(r) for r in runs]) for name, score in SCORES.items()}
