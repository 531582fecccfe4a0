"""What a dial does to every value of a benchmark, not only to the one that it is meant for.

    effect of a dilemma = mean over its two rows of (score at +1 - score at -1) / 2, nats
    effect of a value   = mean over dilemmas, with Student's t interval over them

The dilemmas are the observations. p values are corrected for the number of values, so that of all
values that are reported as moved a stated share at most is not (Benjamini and Hochberg 1995,
Journal of the Royal Statistical Society B 57, 289-300). No torch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pasto_cli.base.statistics import Floats
from pasto_cli.core.evaluation.metrics import ENDS, Table
from pasto_cli.core.records.evaluation import Row, ValueShift, ValueShifts

MINIMUM = 20
"""Values with fewer rows are left out."""
LEVEL = 0.05
"""False-discovery rate at which a value counts as moved."""


def value_shifts(rows: Sequence[Row], threshold: float, minimum: int = MINIMUM) -> ValueShifts:
    """Effects on all values and on all classes of the frameworks, largest first.

    Args:
        rows: Answer rows with answers at -1, 0 and +1.
        threshold: Answers with less probability mass on the answers are invalid and left out.
        minimum: Rows that a value must have, valid at -1, 0 and +1.
    """
    names = sorted({v for row in rows for v in row.labels})
    # Values and classes are two tables: a class is made of values, and would count them twice.
    values = [_shift(rows, name, threshold) for name in names if ": " not in name]
    classes = [_shift(rows, name, threshold) for name in names if ": " in name]
    return ValueShifts(_corrected(values, minimum), _corrected(classes, minimum), minimum, LEVEL)


def _shift(rows: Sequence[Row], value: str, threshold: float) -> ValueShift:
    """Effect on one value; p is NaN for fewer than two dilemmas, and q is not known yet."""
    table = Table([r for r in rows if value in r.labels], value, ENDS, threshold)
    down, zero, up = (table.score(c, table.every) for c in ENDS)  # (r,) each, NaN where invalid
    valid = np.isfinite(up + down + zero)
    dilemmas, member = np.unique(
        np.array(table.groups, dtype=object).astype(str)[valid], return_inverse=True
    )
    num_rows, num_dilemmas = int(valid.sum()), len(dilemmas)
    if num_dilemmas < 2:
        nan = math.nan
        return ValueShift(
            value, num_rows, num_dilemmas, nan, nan, nan, nan, nan, p=nan, q=nan, moved=False
        )
    counts = np.bincount(member, minlength=num_dilemmas)

    def per_dilemma(x: Floats) -> Floats:  # (r,) -> (dilemmas,)
        return np.bincount(member, weights=x[valid], minlength=num_dilemmas) / counts

    effect = np.round(per_dilemma((up - down) / 2), 9)  # a difference of rounding is none
    low, high, p = _t_test(effect)
    return ValueShift(
        name=value,
        rows=num_rows,
        dilemmas=num_dilemmas,
        effect=float(effect.mean()),
        low=low,
        high=high,
        up=float(per_dilemma(up - zero).mean()),
        down=float(per_dilemma(down - zero).mean()),
        p=p,
        q=math.nan,
        moved=False,
    )


def _t_test(effect: Floats) -> tuple[float, float, float]:
    """Ends of the 95 % interval of a mean, and p of the mean being 0."""
    if np.ptp(effect) == 0:
        # The same everywhere: certain, as with a simulated steerer or one that does nothing.
        same = float(effect[0])
        return same, same, 0.0 if same else 1.0
    from scipy import stats  # slow to load, and most commands need no p value

    test: Any = stats.ttest_1samp(effect, 0.0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _corrected(shifts: list[ValueShift], minimum: int) -> list[ValueShift]:
    kept = [s for s in shifts if s.rows >= minimum and not math.isnan(s.p)]
    if not kept:
        return []
    from scipy import stats

    q = stats.false_discovery_control([s.p for s in kept])
    found = [s._replace(q=float(x), moved=bool(x < LEVEL)) for s, x in zip(kept, q, strict=True)]
    return sorted(found, key=lambda s: -abs(s.effect))
