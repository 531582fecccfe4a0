"""The clock of a training: batches of an epoch, optimiser steps, learning rate.

One clock: everything that counts steps (learning rate, ramp of the constraints, progress) counts
optimiser steps and asks `steps_per_epoch` how many there are. The original's schedule was one step
short whenever sizes were awkward.
"""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from pasto_cli.core.recipe.schema import TrainingSpec

T = TypeVar("T")


def steps_per_epoch(num_pairs: int, spec: TrainingSpec) -> tuple[int, int]:
    """(batches, optimiser steps) of an epoch."""
    whole, rest = divmod(num_pairs, spec.batch_size)
    # A single pair that is left over joins the batch before it: see `make_batches`.
    batches = max(1, whole + (rest > 1))
    return batches, math.ceil(batches / spec.accumulation)


def make_batches(pairs: Sequence[T], batch_size: int, rng: random.Random | None) -> list[list[T]]:
    """Batches of an epoch, in a seeded order or (None) as the pairs stand.

    A last batch of one pair joins the one before it: one pair has no spread to scale its direction
    by (`losses.subspace_scale`).
    """
    order = list(pairs)
    if rng is not None:
        rng.shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        lonely = batches.pop()
        batches[-1] += lonely
    return batches


def lr_factor(step: int, total: int, spec: TrainingSpec) -> float:
    """Learning rate at an optimiser step as a share of the peak.

    Warm-up rises linearly (cosine) or by a half cosine from 1/25 (onecycle, arXiv 1708.07120); both
    fall by a half cosine.

    Args:
        step: Optimiser steps done before this one.
        total: Optimiser steps planned.
        spec: Schedule and share of the warm-up.
    """
    onecycle = spec.schedule == "onecycle"
    start, end = (0.04, 1e-4) if onecycle else (0.0, 0.0)
    warm = max(1, round(spec.warmup * total))
    if step < warm:
        share = (step + 1) / warm
        if not onecycle:
            return share
        return start + (1 - start) * (0.5 - 0.5 * math.cos(math.pi * share))
    share = (step + 1 - warm) / max(1, total - warm)
    return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * share))
