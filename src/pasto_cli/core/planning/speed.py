"""How long a training takes here: the operations of a step, and one timed product of their shape.

A step takes 1.3 to 2 times what its matrix products need at the speed of one large product
(`docs/performance.md`, "As things grow"); 1.6 is taken.
"""

import math
import time

import torch

from pasto_cli.core.planning.rehearsal import Rehearsal, Stage
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import Duration

OVERHEAD = 1.6
"""A step over its matrix products."""
FORWARD = 0.35
"""A batch that is only looked at, at both ends, over a step."""
AROUND = 30
"""Screen, elicitation check, start, ends and certificate took as long as this many steps on the
demo model: most of it is text that the model writes."""
LEAST, REPEATS = 0.25, 5
"""Seconds that the product is repeated for, in so many parts, of which the fastest counts."""


def duration(
    stage: Stage, recipe: Recipe, run: Rehearsal, device: torch.device, low: bool, pairs: int
) -> Duration:
    """Time a product of the real shape on this device, and work the rest out from it.

    Args:
        stage: For the shape of the widest writer.
        recipe: For epochs and batches.
        run: For operations and nodes.
        device: Of this machine.
        low: Whether layers run in bfloat16.
        pairs: Trained on.
    """
    dtype = torch.bfloat16 if low else stage.lm.dtype
    weight = max((w.module.weight for w in stage.writers), key=lambda w: w.numel())  # type: ignore[union-attr]
    rate = product_speed(max(2 * run.nodes // run.passes, 1), tuple(weight.shape), device, dtype)  # type: ignore[arg-type]
    step = OVERHEAD * run.operations / rate
    spec = recipe.training
    batches = math.ceil(pairs / spec.batch_size)
    per_epoch = math.ceil(batches / spec.accumulation)
    looked_at = batches * spec.validation / max(1 - spec.validation - spec.certificate, 0.1)
    epochs = spec.epochs * spec.members
    validations = math.ceil(spec.epochs / spec.validate_every) * spec.members
    extra = FORWARD * (looked_at * validations + batches) / spec.accumulation
    return Duration(
        step=step,
        total=step * (per_epoch * epochs + extra + AROUND),
        source=f"{run.operations / 1e9:.4g} billion operations per step at {rate / 1e9:.3g} "
        f"billion per second, timed on one product of a layer's shape, times {OVERHEAD}; the total "
        f"has {AROUND} steps for what comes before and after training",
    )


def product_speed(
    rows: int, shape: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> float:
    """Floating-point operations per second of (rows, a) times (a, b) on a device."""
    a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((rows, shape[0]), shape))

    def run(times: int) -> float:
        started = time.perf_counter()
        found = a
        for _ in range(times):
            found = a @ b
        found.flatten()[0].item()  # waits until it is done, also on a GPU
        return time.perf_counter() - started

    run(1)  # warms up
    times = min(1000, max(1, math.ceil(LEAST / REPEATS / max(run(1), 1e-6))))
    # The fastest: other programs only ever make it slower.
    return 2.0 * rows * shape[0] * shape[1] * times / min(run(times) for _ in range(REPEATS))
