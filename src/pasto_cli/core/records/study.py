"""What a search over recipes found: its trials, and the finalists on other seeds. No torch.

Two numbers judge a dial without any benchmark. Strength is the certificate's, prompt-equivalents,
the smaller one of both ends (min(s(+1), -s(-1))). Disturbance is what it costs at its ends, nats:
KL p95 on held-out neutral prompts, plus KL on held-out anchors where the recipe has some, each as
the mean of both ends.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Setting = bool | int | float | str


class Objectives(NamedTuple):
    """How good a dial is."""

    strength: float
    """Prompt-equivalents; higher is better."""
    disturbance: float
    """Nats; lower is better."""


class TrialRecord(BaseModel):
    """One training of a search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """From 1, in the order in which the trials began."""
    state: Literal["complete", "pruned", "failed", "running", "waiting"]
    settings: dict[str, Setting]
    """Key of the recipe -> value."""
    objectives: Objectives | None = None
    """None where it did not end."""
    best: bool = False
    """Whether no other trial is better in both numbers: the Pareto front."""
    run: str | None = None
    """Folder of its run, as its worker saw it."""
    worker: str | None = None
    """MACHINE-PID of the process that trained it."""
    seconds: float | None = None
    problem: str | None = None
    """Why it failed or was pruned."""


class Finalist(BaseModel):
    """A trial of the front, trained again on other seeds: pairs are split anew by each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """Of the trial."""
    seeds: list[int]
    """Those that ended."""
    each: list[Objectives]
    runs: list[str]


class StudyRecord(BaseModel):
    """A study as far as it came."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    storage: str
    """Where Optuna keeps it, without a password."""
    wanted: int
    """Trials asked for."""
    trials: list[TrialRecord]
    finalists: list[Finalist]

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front, strongest first."""
        best = [trial for trial in self.trials if trial.best and trial.objectives]
        return sorted(best, key=lambda t: t.objectives or (0, 0), reverse=True)
