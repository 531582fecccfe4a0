"""Simulated steerers on a benchmark's real rows: what the metric rewards, for anyone to see. No
torch.

An oracle moves y = log P(Yes) - log P(No) by a known rule from simulated base answers. A metric
that does not put *perfect* far above all, and *yes-sayer* near nothing, measures something else
than the value."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pasto_cli.base.statistics import Estimate, cluster_bootstrap
from pasto_cli.core.evaluation.benchmarks.item import Item
from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.records.evaluation import Answer, Row, key

NATS = 3.0
"""How far a simulated steerer moves an answer at coefficient 1."""
COEFFICIENTS = (-1.0, 0.0, 1.0)

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


class OracleScore(NamedTuple):
    """Scores of one simulated steerer."""

    name: str
    f1: Estimate
    """Of one draw of base answers, with its interval."""
    mean_f1: float
    """Over several draws: what the metric rewards in expectation."""
    informedness: float
    acquiescence: float
    shift: float


def simulate(items: Sequence[Item], value: str, oracle: str, seed: int) -> list[Row]:
    """Rows of a simulated steerer; base answers lean towards Yes and vary, as those of real models
    do.

    Args:
        items: A benchmark's items.
        value: Whose labels the steerer knows.
        oracle: Name in `ORACLES`.
        seed: Of base answers and noise.
    """
    rng = np.random.default_rng(seed)
    rule = ORACLES[oracle]
    rows = []
    for item in items:
        base, label = float(rng.normal(0.5, 1.5)), item.labels.get(value, 0)
        answers = {
            key(a): Answer(y=base + rule(a, label, rng), pmass=1.0, said="Yes")
            for a in COEFFICIENTS
        }
        rows.append(
            Row(id=item.id, group=item.group, kind=item.kind, labels=item.labels, answers=answers)
        )
    return rows


def score_oracles(
    items: Sequence[Item], value: str, label_sign: str = "own", draws: int = 20, seed: int = 0
) -> list[OracleScore]:
    """Every simulated steerer on a benchmark.

    Args:
        items: A benchmark's items.
        value: The value measured.
        label_sign: `own`, or `original` for the published fault.
        draws: Draws of base answers behind the mean.
        seed: Of the first draw.
    """
    found = []
    for name in ORACLES:
        tables = [
            Table(
                simulate(items, value, name, seed + n),
                value,
                COEFFICIENTS,
                0.05,
                label_sign=label_sign,
            )
            for n in range(draws)
        ]
        every = np.arange(len(tables[0].rows))
        first = tables[0]
        f1 = cluster_bootstrap(lambda i, t=first: t.f1(i).f1, first.groups, seed, draws=500)
        found.append(
            OracleScore(
                name,
                f1,
                float(np.mean([t.f1(every).f1 for t in tables])),
                first.informedness(every),
                first.acquiescence(1.0, every),
                first.shift(1.0, every),
            )
        )
    return found
