"""Memory of one recipe on one device: rehearsed once, added up for every variant that is asked for.

A variant of the recipe that changes neither batches nor dtype is added up from the same rehearsal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat, TokenPair
from pasto_cli.core.models.configuration import BaseFiles
from pasto_cli.core.models.devices import memory_of, pick_device, pick_dtype, runs_low
from pasto_cli.core.models.load_errors import first_line
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.planning import sizes
from pasto_cli.core.planning.rehearsal import Rehearsal, Stage, build_stage, rehearse
from pasto_cli.core.planning.sizes import CONTEXT, Kind
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import DevicePlan
from pasto_cli.core.training.schedule import steps_per_epoch

T = TypeVar("T")


class NoPlan(PastoError):
    """A model that may well be trained, but whose code cannot be run without numbers."""


class Target(NamedTuple):
    """A device to plan for."""

    name: str
    kind: Kind
    memory: int | None
    here: torch.device | None
    """The device itself, where it is this machine's."""

    @property
    def room(self) -> int | None:
        """Bytes that a training may use."""
        if self.memory is None or self.kind.device != "cuda":
            return self.memory
        return max(0, self.memory - CONTEXT)


@dataclass(frozen=True)
class Known:
    """What a plan is made from."""

    recipe: Recipe
    files: BaseFiles
    chat: Chat
    train: Sequence[TokenPair]
    validation: int
    """Pairs."""
    anchors: Sequence[Anchor]
    """Anchors that are trained on."""
    unknown: list[str] = field(default_factory=list[str])
    """What could not be found out so far."""

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps, at most, of the recipe or a variant of it."""
        spec = recipe.training
        return steps_per_epoch(len(self.train), spec)[1] * spec.epochs * spec.members


def this_target(recipe: Recipe) -> Target:
    """The recipe's device on this machine.

    Raises:
        PastoError: If this machine has none such.
    """
    device = pick_device(recipe.model.device)
    dtype = pick_dtype(recipe.model, device)
    low = runs_low(device, dtype, recipe.training.precision)
    kind = Kind(device.type, dtype, low)
    return Target(f"this machine ({device})", kind, memory_of(device), device)


def named_target(recipe: Recipe, gib: float) -> Target:
    """A device with so many GiB that is not here: a GPU, unless the recipe says cpu."""
    spec = recipe.model
    cpu = spec.device == "cpu"
    dtype = torch.float32 if cpu else torch.bfloat16
    if spec.dtype != "auto":
        dtype = getattr(torch, spec.dtype)
    # A GPU of today computes in bfloat16; of a processor elsewhere nothing is known.
    low = dtype == torch.float32 and (
        recipe.training.precision == "bfloat16" or (recipe.training.precision == "auto" and not cpu)
    )
    name = f"a {'machine' if cpu else 'GPU'} with {gib:g} GiB"
    return Target(name, Kind("cpu" if cpu else "cuda", dtype, low), round(gib * 2**30), None)


class Planner:
    """Rehearses a recipe and its variants.

    Args:
        known: Recipe, base, pairs.
    """

    def __init__(self, known: Known) -> None:
        self.known = known
        self._stages: dict[tuple[torch.dtype, int], Stage] = {}
        self._runs: dict[tuple[torch.dtype, int, int, int], Rehearsal] = {}

    def stage(self, recipe: Recipe, kind: Kind) -> Stage:
        """Base and adapter without storage.

        Raises:
            NoPlan: If the base's code cannot be run like that.
            PastoError: If the base is no model that can be adapted.
        """
        key = _stage_dtype(kind), recipe.adapter.rank
        if key not in self._stages:
            self._stages[key] = self._without_numbers(
                recipe,
                lambda: build_stage(self.known.files.config, recipe, self.known.chat, key[0]),
            )
        return self._stages[key]

    def run(self, recipe: Recipe, kind: Kind) -> Rehearsal:
        """A step and an evaluation; the rank, which hardly matters to them, is the first one's.

        Raises:
            NoPlan: See `stage`.
        """
        spec, known = recipe.training, self.known
        key = _stage_dtype(kind), spec.batch_size, spec.accumulation, spec.node_budget
        if key not in self._runs:
            stage = self.stage(recipe, kind)
            self._runs[key] = self._without_numbers(
                recipe, lambda: rehearse(stage, recipe, known.train, known.anchors)
            )
        return self._runs[key]

    def device(self, recipe: Recipe, target: Target) -> DevicePlan:
        """Memory of a recipe on a device."""
        known, kind = self.known, target.kind
        stage, run = self.stage(recipe, kind), self.run(recipe, kind)
        pairs = len(known.train) + known.validation
        return DevicePlan(
            name=target.name,
            kind=kind.device,  # type: ignore[arg-type]
            memory=target.room,
            dtype=str(kind.dtype).removeprefix("torch."),
            phases=sizes.phases(
                kind, recipe, stage, known.files, run, pairs=pairs, steps=known.steps(recipe)
            ),
        )

    @staticmethod
    def _without_numbers(recipe: Recipe, work: Callable[[], T]) -> T:
        try:
            # What a plan draws must not change the numbers of a training after it.
            with torch.random.fork_rng(devices=[]):
                return work()
        except PastoError:
            raise
        except Exception as error:  # the code of a model may raise anything
            raise NoPlan(
                f"{recipe.model.source} cannot be planned: {first_line(error)}",
                "Its code needs numbers where a plan has none; pasto train works all the same.",
            ) from None


def _stage_dtype(kind: Kind) -> torch.dtype:
    return torch.bfloat16 if kind.low else kind.dtype
