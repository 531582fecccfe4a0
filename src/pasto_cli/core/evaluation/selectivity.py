"""Does the dial move what it should and nothing else? Figures on one `Table` of answers. No torch.

    control shift   mean |y_c - y_0| over control rows, which no value is at stake in, nats
    selectivity     slope of the mean score over the mean control shift at +1 and -1
    against share   share of target rows whose score falls from -1 to +1
    fixed, broken   target rows that change to the right and to the wrong side from 0 to +1
    task KL         mean over target rows of KL(p_0 || p_c) between (matching answers, the others,
                    anything else)

Flips of controls say nothing where the base stands near 0, and a slope says nothing of what else
moved: a dial that says Yes to everything has both. The task KL looks at three outcomes only, so
that it is a lower bound of the KL between the whole next-token distributions.

Legend: r rows.
"""

import math
from typing import NamedTuple

import numpy as np

from pasto_cli.base.statistics import Estimate, Floats, Indices, cluster_bootstrap
from pasto_cli.core.evaluation.metrics import Table

TINY = 1e-12
"""Smallest probability that a logarithm is taken of."""


class SelectivityScores(NamedTuple):
    """What a dial moves beside its value."""

    selectivity: Estimate
    against_share: Estimate
    fixed: int
    broken: int


def control_shift(table: Table, c: float, index: Indices) -> float:
    """Mean |y_c - y_0| over control rows valid at both, nats; NaN without any."""
    chosen = index[~table.is_target[index] & table.valid[c][index] & table.valid[0.0][index]]
    moved = np.abs(table.y[c][chosen] - table.y[0.0][chosen])
    return float(moved.mean()) if len(moved) else math.nan


def selectivity(table: Table, index: Indices) -> float:
    """Slope over the mean control shift at both ends; NaN where no control moves at all."""
    shift = (control_shift(table, 1.0, index) + control_shift(table, -1.0, index)) / 2
    return table.slope(index) / shift if shift > 0 else math.nan


def against_share(table: Table, index: Indices) -> float:
    """Share of target rows, valid at both ends, whose score falls from -1 to +1."""
    down, up = (_target_scores(table, c, index) for c in (-1.0, 1.0))
    change = up - down
    change = change[np.isfinite(change)]
    return float((change < 0).mean()) if len(change) else math.nan


def fixed_and_broken(table: Table) -> tuple[int, int]:
    """Numbers of target rows that +1 puts on the right side of 0, and on the wrong one."""
    before, after = (_target_scores(table, c, table.every) for c in (0.0, 1.0))
    fixed, broken = (before < 0) & (after > 0), (before > 0) & (after < 0)
    return int(fixed.sum()), int(broken.sum())


def task_kl(table: Table, c: float, index: Indices) -> float:
    """Mean over target rows of KL(p_0 || p_c) over three outcomes, nats."""
    chosen = index[table.is_target[index]]
    if not len(chosen):
        return math.nan
    before, after = (_outcomes(table, a, chosen) for a in (0.0, c))  # (r, 3)
    kl = (before * (np.log(before) - np.log(after))).sum(-1)
    return float(kl.mean())


def _target_scores(table: Table, c: float, index: Indices) -> Floats:
    return table.score(c, index[table.is_target[index]])


def _outcomes(table: Table, c: float, index: Indices) -> Floats:
    """P(matching answers), P(the others), P(anything else) from y and the mass on answers, (r, 3).

    y may be infinite where one side has no mass at all.
    """
    mass = table.pmass[c][index]
    matching = mass / (1.0 + np.exp(-np.clip(table.y[c][index], -700.0, 700.0)))
    parts = np.stack([matching, mass - matching, 1.0 - mass], axis=-1)
    parts = np.clip(parts, TINY, None)
    return parts / parts.sum(-1, keepdims=True)


def selectivity_scores(table: Table, seed: int = 0) -> SelectivityScores:
    """What a dial moves beside its value, with intervals by a bootstrap over dilemmas."""
    # Controls are resampled with the dilemmas: selectivity is made of both.
    whole = cluster_bootstrap(lambda i: selectivity(table, i), table.groups, seed)
    if not spread_shown(table):
        whole = Estimate.point(whole.value, whole.n)
    targets = np.flatnonzero(table.is_target)
    groups = [table.groups[i] for i in targets]
    used = table.valid_at(-1.0, 1.0)[targets]
    against = cluster_bootstrap(lambda i: against_share(table, targets[i]), groups, seed, used=used)
    return SelectivityScores(whole, against, *fixed_and_broken(table))


def spread_shown(table: Table) -> bool:
    """Whether selectivity has an interval: two dilemmas and two controls at least, both valid."""
    throughout = table.valid_at(*table.coefficients)
    controls = {table.groups[i] for i in np.flatnonzero(throughout & ~table.is_target)}
    targets = {table.groups[i] for i in np.flatnonzero(throughout & table.is_target)}
    return min(len(controls), len(targets)) >= 2
