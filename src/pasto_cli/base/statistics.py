"""Estimates with intervals that respect the data. NumPy, SciPy and pydantic only.

    cluster_bootstrap   percentile interval of any statistic, whole clusters drawn with replacement
                        (E. Miller, Adding Error Bars to Evals, arXiv 2411.00640, section 2.2)
    spread              mean over training runs with Student's t interval

Rows that share a dilemma or a prompt are not independent observations: an interval over rows would
be too narrow, so clusters are drawn, never rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
"""Row indices, with repetitions in a bootstrap draw."""
Mask = NDArray[np.bool_]
"""For each row, whether it is meant."""
DRAWS = 2000
BLOCK = 2**20
"""Clusters that are drawn at a time."""


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float; JSON has no NaN, so null stands for it."""


class Estimate(BaseModel):
    """A number with its 95 % interval and the observations behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Number
    low: Number
    """Lower end of the interval; NaN where there is none."""
    high: Number
    n: int
    """Observations."""
    clusters: int | None = None
    """Clusters that were resampled together; None where they are not recorded."""

    @classmethod
    def point(cls, value: float, n: int = 0) -> "Estimate":
        """A number without an interval."""
        return cls(value=value, low=math.nan, high=math.nan, n=n)

    def holds(self, x: float) -> bool:
        """Whether the interval holds a number; False where there is no interval."""
        return self.low <= x <= self.high

    @model_serializer(mode="wrap")
    def _without_unknown_clusters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # pasto.json of format 1 records value, low, high and n only.
        fields = handler(self)
        if self.clusters is None:
            del fields["clusters"]
        return fields


def cluster_bootstrap(
    statistic: Callable[[Indices], float],
    clusters: Sequence[str],
    seed: int = 0,
    draws: int = DRAWS,
    level: float = 0.95,
    used: Mask | None = None,
) -> Estimate:
    """Percentile interval of a statistic, whole clusters drawn with replacement.

    Args:
        statistic: From row indices (with repetitions) to a number; NaN where undefined.
        clusters: Cluster of each row: the rows of one dilemma stay together.
        seed: Seed of the draws. Equal seeds draw equal clusters, so that differences between
            methods are paired.
        draws: Number of bootstrap draws.
        level: Coverage of the interval.
        used: Rows that the statistic looks at, (r,); None for all. The others are drawn all the
            same, so that draws stay paired, and are not counted.

    Returns:
        The statistic on the data, with the numbers of rows and clusters used; NaN limits where
        fewer than two clusters or no defined draw leave the interval undefined.
    """
    members = _rows_by_cluster(clusters)
    every = np.arange(len(clusters))
    value = float(statistic(every)) if len(every) else math.nan
    counted = every if used is None else every[used]
    among = len({clusters[int(i)] for i in counted})
    undefined = Estimate(value=value, low=math.nan, high=math.nan, n=len(counted), clusters=among)
    if among < 2:
        return undefined
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rows) for rows in _draws(members, rng, draws)], dtype=np.float64)
    # A draw may leave a statistic undefined, such as a rate over rows that it happens to lack.
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return undefined
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return undefined.model_copy(update={"low": float(low), "high": float(high)})


def _rows_by_cluster(clusters: Sequence[str]) -> list[Indices]:
    """Row indices of each cluster, clusters in the order of their names."""
    if not len(clusters):
        return []
    # As objects first: NumPy would cut strings to one fixed width.
    texts = np.asarray(clusters, dtype=object).astype(str)
    names, member = np.unique(texts, return_inverse=True)
    order = np.argsort(member, kind="stable")
    ends = np.cumsum(np.bincount(member, minlength=len(names)))
    return np.split(order, ends[:-1])


def _draws(members: list[Indices], rng: np.random.Generator, draws: int) -> Iterator[Indices]:
    """Row indices of each draw of as many clusters as there are, one after another."""
    equal = np.stack(members) if len({len(rows) for rows in members}) == 1 else None
    block = max(1, BLOCK // len(members))  # the numbers are the same in blocks of any size
    for done in range(0, draws, block):
        picks = rng.integers(0, len(members), (min(block, draws - done), len(members)))
        if equal is not None:
            yield from equal[picks].reshape(len(picks), -1)
        else:
            each: list[list[int]] = picks.tolist()
            yield from (np.concatenate([members[p] for p in draw]) for draw in each)


def quantile(x: Floats, q: float) -> float:
    """`np.quantile` of one axis, bit for bit, for a bootstrap that asks thousands of times.

    Args:
        x: (n,), at least one.
        q: 0 to 1.

    Returns:
        NaN where `x` holds one.
    """
    place = (len(x) - 1) * q
    below = int(place)
    above = min(below + 1, len(x) - 1)
    ordered = np.partition(x, (below, above, len(x) - 1))  # NaN goes to the end
    low, high, part = float(ordered[below]), float(ordered[above]), place - below
    if math.isnan(ordered[-1]):
        return math.nan
    # From the nearer side, as NumPy does.
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


class Spread(BaseModel):
    """A score over several training runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Number
    sd: Number
    """Standard deviation between runs (n - 1); NaN for one."""
    low: Number
    """Lower end of Student's 95 % interval of the mean over runs; NaN for one."""
    high: Number
    n: int
    agree: int
    """Runs whose score has the sign of the mean."""
    values: list[Number]

    @property
    def interval(self) -> Estimate:
        """The mean over runs as an estimate."""
        return Estimate(value=self.mean, low=self.low, high=self.high, n=self.n)


def spread(values: Sequence[float]) -> Spread:
    """Mean, spread and interval over runs; the runs, not the rows, are the observations here."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    sd = low = high = math.nan
    if len(x) > 1:
        # Slow to load, and not needed for one run.
        from scipy.special import stdtrit  # pyright: ignore

        sd = float(x.std(ddof=1))
        half = float(stdtrit(len(x) - 1, 0.975)) * sd / len(x) ** 0.5  # Student's t quantile
        low, high = mean - half, mean + half
    return Spread(
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        n=len(x),
        agree=int((np.sign(x) == np.sign(mean)).sum()),
        values=[float(v) for v in x],
    )
