"""How long a training takes here: what a step computes and moves, at speeds that are timed here.

    seconds = products in single precision / their speed
        + 1.6 (products in half precision / theirs + bytes of everything else / speed of memory)

Three speeds, since they have little to do with one another: a processor with matrix units takes
bfloat16 eight times as fast as float32, and then a step is mostly output head and memory. Large
products in float32 run as fast as the one that is timed, the rest does not.
"""

import math
import time

import torch

from pasto_cli.core.models.linears import linear_sizes
from pasto_cli.core.planning.rehearsal import Rehearsal, Stage
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import Duration

OVERHEAD = 1.6
"""What is not a product in single precision, over that: other shapes, attention, conversions."""
FORWARD = 0.35
"""A batch that is only looked at, at both ends, over a step."""
AROUND = 30
"""Screen, elicitation check, start, ends and certificate took as long as this many steps on the
demo model: most of it is text that the model writes."""
HEAD_POSITIONS, HEAD_ROWS = 64, 16_384
"""Positions and vocabulary entries of the product that stands for the output head's."""
MEMORY_NUMBERS = 2**24
"""float32 numbers of a sum that no cache holds."""
LEAST, REPEATS = 0.25, 5
"""Seconds that the product is repeated for, in so many parts, of which the fastest counts."""


def duration(
    stage: Stage, recipe: Recipe, run: Rehearsal, device: torch.device, low: bool, pairs: int
) -> Duration:
    """Time products of the real shapes and a sum on this device, and work the rest out from them.

    Args:
        stage: For the shapes of the widest writer and of the output head.
        recipe: For epochs and batches.
        run: For operations and nodes.
        device: Of this machine.
        low: Whether layers run in bfloat16.
        pairs: Trained on.
    """
    rows = max(2 * run.nodes // run.passes, 1)
    sizes = max((linear_sizes(w.module) for w in stage.writers), key=math.prod)
    half = torch.bfloat16 if low else stage.lm.dtype
    low_rate = product_speed(rows, sizes, device, half)
    head = (stage.lm.hidden_size, HEAD_ROWS)
    rate = product_speed(HEAD_POSITIONS, head, device, torch.float32)
    memory = memory_speed(device)
    step = run.single / rate + OVERHEAD * (run.low / low_rate + run.moved / memory)
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
        source=f"{_products(run, half, low_rate, rate)}{run.moved / 1e9:.3g} GB of memory read "
        f"and written at {memory / 1e9:.3g} GB per second, each timed here, what is not a product "
        f"in float32 times {OVERHEAD}; the total has {AROUND} steps for what comes before and "
        f"after training",
    )


def _products(run: Rehearsal, half: torch.dtype, low_rate: float, rate: float) -> str:
    """Operations of a step and their speeds, as far as there are any."""
    each = [(run.low, str(half).removeprefix("torch."), low_rate), (run.single, "float32", rate)]
    return "".join(
        f"{count / 1e9:.4g} billion operations per step in {name} at {speed / 1e9:.3g} billion per "
        f"second, "
        for count, name, speed in each
        if count
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


def memory_speed(device: torch.device) -> float:
    """Bytes per second that a sum of two tensors reads and writes on a device."""
    a, b = (torch.zeros(MEMORY_NUMBERS, device=device) for _ in range(2))

    def run() -> float:
        started = time.perf_counter()
        torch.add(a, b, out=a)
        a[0].item()  # waits until it is done, also on a GPU
        return time.perf_counter() - started

    run()
    return 3.0 * a.nbytes / min(run() for _ in range(REPEATS))
