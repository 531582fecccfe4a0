"""How far a dial may be turned, and how dials that are turned together get in each other's way."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pasto_cli import runs
from pasto_cli.core import artifact
from pasto_cli.core.certificate import Interval, measure_likeness
from pasto_cli.core.memory import enough_memory
from pasto_cli.core.steering import Mix, Steerer
from pasto_cli.core.strength import STRONGEST, equal_strength, measure, summary
from pasto_cli.dials import Part, open_dial, pairs_of, recipe_of
from pasto_cli.errors import PastoError
from pasto_cli.evaluation.statistics import Estimate
from pasto_cli.measurements import LOW_MEMORY, neutral_probe
from pasto_cli.publishing import rewrite_card
from pasto_cli.watcher import Watcher
from pasto_cli.workflows import tokenise_recipe


def calibrate(
    name: str | None, budget: float, quantization: str | None, device: str | None, verify: bool, watch: Watcher
) -> tuple[Path, artifact.Calibration]:
    """Find for each sign the coefficient that disturbs the base by a budget, and store both with the adapter.

    Args:
        name: Run or adapter folder, or None for the latest run.
        budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats.
        quantization: Of the base, instead of as trained.
        device: To load it on.
        verify: Check fingerprints and reference logits.
        watch: Told of progress.

    Returns:
        The adapter's folder and what was found.

    Raises:
        PastoError: If no coefficient disturbs so much, or the adapter is not a local folder.
    """
    if not 0 < budget < 50:
        raise PastoError(f"a budget of {budget:g} nats makes no sense", "Write --kl 1, or another number between 0 and 50.")
    if runs.adapter_folder(name) is None:
        raise PastoError(f"{name} is on the Hub: a calibration is stored with the adapter", "First: pasto pull " + str(name))
    dial = open_dial(name, watch, quantization, device, verify)
    seed = recipe_of(dial.meta, dial.folder).evaluation.seed
    coefficients, reached = {}, {}
    with enough_memory(LOW_MEMORY):
        with watch.task("the base model's own answers to neutral prompts"):
            probe = neutral_probe(dial)
        zero = measure(dial.lm, dial.steerer, probe, 0.0)
        for key, sign in (("1", 1.0), ("-1", -1.0)):
            with watch.task(f"coefficient {sign:+g} x ?: KL p95 = {budget:g} nats"):
                size = equal_strength(dial.lm, dial.steerer, probe, sign, budget)
                if size == STRONGEST:
                    raise PastoError(
                        f"no coefficient up to {sign * STRONGEST:+g} disturbs this model by {budget:g} nats", "Lower --kl."
                    )
                found = summary(measure(dial.lm, dial.steerer, probe, sign * size), zero, seed)["kl_p95"]
            coefficients[key] = sign * size
            reached[key] = Interval(**{k: found[k] for k in ("value", "low", "high", "n")})
    calibration = artifact.Calibration(
        kl_p95=budget, coefficients=coefficients, reached=reached, quantization=dial.lm.spec.quantization
    )
    rewrite_card(dial.folder, dial.meta.model_copy(update={"calibration": calibration}))
    return dial.folder, calibration


class Interference(NamedTuple):
    """What happens to one dial's certificate when others are turned too; strengths in its own prompt-equivalents."""

    name: str
    coefficient: float
    alone: Estimate
    others: Estimate
    """The others alone, read on this dial's scale."""
    together: Estimate


def interference(parts: Sequence[Part], watch: Watcher) -> list[Interference]:
    """Strength of every dial on its own held-out pairs: alone, of the others alone, and of all together.

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
        ways: list[Steerer] = [Mix([every[index]]), Mix(every[:index] + every[index + 1 :]), Mix(every)]
        with (
            enough_memory(LOW_MEMORY),
            watch.task(f"certificate pairs of {names[index]}", 3 * len(tokens.certificate)) as advance,
        ):
            alone, others, together = (
                measure_likeness(dial.lm, way, tokens.certificate, [1.0], recipe.training.node_budget, advance).strength(
                    1.0, recipe.training.seed
                )
                for way in ways
            )
        found.append(Interference(names[index], own, alone, others, together))
    return found


def _names(parts: Sequence[Part]) -> list[str]:
    """What a table calls dials: by their recipes, or by their folders where recipes have one name."""
    recipes = [str(part.dial.meta.recipe["name"]) for part in parts]
    if len(set(recipes)) == len(recipes):
        return recipes
    folders = [part.dial.folder.resolve() for part in parts]
    return [folder.parent.name if folder.name == "adapter" else folder.name for folder in folders]
