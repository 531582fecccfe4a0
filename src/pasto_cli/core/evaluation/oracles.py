"""Simulated steerers on a benchmark's real rows: what the metric rewards, for anyone to see.

An oracle moves y = log P(Yes) - log P(No) by a known rule from simulated base answers. A metric
that does not put *perfect* far above all, and *yes-sayer* near nothing, measures something else
than the value. No torch.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from pasto_cli.base.statistics import Estimate, Floats, Number, cluster_bootstrap
from pasto_cli.core.evaluation.benchmarks.item import Item
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.records.evaluation import Answer, Row
from pasto_cli.core.records.scores import LabelSign, key

NATS = 3.0
"""How far a simulated steerer moves an answer at coefficient 1."""
THRESHOLD = 0.05
"""Threshold of pmass; no simulated answer is invalid."""

Rule = Callable[[float, Floats, Floats], Floats]
"""(coefficient, labels (r,), standard normal noise (r,)) -> shifts of y (r,), nats."""

ORACLES: dict[str, Rule] = {
    "perfect": lambda a, label, _: NATS * a * label,
    "inverted": lambda a, label, _: -NATS * a * label,
    "yes-sayer": lambda a, label, _: NATS * a * np.ones_like(label),
    "no-sayer": lambda a, label, _: -NATS * a * np.ones_like(label),
    "no-op": lambda _a, label, _: np.zeros_like(label),
    "random": lambda a, _label, noise: NATS * noise * abs(a),
}
NOISY = {"random"}
"""Those that look at the noise; it is not drawn for the others, whose rules get base answers."""


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


def simulated_y(labels: Floats, oracle: str, seed: int) -> dict[float, Floats]:
    """Answers of a simulated steerer: coefficient -> y (r,), nats.

    Args:
        labels: (r,), 0 where a row has none.
        oracle: Name in `ORACLES`.
        seed: Seed of base answers and noise.
    """
    rule, columns = ORACLES[oracle], 1 + len(ENDS) * (oracle in NOISY)
    drawn = np.random.default_rng(seed).standard_normal((len(labels), columns))
    # Base answers lean towards Yes and vary, as those of real models do.
    base = 0.5 + 1.5 * drawn[:, 0]
    return {a: base + rule(a, labels, drawn[:, (1 + i) % columns]) for i, a in enumerate(ENDS)}


def simulate(items: Sequence[Item], value: str, oracle: str, seed: int) -> list[Row]:
    """Rows of a simulated steerer.

    Args:
        items: A benchmark's items.
        value: Whose labels the steerer knows.
        oracle: Name in `ORACLES`.
        seed: Seed of base answers and noise.
    """
    y = simulated_y(_labels(items, value), oracle, seed)
    return [
        Row(
            id=item.id,
            group=item.group,
            kind=item.kind,
            labels=item.labels,
            answers={key(a): Answer(y=y[a][i], pmass=1.0, top_token="Yes") for a in ENDS},
        )
        for i, item in enumerate(items)
    ]


def _labels(items: Sequence[Item], value: str) -> Floats:
    """(r,), 0 where an item has none."""
    return np.array([float(item.labels.get(value, 0)) for item in items])


def oracle_tables(
    items: Sequence[Item],
    value: str,
    oracle: str,
    seeds: Sequence[int],
    label_sign: LabelSign = "own",
) -> Iterator[Table]:
    """What `simulate` gives for each of several seeds, as tables: rows are made once.

    Args:
        items: A benchmark's items.
        value: Whose labels the steerer knows.
        oracle: Name in `ORACLES`.
        seeds: Seeds of base answers and noise.
        label_sign: `own`, or `original` for the published fault.
    """
    rows = simulate(items, value, "no-op", 0)
    table = Table(rows, value, ENDS, THRESHOLD, label_sign=label_sign)
    places = {row.id: i for i, row in enumerate(rows)}
    order = [places[row.id] for row in table.rows]
    labels = _labels(items, value)
    for seed in seeds:
        y = simulated_y(labels, oracle, seed)
        yield table.answered({a: each[order] for a, each in y.items()})


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
    seeds = range(seed, seed + draws)
    return [
        _score(name, list(oracle_tables(items, value, name, seeds, label_sign)), seed)
        for name in ORACLES
    ]


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
