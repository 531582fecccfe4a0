"""What a training tells while it runs and when it ends. Records only, no torch."""

from typing import NamedTuple

from pasto_cli.base.statistics import Estimate

WEAK_SPAN = 0.05
"""Nats a token; below it the personas hardly move the model, which deserves a loud warning."""


class Elicitation(NamedTuple):
    """How far the personas move the clean base model."""

    span: Estimate
    """T_cho - T_rej, nats a token, on the shared suffixes."""
    y: dict[str, float]
    """Mean log P(Yes) - log P(No) on a few dilemmas under the positive, neutral and negative
    persona, nats."""
    y_range: float
    """Mean over those dilemmas of the range of y over the three, nats."""
    num_dilemmas: int

    @property
    def weak(self) -> bool:
        """Whether the personas hardly move the model."""
        return self.span.value < WEAK_SPAN


class Step(NamedTuple):
    """What happened in one optimiser step, or (`validation`) after an epoch."""

    epoch: int
    step: int
    """Optimiser steps done."""
    total_steps: int
    loss: float
    parts: dict[str, float]
    diagnostics: dict[str, float]
    lr: float
    seconds: float
    """Since training began."""
    validation: bool = False

    def record(self) -> dict[str, object]:
        """One line of history.jsonl."""
        return {k: (round(v, 6) if isinstance(v, float) else v) for k, v in self._asdict().items()}


class TrainResult(NamedTuple):
    """How training ended; the adapter holds the best weights."""

    steps: int
    best_epoch: int
    best_loss: float
    interrupted: bool
    stopped_early: bool
    angle: float
    """True largest rotation angle at coefficient 1, degrees."""
