"""A plan: recipe, configuration, headers and device in, bytes and seconds out. No weights.

For every kind of device one step is rehearsed (`rehearsal`); its memory is added up by phase
(`sizes`), and where it does not fit, changes of the recipe are tried in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.chat import Chat, TokenPair
from pasto_cli.core.models.configuration import BaseFiles
from pasto_cli.core.models.devices import memory_of, pick_device, pick_dtype, runs_low
from pasto_cli.core.models.load_errors import first_line
from pasto_cli.core.planning import sizes
from pasto_cli.core.planning.rehearsal import Rehearsal, Stage, build_stage, rehearse
from pasto_cli.core.planning.sizes import CONTEXT, Kind
from pasto_cli.core.planning.speed import duration
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import AdapterPlan, BasePlan, DevicePlan, Plan, Remedy
from pasto_cli.core.training.schedule import steps_per_epoch
from pasto_cli.core.training.svd_cache import ROOM

F32 = 4


class NoPlan(PastoError):
    """A model that may well be trained, but whose code cannot be run without numbers."""


class Target(NamedTuple):
    """A device to plan for."""

    name: str
    kind: Kind
    memory: int | None
    here: torch.device | None
    """The device itself, where it is this machine's."""


@dataclass(frozen=True)
class Known:
    """What a plan is made from."""

    recipe: Recipe
    files: BaseFiles
    chat: Chat
    train: Sequence[TokenPair]
    validation: int
    """Pairs."""
    anchors: int
    """Anchors that are trained on."""
    unknown: list[str] = field(default_factory=list[str])
    """What could not be found out so far."""


class _Rehearsed(NamedTuple):
    stage: Stage
    run: Rehearsal


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


def make_plan(known: Known, targets: Sequence[Target]) -> Plan:
    """Plan a training.

    Args:
        known: Recipe, base, pairs.
        targets: At least one device.

    Raises:
        PastoError: If the architecture cannot be built or adapted.
    """
    rehearsed: dict[Kind, _Rehearsed] = {}
    for target in targets:
        if target.kind not in rehearsed:
            rehearsed[target.kind] = _rehearse(known, target.kind)
    stage, run = rehearsed[targets[0].kind]
    recipe, first = known.recipe, targets[0]
    devices = [_device(known, target, rehearsed[target.kind]) for target in targets]
    tight = next((t for t, d in zip(targets, devices, strict=True) if d.fits is False), None)
    unknown = list(known.unknown)
    time = None
    if first.here is not None:
        time = duration(stage, recipe, run, first.here, first.kind.low, len(known.train))
    else:
        unknown.append("the time: the device is not here to be timed")
    if recipe.model.quantization != "none":
        unknown.append("what dequantising costs in time and, in 8 bits, in memory")
    if targets[0].kind.low:
        unknown.append(
            "how much of the bfloat16 copies of weights is alive at once: all is counted"
        )
    return Plan(
        recipe=recipe.name,
        base=_base(known, stage),
        adapter=AdapterPlan(
            modules=len(stage.placed),
            parameters=stage.adapter.num_parameters(),
            file_bytes=stage.file_bytes,
        ),
        pairs=len(known.train) + known.validation,
        steps=steps_per_epoch(len(known.train), recipe.training)[1] * recipe.training.epochs,
        tokens_per_step=run.nodes,
        disk=_disk(known, stage),
        devices=devices,
        duration=time,
        remedies=_remedies(known, tight) if tight is not None else [],
        unknown=unknown,
    )


def _rehearse(known: Known, kind: Kind) -> _Rehearsed:
    dtype = torch.bfloat16 if kind.low else kind.dtype
    try:
        # What a plan draws must not change the numbers of a training after it.
        with torch.random.fork_rng(devices=[]):
            stage = build_stage(known.files.config, known.recipe, known.chat, dtype)
            return _Rehearsed(stage, rehearse(stage, known.recipe, known.train, known.anchors))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise NoPlan(
            f"{known.recipe.model.source} cannot be planned: {first_line(error)}",
            "Its code needs numbers where a plan has none; pasto train works all the same.",
        ) from None


def _device(known: Known, target: Target, rehearsed: _Rehearsed) -> DevicePlan:
    stage, run = rehearsed
    pairs = len(known.train) + known.validation
    found = sizes.phases(target.kind, known.recipe, stage, known.files, run, pairs)
    return DevicePlan(
        name=target.name,
        kind=target.kind.device,  # type: ignore[arg-type]
        memory=_room(target),
        dtype=str(target.kind.dtype).removeprefix("torch."),
        phases=found,
    )


def _base(known: Known, stage: Stage) -> BasePlan:
    model: Any = stage.lm.model
    head = model.get_output_embeddings().weight
    return BasePlan(
        source=known.recipe.model.source,
        origin=known.files.origin,
        architecture=type(model).__name__,
        layers=len(stage.lm.layers),
        width=stage.lm.hidden_size,
        vocabulary=head.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
        writers=len(stage.writers),
        download=known.files.download,
    )


def _disk(known: Known, stage: Stage) -> dict[str, int]:
    """Bytes that a training writes; the caches may be deleted at any time."""
    trained, file = stage.trained_bytes, stage.file_bytes
    factors = 0
    for writer in stage.placed:
        d_out, d_in = writer.module.weight.shape  # type: ignore[misc]
        factors += F32 * min(d_out, d_in) * (d_out + d_in + 1)  # type: ignore[operator]
    found = {
        # While it runs: adapter, its start, and a state of weights, best weights and two moments.
        "run": 2 * file + 4 * trained,
        "decompositions": min(factors, ROOM),
    }
    if known.files.download:
        found["download"] = known.files.download
    if known.files.dequantise:
        parameters = sum(p.numel() for p in stage.lm.model.parameters())
        found["dequantised weights"] = F32 * parameters
    return found


class _Change(NamedTuple):
    settings: dict[str, Any]
    costs: str


CHANGES = (
    _Change({"training.base_cache_mb": 64}, "base sides that no longer fit are computed each time"),
    _Change(
        {"training.batch_size": 2, "training.accumulation": 4},
        "statistics are taken over two pairs, not eight",
    ),
    _Change({"training.node_budget": 128}, "more and smaller passes: slower"),
    _Change({"adapter.rank": 16}, "fewer directions to turn"),
    _Change({"model.dtype": "bfloat16"}, "weights are rounded; slow on a CPU without bfloat16"),
    _Change({"model.quantization": "4bit"}, "weights are rounded to 4 bits; a step is slower"),
)
"""In the order of what they cost."""


def _remedies(known: Known, target: Target) -> list[Remedy]:
    """Changes of the recipe that need less on a device, each alone, then as many as it takes."""
    found: list[Remedy] = []
    before = _peak(known, target, {})
    helping: list[_Change] = []
    for change in CHANGES:
        remedy = _tried(known, target, change.settings, change.costs)
        if remedy.peak < 0.97 * before:
            found.append(remedy)
            helping.append(change)
    if any(remedy.fits for remedy in found):
        return found
    together: dict[str, Any] = {}
    for change in reversed(helping):  # the strongest first
        together |= change.settings
        remedy = _tried(known, target, together, "all of that")
        if remedy.fits:
            break
    if len(together) > 1:
        found.append(_tried(known, target, together, "all of that"))
    return found


def _tried(known: Known, target: Target, settings: dict[str, Any], costs: str) -> Remedy:
    peak = _peak(known, target, settings)
    room = _room(target)
    fits = room is not None and peak <= room
    shown = [f"{key}={value}" for key, value in settings.items()]
    return Remedy(settings=shown, peak=peak, fits=fits, costs=costs)


def _room(target: Target) -> int | None:
    """Bytes of a device that a training may use."""
    if target.memory is None or target.kind.device != "cuda":
        return target.memory
    return target.memory - CONTEXT


def _peak(known: Known, target: Target, settings: dict[str, Any]) -> int:
    """Planned peak with some keys of the recipe changed, bytes."""
    recipe = _changed(known.recipe, settings)
    changed = Known(recipe, known.files, known.chat, known.train, known.validation, known.anchors)
    kind = target.kind
    if dtype := settings.get("model.dtype"):
        kind = Kind(kind.device, getattr(torch, dtype), low=False)
    planned = _device(changed, target._replace(kind=kind), _rehearse(changed, kind))
    return planned.peak


def _changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    for key, value in settings.items():
        section, _, name = key.partition(".")
        inner = getattr(recipe, section).model_copy(update={name: value})
        recipe = recipe.model_copy(update={section: inner})
    return recipe
