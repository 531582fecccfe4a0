"""What another harness measured with a dial: its own metrics, standard errors and n. No torch."""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from pasto_cli.base.statistics import Number


class HarnessScore(BaseModel):
    """One metric of one task at one coefficient."""

    model_config = ConfigDict(extra="forbid")

    task: str
    metric: str
    """As the harness calls it, such as `acc` or `acc_norm`; with `,FILTER` for other filters than
    `none`."""
    higher_is_better: bool | None
    coefficient: float
    value: Number
    stderr: Number | None
    """The harness's own standard error; None where it gives none."""
    n: int
    """Documents of the task that were asked."""


class HarnessLine(NamedTuple):
    """One metric of one task over all coefficients."""

    task: str
    metric: str
    n: int
    scores: list[HarnessScore]
    """In the order of the coefficients."""


class HarnessRun(BaseModel):
    """Tasks of another harness at several coefficients."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    harness: str
    tasks: list[str]
    """As they were asked for; a group's tasks have scores of their own."""
    coefficients: list[float]
    limit: int | None
    """Documents of each task at most."""
    scores: list[HarnessScore]
    provenance: dict[str, Any]
    """Adapter, base, versions and date."""

    def lines(self) -> list[HarnessLine]:
        """Scores by task and metric, in the order in which the harness gave them."""
        found: dict[tuple[str, str], list[HarnessScore]] = {}
        for score in self.scores:
            found.setdefault((score.task, score.metric), []).append(score)
        return [
            HarnessLine(task, metric, scores[0].n, scores)
            for (task, metric), scores in found.items()
        ]
