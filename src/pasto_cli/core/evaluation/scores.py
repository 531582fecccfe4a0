"""All scores of a table of answers, with n and intervals; and differences between methods.

Intervals are percentiles of a bootstrap over dilemmas (arXiv 2411.00640, section 2.2): the rows of
one dilemma are drawn together. `metrics` and `selectivity` hold what is estimated. No torch.
"""

import math
from collections.abc import Callable

import numpy as np

from pasto_cli.base.statistics import Estimate, Indices, Mask, cluster_bootstrap
from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.evaluation.selectivity import (
    control_shift,
    selectivity,
    selectivity_scores,
    spread_shown,
    task_kl,
)
from pasto_cli.core.records.scores import CoefficientScores, Scores, key


def scores(table: Table, seed: int = 0) -> Scores:
    """All scores of a table, with n and intervals by a bootstrap over dilemmas."""
    whole = table.f1(table.every)
    targets, controls = table.every[table.is_target], table.every[~table.is_target]
    beside = selectivity_scores(table, seed)

    def estimate(statistic: Callable[[Indices], float], used: Mask | None = None) -> Estimate:
        return _bootstrap(table, statistic, targets, seed, used)

    def at(c: float) -> CoefficientScores:
        both = table.valid_at(c, 0.0)
        moved = _bootstrap(table, lambda i: control_shift(table, c, i), controls, seed, both)
        return CoefficientScores(
            mean_score=estimate(lambda i: table.mean_score(c, i), table.valid_at(c)),
            shift=estimate(lambda i: table.shift(c, i), both),
            acquiescence=estimate(lambda i: table.acquiescence(c, i), both & table.is_yes_no),
            pmass=float(np.mean(table.pmass[c])) if len(table.rows) else math.nan,
            invalid=int((~table.valid[c]).sum()),
            control_shift=moved,
            task_kl=estimate(lambda i: task_kl(table, c, i)),
        )

    throughout = table.valid_at(*table.coefficients)

    return Scores(
        # Steering F1 needs the controls too: they are resampled with the dilemmas.
        steering_f1=_bootstrap(table, lambda i: table.f1(i).f1, table.every, seed),
        steering_f1_valid_only=table.f1(table.every, valid_only=True).f1,
        parts=whole,
        chance=table.chance(seed=seed),
        informedness=estimate(table.informedness),
        slope=estimate(table.slope, throughout),
        monotonicity=estimate(table.monotonicity, throughout),
        coefficients={key(c): at(c) for c in table.coefficients},
        n_target=int(table.is_target.sum()),
        n_control=int((~table.is_target).sum()),
        n_without_label=table.skipped,
        selectivity=beside.selectivity,
        against_share=beside.against_share,
        fixed=beside.fixed,
        broken=beside.broken,
    )


def _bootstrap(
    table: Table,
    statistic: Callable[[Indices], float],
    chosen: Indices,
    seed: int,
    used: Mask | None = None,
) -> Estimate:
    """Of some rows; `used` says of all rows, (r,), which the statistic looks at."""
    groups = [table.groups[i] for i in chosen]
    among = None if used is None else used[chosen]
    return cluster_bootstrap(lambda drawn: statistic(chosen[drawn]), groups, seed, used=among)


def slope_difference(one: Table, other: Table, seed: int = 0) -> Estimate:
    """Slope of one method minus that of another on the same rows, nats per unit.

    Paired: both see the same dilemmas in each draw, so that what the dilemmas have in common
    cancels.

    Raises:
        ValueError: If the rows are not the same.
    """
    _require_same(one, other)
    chosen = np.flatnonzero(one.is_target)
    used = one.valid_at(*one.coefficients) & other.valid_at(*other.coefficients)
    return _bootstrap(one, lambda i: one.slope(i) - other.slope(i), chosen, seed, used)


def selectivity_difference(
    one: Table, other: Table, seed: int = 0, factor: float = 1.0
) -> Estimate:
    """Selectivity of one method minus `factor` times that of another on the same rows, paired.

    Raises:
        ValueError: If the rows are not the same.
    """
    _require_same(one, other)
    found = _bootstrap(
        one, lambda i: selectivity(one, i) - factor * selectivity(other, i), one.every, seed
    )
    return (
        found if spread_shown(one) and spread_shown(other) else Estimate.point(found.value, found.n)
    )


def _require_same(one: Table, other: Table) -> None:
    if [r.id for r in one.rows] != [r.id for r in other.rows]:
        raise ValueError("the methods were not asked the same questions")
