"""How dials that are turned together get in each other's way."""

from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.evaluation.certificate import measure_persona_llr
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.steering.steerer import Mix, Steerer
from pasto_cli.workflows.dials import Part, pairs_of, recipe_of
from pasto_cli.workflows.evaluate import LOW_MEMORY
from pasto_cli.workflows.prepare import tokenise_recipe
from pasto_cli.workflows.progress import Watcher


class Interference(NamedTuple):
    """What happens to one dial's certificate when others are turned too; strengths in its own
    prompt-equivalents."""

    name: str
    coefficient: float
    alone: Estimate
    others: Estimate
    """The others alone, read on this dial's scale."""
    together: Estimate


def interference(parts: Sequence[Part], watch: Watcher) -> list[Interference]:
    """Strength of every dial on its own held-out pairs: alone, of the others alone, and of all
    together.

    Args:
        parts: Two dials or more on one base, with their coefficients.
        watch: Told of progress.

    Raises:
        PastoError: If the pairs that a dial was trained on cannot be had.
    """
    found, names = [], _names(parts)
    for index, (dial, own) in enumerate(parts):
        recipe = recipe_of(dial.meta, dial.folder)
        tokens = tokenise_recipe(pairs_of(dial), recipe, dial.lm, watch)
        every = [(part.dial.steerer, part.own) for part in parts]
        ways: list[Steerer] = [
            Mix([every[index]]),
            Mix(every[:index] + every[index + 1 :]),
            Mix(every),
        ]
        with (
            enough_memory(LOW_MEMORY),
            watch.task(
                f"certificate pairs of {names[index]}", 3 * len(tokens.certificate)
            ) as advance,
        ):
            alone, others, together = (
                measure_persona_llr(
                    dial.lm, way, tokens.certificate, [1.0], recipe.training.node_budget, advance
                ).strength(1.0, recipe.training.seed)
                for way in ways
            )
        found.append(Interference(names[index], own, alone, others, together))
    return found


def _names(parts: Sequence[Part]) -> list[str]:
    """What a table calls dials: by their recipes, or by their folders where recipes have one
    name."""
    recipes = [str(part.dial.meta.recipe["name"]) for part in parts]
    if len(set(recipes)) == len(recipes):
        return recipes
    folders = [part.dial.folder.resolve() for part in parts]
    return [folder.parent.name if folder.name == "adapter" else folder.name for folder in folders]
