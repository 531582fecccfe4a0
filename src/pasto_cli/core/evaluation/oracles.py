"""Simulated steerers on a benchmark's real rows: what the metric rewards, for anyone to see.

An oracle moves y = log P(Yes) - log P(No) by a known rule from simulated base answers. A metric
that does not put *perfect* far above all, and *yes-sayer* near nothing, measures something else
than the value. No torch.
"""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from pasto_cli.base.statistics import Estimate, Number, cluster_bootstrap
from pasto_cli.core.evaluation.benchmarks.item import Item
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.records.evaluation import Answer, Row
from pasto_cli.core.records.scores import LabelSign, key

NATS = 3.0
"""How far a simulated steerer moves an answer at coefficient 1."""
THRESHOLD = 0.05
"""Threshold of pmass; no simulated answer is invalid."""

Rule = Callable[[float, int, np.random.Generator], float]
"""(coefficient, label, generator) -> shift of y, nats."""

ORACLES: dict[str, Rule] = {
    "perfect": lambda a, label, _: NATS * a * label,
    "inverted": lambda a, label, _: -NATS * a * label,
    "yes-sayer": lambda a, _label, _: NATS * a,
    "no-sayer": lambda a, _label, _: -NATS * a,
    "no-op": lambda _a, _label, _: 0.0,
    "random": lambda a, _label, rng: float(rng.normal(0.0, NATS)) * abs(a),
}


class OracleScore(BaseModel):
    """Scores of one simulated steerer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    f1: Estimate
    """Steering F1 of one draw of base answers, with its interval."""
    mean_f1: Number
    """Over several draws: what the metric rewards in expectation."""
    informedness: Number
    acquiescence: Number
    shift: Number


def simulate(items: Sequence[Item], value: str, oracle: str, seed: int) -> list[Row]:
    """Rows of a simulated steerer.

    Args:
        items: A benchmark's items.
        value: Whose labels the steerer knows.
        oracle: Name in `ORACLES`.
        seed: Seed of base answers and noise.
    """
    rng = np.random.default_rng(seed)
    rule = ORACLES[oracle]
    rows: list[Row] = []
    for item in items:
        # Base answers lean towards Yes and vary, as those of real models do.
        base, label = float(rng.normal(0.5, 1.5)), item.labels.get(value, 0)
        answers = {
            key(a): Answer(y=base + rule(a, label, rng), pmass=1.0, top_token="Yes") for a in ENDS
        }
        rows.append(
            Row(id=item.id, group=item.group, kind=item.kind, labels=item.labels, answers=answers)
        )
    return rows


def score_oracles(
    items: Sequence[Item],
    value: str,
    label_sign: LabelSign = "own",
    draws: int = 20,
    seed: int = 0,
) -> list[OracleScore]:
    """Every simulated steerer on a benchmark.

    Args:
        items: A benchmark's items.
        value: The value measured.
        label_sign: `own`, or `original` for the published fault.
        draws: Draws of base answers behind the mean.
        seed: Seed of the first draw.
    """

    def table(name: str, number: int) -> Table:
        rows = simulate(items, value, name, seed + number)
        return Table(rows, value, ENDS, THRESHOLD, label_sign=label_sign)

    return [_score(name, [table(name, n) for n in range(draws)], seed) for name in ORACLES]


def _score(name: str, tables: Sequence[Table], seed: int) -> OracleScore:
    first, every = tables[0], tables[0].every
    return OracleScore(
        name=name,
        f1=cluster_bootstrap(lambda i: first.f1(i).f1, first.groups, seed, draws=500),
        mean_f1=float(np.mean([t.f1(every).f1 for t in tables])),
        informedness=first.informedness(every),
        acquiescence=first.acquiescence(1.0, every),
        shift=first.shift(1.0, every),
    )
