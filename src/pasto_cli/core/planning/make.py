"""A plan: recipe, configuration, headers and device in, bytes and seconds out. No weights.

For every kind of device one step is rehearsed (`rehearsal`); its memory is added up by phase
(`sizes`), and where it does not fit, changes of the recipe are tried in the same way (`remedies`).
"""

from collections.abc import Sequence
from typing import Any

from pasto_cli.core.planning.planner import Known, Planner, Target
from pasto_cli.core.planning.rehearsal import Stage
from pasto_cli.core.planning.remedies import remedies
from pasto_cli.core.planning.speed import duration
from pasto_cli.core.records.plan import AdapterPlan, BasePlan, Duration, Plan
from pasto_cli.core.training.svd_cache import ROOM

F32 = 4


def make_plan(known: Known, targets: Sequence[Target]) -> Plan:
    """Plan a training.

    Args:
        known: Recipe, base, pairs.
        targets: At least one device.

    Raises:
        NoPlan: If the base's code cannot be run without numbers.
        PastoError: If the base is no model that can be adapted.
    """
    planner, recipe, first = Planner(known), known.recipe, targets[0]
    devices = [planner.device(recipe, target) for target in targets]
    tight = next((t for t, d in zip(targets, devices, strict=True) if d.fits is False), None)
    stage, run = planner.stage(recipe, first.kind), planner.run(recipe, first.kind)
    return Plan(
        recipe=recipe.name,
        base=_base(known, stage),
        adapter=AdapterPlan(
            modules=len(stage.placed),
            parameters=stage.adapter.num_parameters(),
            file_bytes=stage.file_bytes,
        ),
        pairs=len(known.train) + known.validation,
        steps=known.steps(recipe),
        tokens_per_step=run.nodes,
        disk=_disk(known, stage),
        devices=devices,
        duration=_duration(planner, first),
        remedies=remedies(planner, tight) if tight is not None else [],
        unknown=[*known.unknown, *_unknown(known, first)],
    )


def _duration(planner: Planner, target: Target) -> Duration | None:
    """Seconds; None for a device that is not here."""
    if target.here is None:
        return None
    known, kind = planner.known, target.kind
    stage, run = planner.stage(known.recipe, kind), planner.run(known.recipe, kind)
    return duration(stage, known.recipe, run, target.here, kind.low, len(known.train))


def _unknown(known: Known, target: Target) -> list[str]:
    """What a plan for a device leaves open."""
    found: list[str] = []
    if target.here is None:
        found.append("the time: the device is not here to be timed")
    if known.recipe.model.quantization != "none":
        found.append("what dequantising costs in time and, in 8 bits, in memory")
    return found


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
