"""What a training tells while it runs, where it stands and how it ended. Records only, no torch.

    Elicitation       before training: what the personas do to the clean base model
    BaseSide          before the first step: how much of the base's side is computed
    Step              one line of history.jsonl
    TrainingState     the JSON part of a checkpoint
    TrainResult       how a training ended, for the program that called it
    TrainingRecord    the same in pasto.json, or how far an adapter saved early had come
    ImportRecord      what stands there for an adapter that was not trained here

JSON has no NaN and no infinities: null stands for them in pasto.json, as everywhere in `records`.
"""

import math
from typing import Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
)

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.records.evaluation import Number

WEAK_SPAN = 0.05
"""Nats per token; below it the personas hardly move the model, which deserves a loud warning."""


class Elicitation(NamedTuple):
    """How far the personas move the clean base model."""

    span: Estimate
    """T_cho - T_rej, nats per token, on the shared suffixes."""
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


class BaseSide(NamedTuple):
    """How far the base's side of the loss is computed, before the first step."""

    done: int
    """Pairs and anchors."""
    total: int


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
    member: str = ""
    """Which of several members is trained, or their mean; empty where there is one."""

    def record(self) -> dict[str, object]:
        """One line of history.jsonl."""
        fields = self._asdict()
        if not self.member:
            del fields["member"]
        return {k: (round(v, 6) if isinstance(v, float) else v) for k, v in fields.items()}


class TrainingRecord(BaseModel):
    """`training` of pasto.json for an adapter that was trained here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int
    """Optimiser steps done."""
    best_epoch: int
    """The epoch whose weights these are; 0 where none had been validated."""
    best_loss: Number
    """Validation loss of these weights; NaN where none had been validated."""
    interrupted: bool
    """Whether training had not ended when the adapter was saved."""
    stopped_early: bool | None = None
    """Whether patience ran out; None while training runs."""
    angle: float | None = None
    """True largest rotation angle at coefficient 1, degrees; None while training runs, and
    where nothing rotates."""

    @field_serializer("best_loss")
    def _null_for_nan(self, value: float) -> float | None:
        return value if math.isfinite(value) else None

    @model_serializer(mode="wrap")
    def _without_what_is_not_known_yet(self, handler: SerializerFunctionWrapHandler) -> Any:
        # Format 1 leaves the last two keys out of early saves rather than writing null.
        fields = handler(self)
        return {
            name: value
            for name, value in fields.items()
            if value is not None or name not in ("stopped_early", "angle")
        }


class ImportRecord(BaseModel):
    """`training` of pasto.json for an adapter of the published code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    imported: str
    """Where it came from, as the user wrote it."""


class TrainResult(NamedTuple):
    """How training ended; the adapter holds the best weights."""

    steps: int
    best_epoch: int
    best_loss: float
    interrupted: bool
    stopped_early: bool
    angle: float | None
    """True largest rotation angle at coefficient 1, degrees; None where nothing rotates."""

    def record(self) -> TrainingRecord:
        """What pasto.json says of it."""
        return TrainingRecord(**self._asdict())


class TrainingState(BaseModel):
    """Where a training stands between two optimiser steps, but for its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    """Epochs done, of the present member."""
    step: int
    """Optimiser steps done, of all members."""
    total: int
    """Optimiser steps planned: a checkpoint of a training of another length does not fit."""
    best_loss: float
    """Infinite before the first validation."""
    best_epoch: int
    epochs_without_gain: int
    order: tuple[int, tuple[int, ...], float | None]
    """State of the generator that shuffles the pairs, before the epoch in progress."""
    budget: int
    """Nodes of a token tree now; it is halved where memory runs out."""
    first_budget: int | None
    """Nodes of a token tree when the base side was cached."""
    member: int = 0
    """Members that have ended. This and the next are left out of the file before one has."""
    begun: int = 0
    """Optimiser steps that they took."""
    seconds: float
    """Since training began."""
    so_far: TrainingRecord | None = None
    """What an adapter saved now would say of its training; the recorder's part."""
    history_bytes: int = 0
    """Size of history.jsonl: what a killed run wrote after it is cut off; the recorder's part."""

    @model_serializer(mode="wrap")
    def _without_members(self, handler: SerializerFunctionWrapHandler) -> Any:
        fields = handler(self)
        if not self.member:
            del fields["member"], fields["begun"]
        return fields
