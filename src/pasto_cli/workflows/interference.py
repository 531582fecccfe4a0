"""`pasto interference`: how dials that turn together get in each other's way."""

from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.evaluation.certificate import measure_persona_llr
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.steering.steerer import Mix, Steerer
from pasto_cli.workflows.dials import Dial, DialSet, pairs_of
from pasto_cli.workflows.evaluate import LOW_MEMORY
from pasto_cli.workflows.prepare import tokenise_recipe
from pasto_cli.workflows.progress import Watcher


class Interference(NamedTuple):
    """One dial's certificate while others turn too; strengths in its own prompt-equivalents."""

    name: str
    coefficient: float
    alone: Estimate
    others: Estimate
    """The others alone, read on this dial's scale."""
    together: Estimate


def interference(dials: DialSet, watch: Watcher) -> list[Interference]:
    """Strength of each dial on its own held-out pairs: alone, of the others, of all together.

    Args:
        dials: Two or more, with their coefficients.
        watch: Told of progress.

    Raises:
        PastoError: If the pairs that a dial was trained on cannot be had.
    """
    found, names = [], _names(dials.dials)
    every = [(dial.steerer, own) for dial, own in zip(dials.dials, dials.own, strict=True)]
    for index, dial in enumerate(dials.dials):
        recipe = dial.recipe
        tokens = tokenise_recipe(pairs_of(dial), recipe, dial.lm, watch)
        ways: list[Steerer] = [
            Mix([every[index]]),
            Mix(every[:index] + every[index + 1 :]),
            Mix(every),
        ]
        label, total = f"certificate pairs of {names[index]}", 3 * len(tokens.certificate)
        with enough_memory(LOW_MEMORY), watch.task(label, total) as advance:
            alone, others, together = (
                measure_persona_llr(
                    dial.lm, way, tokens.certificate, [1.0], recipe.training.node_budget, advance
                ).strength(1.0, recipe.training.seed)
                for way in ways
            )
        found.append(Interference(names[index], dials.own[index], alone, others, together))
    return found


def _names(dials: Sequence[Dial]) -> list[str]:
    """What a table calls dials: their recipes, or their folders where recipes share a name."""
    recipes = [dial.recipe.name for dial in dials]
    if len(set(recipes)) == len(recipes):
        return recipes
    folders = [dial.folder.resolve() for dial in dials]
    return [folder.parent.name if folder.name == "adapter" else folder.name for folder in folders]
