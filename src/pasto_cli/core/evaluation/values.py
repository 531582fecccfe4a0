"""What a dial does to every value of a benchmark, not only to the one that it is meant for.

The effect on a value is (score at +1 - score at -1) / 2, averaged over the two rows of each
dilemma. The dilemmas are the
observations: a t interval over them, and p values corrected for the number of values (Benjamini and
Hochberg 1995)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pasto_cli.core.evaluation.metrics import Table
from pasto_cli.core.records.evaluation import Row

MINIMUM = 20
"""Values with fewer rows are left out."""
LEVEL = 0.05
"""False-discovery rate at which a value counts as moved."""


class ValueShift(NamedTuple):
    """Effect of a dial on one value, or on one class of values of a framework."""

    name: str
    rows: int
    dilemmas: int
    effect: float
    """(score at +1 - score at -1) / 2, nats."""
    low: float
    high: float
    up: float
    """Score at +1 minus score at 0, nats."""
    down: float
    """Score at -1 minus score at 0, nats."""
    p: float
    q: float
    """p corrected for all values of the table."""
    moved: bool
    """Whether q is below the false-discovery rate."""


def value_shifts(
    rows: Sequence[Row], threshold: float, minimum: int = MINIMUM
) -> dict[str, list[ValueShift]]:
    """Effects on all values and on all classes of the frameworks.

    Args:
        rows: Answer rows with answers at -1, 0 and +1.
        threshold: Answers with less probability mass on the answers are invalid and left out.
        minimum: Rows that a value must have, valid at -1, 0 and +1.

    Returns:
        `values`, and `frameworks` (names such as `MFT: care`); largest effect first.
    """
    names = sorted({v for row in rows for v in row.labels})
    plain = [n for n in names if ": " not in n]
    return {
        "values": _corrected([_shift(rows, n, threshold) for n in plain], minimum),
        "frameworks": _corrected([_shift(rows, n, threshold) for n in names if ": " in n], minimum),
    }


def _shift(rows: Sequence[Row], value: str, threshold: float) -> ValueShift:
    table = Table([r for r in rows if value in r.labels], value, (-1.0, 0.0, 1.0), threshold)
    every = np.arange(len(table.rows))
    down, zero, up = (table.score(c, every) for c in (-1.0, 0.0, 1.0))
    valid = np.isfinite(up + down + zero)
    groups, member = np.unique(
        np.array(table.groups, dtype=object).astype(str)[valid], return_inverse=True
    )
    counts = np.bincount(member, minlength=len(groups))

    def per_dilemma(x: Any) -> Any:
        return np.bincount(member, weights=x[valid], minlength=len(groups)) / counts

    nan = float("nan")
    if len(groups) < 2:
        return ValueShift(
            value, int(valid.sum()), len(groups), nan, nan, nan, nan, nan, nan, nan, False
        )
    effect = np.round(per_dilemma((up - down) / 2), 9)  # a difference of rounding is none
    if np.ptp(effect) > 0:
        test: Any = stats.ttest_1samp(effect, 0.0)
        interval = test.confidence_interval(0.95)
        low, high, p = float(interval.low), float(interval.high), float(test.pvalue)
    else:  # the same everywhere: certain, as with a simulated steerer or one that does nothing
        low = high = float(effect[0])
        p = 0.0 if effect[0] else 1.0
    return ValueShift(
        value,
        int(valid.sum()),
        len(groups),
        float(effect.mean()),
        low,
        high,
        float(per_dilemma(up - zero).mean()),
        float(per_dilemma(down - zero).mean()),
        p,
        nan,
        False,
    )


def _corrected(shifts: list[ValueShift], minimum: int) -> list[ValueShift]:
    kept = [s for s in shifts if s.rows >= minimum and s.p == s.p]
    if not kept:
        return []
    q = stats.false_discovery_control([s.p for s in kept])
    found = [s._replace(q=float(x), moved=bool(x < LEVEL)) for s, x in zip(kept, q, strict=True)]
    return sorted(found, key=lambda s: -abs(s.effect))
