"""Intervals that respect the data: a seeded bootstrap over clusters (arXiv 2411.00640, section
2.2). NumPy only."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000


class Estimate(NamedTuple):
    """A figure with its 95 % interval and the number of observations and clusters behind it."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    clusters: Sequence[str],
    seed: int = 0,
    draws: int = DRAWS,
    level: float = 0.95,
) -> Estimate:
    """Percentile interval of a statistic, whole clusters drawn with replacement.

    Args:
        statistic: From row indices (with repetitions) to a number; NaN where undefined.
        clusters: Cluster of each row: the rows of one dilemma stay together.
        seed: Of the draws; equal seeds draw equal clusters, so differences between methods are
            paired.
        draws: Bootstrap draws.
        level: Of the interval.

    Returns:
        The statistic on the data; NaN limits where fewer than two clusters or no defined draw leave
        the interval undefined.
    """
    names, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(member, kind="stable")
    groups = (
        np.split(order, np.cumsum(np.bincount(member, minlength=len(names)))[:-1])
        if len(names)
        else []
    )
    every = np.arange(len(clusters))
    value = float(statistic(every)) if len(every) else float("nan")
    if len(names) < 2:
        return Estimate(value, float("nan"), float("nan"), len(every), len(names))
    rng = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for i in range(draws):
        picks = rng.integers(0, len(groups), len(groups))
        drawn[i] = statistic(np.concatenate([groups[p] for p in picks]))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, float("nan"), float("nan"), len(every), len(names))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(every), len(names))


class Spread(NamedTuple):
    """A figure over several training runs."""

    mean: float
    sd: float
    """Standard deviation between runs (n - 1); NaN for one."""
    low: float
    """Lower end of Student's 95 % interval of the mean over runs; NaN for one."""
    high: float
    n: int
    agree: int
    """Runs whose figure has the sign of the mean."""
    values: list[float]


def spread(values: Sequence[float]) -> Spread:
    """Mean, spread and interval over runs; the runs, not the rows, are the observations here."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    sd = low = high = float("nan")
    if len(x) > 1:
        from scipy import stats

        sd = float(x.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(x) - 1)) * sd / len(x) ** 0.5
        low, high = mean - half, mean + half
    return Spread(
        mean, sd, low, high, len(x), int((np.sign(x) == np.sign(mean)).sum()), [float(v) for v in x]
    )
