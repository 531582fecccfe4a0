"""What a training is expected to need, and what it took. Records only, no torch.

Plan          a pure function of recipe, configuration, headers and device
Measured      the same figures of a training that was run
PlanRecord    plan.json of a run: both
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

PhaseName = Literal["load", "decomposition", "step", "evaluation"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BasePlan(_Record):
    """The base model."""

    source: str
    origin: str
    """Where its configuration was read."""
    architecture: str
    layers: int
    width: int
    """Width of the residual stream."""
    vocabulary: int
    parameters: int
    writers: int
    """Modules that write to the residual stream, in all layers."""
    download: int | None
    """Bytes to fetch; None where that is not known."""


class AdapterPlan(_Record):
    """The adapter."""

    modules: int
    parameters: int
    """Trained numbers."""
    file_bytes: int
    """Of adapter.safetensors."""


class Phase(_Record):
    """Memory of one phase."""

    name: PhaseName
    bytes: int
    """The most that is held at once."""
    of: dict[str, int]
    """What that consists of, bytes."""


class DevicePlan(_Record):
    """Memory on one device."""

    name: str
    kind: Literal["cpu", "cuda", "mps"]
    memory: int | None
    """Bytes that a training may use; None where nobody told."""
    dtype: str
    """Of the weights."""
    phases: list[Phase]

    @property
    def peak(self) -> int:
        """The most that any phase holds, bytes."""
        return max(phase.bytes for phase in self.phases)

    @property
    def fits(self) -> bool | None:
        """Whether it has that much; None where its memory is not known."""
        return None if self.memory is None else self.peak <= self.memory


class Remedy(_Record):
    """A change of the recipe that needs less."""

    settings: list[str]
    """As --set takes them."""
    peak: int
    """Bytes, with these alone."""
    fits: bool
    costs: str
    """What is lost by it."""


class Duration(_Record):
    """How long the training takes on this machine."""

    step: float
    """Seconds of an optimiser step."""
    total: float
    """Seconds from the start to the certificate."""
    source: str
    """What it was worked out from."""


class Plan(_Record):
    """What a recipe will need."""

    recipe: str
    base: BasePlan
    adapter: AdapterPlan
    pairs: int
    steps: int
    """Optimiser steps at most."""
    tokens_per_step: int
    """Distinct tokens that a step runs, at +1 and -1 each."""
    disk: dict[str, int]
    """What is written where, bytes."""
    devices: list[DevicePlan]
    """The recipe's own device first."""
    duration: Duration | None
    remedies: list[Remedy]
    """For the first device that it does not fit on."""
    unknown: list[str]
    """What could not be found out, and what was taken instead."""


class Measured(_Record):
    """What a training took."""

    device: str
    phases: dict[PhaseName, int]
    """The most that was held until the end of each phase, bytes."""
    step: float | None
    """Seconds of an optimiser step, mean; None where there was none."""

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(self.phases.values(), default=0)


class PlanRecord(_Record):
    """plan.json of a run."""

    plan: Plan
    measured: Measured | None = None

    @property
    def error(self) -> float | None:
        """Planned over measured peak, less 1; None where nothing was measured."""
        if self.measured is None or not self.measured.peak:
            return None
        return self.plan.devices[0].peak / self.measured.peak - 1.0
