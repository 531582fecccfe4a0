"""Where memory runs out in a step: the same step again, in smaller token trees."""

from collections.abc import Callable
from typing import TypeVar

from pasto_cli.core.models import distributed
from pasto_cli.core.models.memory import SMALLEST_BUDGET, is_shortage
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import Recorder

T = TypeVar("T")


def sparing(objective: Objective, recorder: Recorder, step: int, compute: Callable[[], T]) -> T:
    """Compute; where memory runs out, halve the node budget and compute again.

    Several processes would wait for one another in other places: there the error stands.

    Args:
        objective: Whose budget is halved.
        recorder: Told of it.
        step: Optimiser steps done.
        compute: What is tried.
    """
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            hopeless = objective.budget <= SMALLEST_BUDGET or distributed.size() > 1
            if hopeless or not is_shortage(error):
                raise
        # Outside the handler: the error's traceback holds the tensors that took the memory.
        objective.budget = max(SMALLEST_BUDGET, objective.budget // 2)
        recorder.warn(
            f"out of memory at step {step + 1}: going on with a node budget of "
            f"{objective.budget} (training.node_budget sets it)"
        )
