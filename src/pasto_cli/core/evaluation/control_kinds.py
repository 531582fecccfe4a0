"""Which controls a dial moves: the control shift apart for each kind, and towards which answer.

    size    mean |y_c - y_0| over the rows of a kind, nats
    mean    mean (y_c - y_0); above 0 where a dial makes the row's answer (Yes) likelier

A kind that is asked in one wording only shows what a dial does to that wording. A mean as large as
the size, with the same sign at both ends, is such a case: no right answer was looked at. No torch.
"""

import math

import numpy as np

from pasto_cli.base.statistics import Estimate, Indices, cluster_bootstrap
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.evaluation.selectivity import control_shift
from pasto_cli.core.records.evaluation import ControlKind, EvalRun
from pasto_cli.core.records.scores import key


def control_kinds(run: EvalRun) -> list[ControlKind]:
    """Shifts of each kind of controls at +1 and -1, in the order of the benchmark.

    Intervals are those of the scores: questions that mirror each other are resampled together.

    Args:
        run: An evaluation with answers at -1, 0 and +1.
    """
    seed = int(run.provenance.get("bootstrap_seed") or 0)
    names = dict.fromkeys(row.kind for row in run.rows if row.kind != "target")
    return [_kind(run, name, seed) for name in names]


def _kind(run: EvalRun, name: str, seed: int) -> ControlKind:
    rows = [row for row in run.rows if row.kind == name]
    table = Table(rows, run.value, ENDS, run.pmass_threshold)

    def mean(c: float, index: Indices) -> float:
        chosen = index[table.valid[c][index] & table.valid[0.0][index]]
        moved = table.y[c][chosen] - table.y[0.0][chosen]
        return float(np.mean(moved)) if len(moved) else math.nan

    def both(c: float) -> tuple[Estimate, Estimate]:
        used = table.valid_at(c, 0.0)
        size = cluster_bootstrap(
            lambda i: control_shift(table, c, i), table.groups, seed, used=used
        )
        return size, cluster_bootstrap(lambda i: mean(c, i), table.groups, seed, used=used)

    found = {key(c): both(c) for c in (1.0, -1.0)}
    return ControlKind(
        name=name,
        rows=len(rows),
        sizes={c: size for c, (size, _) in found.items()},
        means={c: towards for c, (_, towards) in found.items()},
    )
