"""What would make a training fit: changes of the recipe, each tried by a plan of its own."""

from typing import Any, NamedTuple

import torch

from pasto_cli.core.planning.planner import Planner, Target
from pasto_cli.core.planning.sizes import Kind
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.plan import Remedy


class _Change(NamedTuple):
    settings: dict[str, Any]
    costs: str


CHANGES = (
    _Change({"training.base_cache_mb": 64}, "base sides that no longer fit are computed each time"),
    _Change(
        {"training.batch_size": 2, "training.accumulation": 4},
        "statistics are taken over two pairs",
    ),
    _Change({"training.node_budget": 128}, "more and smaller passes: slower"),
    _Change({"adapter.rank": 16}, "fewer directions to turn"),
    _Change({"model.dtype": "bfloat16"}, "weights are rounded; slow on a CPU without bfloat16"),
    _Change({"model.quantization": "4bit"}, "weights are rounded to 4 bits; a step is slower"),
)
"""In the order of what they cost."""
LEAST = 0.03
"""Share of the peak that a change has to save to be named."""


def remedies(planner: Planner, target: Target) -> list[Remedy]:
    """Changes that need less on a device, each alone; where none suffices, the strongest together.

    Args:
        planner: Of the recipe that does not fit.
        target: The device.
    """
    before = planner.device(planner.known.recipe, target).peak
    found: list[Remedy] = []
    together: dict[str, Any] = {}
    for change in CHANGES:
        if not all(_is_less(planner.known.recipe, target, *key) for key in change.settings.items()):
            continue
        remedy = _tried(planner, target, change)
        if remedy.peak < (1 - LEAST) * before:
            found.append(remedy)
            together |= change.settings
    if len(found) > 1 and not any(remedy.fits for remedy in found):
        # Numbers of 4 bits and of 16 exclude each other for the layers; 4 bits need less.
        if "model.quantization" in together:
            together.pop("model.dtype", None)
        found.append(_tried(planner, target, _Change(together, "all of that")))
    return found


def _is_less(recipe: Recipe, target: Target, key: str, value: Any) -> bool:
    """Whether a setting asks for less than the recipe does."""
    section, _, name = key.partition(".")
    now = getattr(getattr(recipe, section), name)
    if key == "model.dtype":
        return target.kind.dtype.itemsize > getattr(torch, value).itemsize
    if key == "training.accumulation":  # it makes up for smaller batches
        return True
    return now == "none" if isinstance(value, str) else value < now


def _tried(planner: Planner, target: Target, change: _Change) -> Remedy:
    recipe = planner.known.recipe
    for key, value in change.settings.items():
        recipe = _changed(recipe, key, value)
    kind = target.kind
    if dtype := change.settings.get("model.dtype"):
        kind = Kind(kind.device, getattr(torch, dtype), low=False)
    peak = planner.device(recipe, target._replace(kind=kind)).peak
    return Remedy(
        settings=[f"{key}={value}" for key, value in change.settings.items()],
        peak=peak,
        fits=target.room is not None and peak <= target.room,
        costs=change.costs,
    )


def _changed(recipe: Recipe, key: str, value: Any) -> Recipe:
    section, _, name = key.partition(".")
    inner = getattr(recipe, section).model_copy(update={name: value})
    return recipe.model_copy(update={section: inner})
