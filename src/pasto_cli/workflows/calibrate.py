"""The ends of a dial: found at the end of training, or again by `pasto calibrate`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import bundled, runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.provenance import now
from pasto_cli.core.evaluation.calibration import Found, find_ends
from pasto_cli.core.evaluation.certificate import certify, measure_persona_llr
from pasto_cli.core.models import distributed
from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.records.adapter import Calibration, Certificate
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.workflows.dials import AS_TRAINED, Dial, LoadOptions, open_dial, pairs_of
from pasto_cli.workflows.evaluate import LOW_MEMORY, neutral_probe
from pasto_cli.workflows.prepare import tokenise_recipe
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.publish import rewrite_card


class Calibrated(NamedTuple):
    """A dial between new ends."""

    folder: Path
    """The adapter's."""
    calibration: Calibration
    certificate: Certificate | None
    """Measured at the new ends; None where the pairs behind it cannot be had."""


def calibrate(
    name: str | None, budget: float | None, watch: Watcher, options: LoadOptions = AS_TRAINED
) -> Calibrated:
    """Find the ends of a dial, and store them with the adapter and a certificate measured there.

    Args:
        name: Run or adapter folder, or None for the latest run.
        budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats; None
            for the recipe's.
        watch: Told of progress.
        options: How the base is loaded and the adapter checked.

    Raises:
        PastoError: If no coefficient disturbs so much, or the adapter is not a local folder.
    """
    if budget is not None and not 0 < budget < 50:
        raise PastoError(
            f"a budget of {budget:g} nats makes no sense",
            "Write --kl 1, or another number between 0 and 50.",
        )
    if runs.adapter_folder(name) is None:
        raise PastoError(
            f"{name} is on the Hub: a calibration is stored with the adapter",
            f"First: pasto pull {name}",
        )
    dial = open_dial(name, watch, options._replace(raw=True))
    spec = dial.recipe.calibration or CalibrationSpec()
    if budget is not None:
        spec = spec.model_copy(update={"kl": budget})
    found = ends_of(dial.lm, dial.adapter, spec, dial.recipe, watch)
    meta = dial.meta.model_copy(update={"calibration": found.calibration})
    turned = Dial(dial.lm, dial.adapter, meta, dial.folder)
    meta = meta.model_copy(update={"certificate": _certificate_there(turned, watch)})
    if distributed.rank() == 0:  # all have found the same
        rewrite_card(dial.folder, meta, watch)
    return Calibrated(dial.folder, found.calibration, meta.certificate)


def ends_of(
    lm: LoadedModel, adapter: Adapter, spec: CalibrationSpec, recipe: Recipe, watch: Watcher
) -> Found:
    """Both ends of an adapter; says where text, and not the budget, set them.

    Raises:
        PastoError: See `find_ends`.
    """
    prompts = _alike_in_length(lm, bundled.lines("calibration_prompts.txt"), spec.prompts)
    with (
        enough_memory(LOW_MEMORY),
        layer_precision(lm, recipe.evaluation.precision),
        watch.task(f"ends of the dial: KL p95 of {spec.kl:g} nats, readable text"),
    ):
        found = find_ends(
            lm,
            AdapterSteerer(adapter, lm),
            neutral_probe(lm),
            prompts,
            spec,
            now=now(),
            seed=recipe.evaluation.seed,
        )
    for key, wrong in found.lowered.items():
        watch.note(
            f"{_shown(key)} stands below the budget, where text still reads (at the budget: "
            f"{'; '.join(wrong)})"
        )
    for key, wrong in found.unreadable.items():
        watch.warn(
            f"text at {_shown(key)} falls apart however little the dial is turned, so that the end "
            f"stands at the budget ({'; '.join(wrong)}); read some before you use it"
        )
    return found


def _shown(key: str) -> str:
    return "+1" if key == "1" else key


def _alike_in_length(lm: LoadedModel, prompts: Sequence[str], count: int) -> list[str]:
    """Some prompts, of as few different lengths in tokens as there can be.

    Models that take no token trees answer rows of one length in one batch.
    """
    by_length: dict[int, list[str]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(lm.chat.prompt(prompt))].append(prompt)
    groups = sorted(by_length.values(), key=len, reverse=True)
    return [prompt for group in groups for prompt in group][:count]


def _certificate_there(dial: Dial, watch: Watcher) -> Certificate | None:
    """The certificate at the new ends; None where the pairs behind it cannot be had."""
    recipe, before = dial.recipe, dial.meta.certificate
    try:
        tokens = tokenise_recipe(pairs_of(dial), recipe, dial.lm, watch)
    except PastoError as error:
        watch.warn(f"no certificate at these ends: {error.message}")
        return None
    with (
        layer_precision(dial.lm, recipe.evaluation.precision),
        watch.task("certificate: strength at the new ends", len(tokens.certificate)) as advance,
    ):
        llr = measure_persona_llr(
            dial.lm,
            dial.steerer,
            tokens.certificate,
            [1.0, -1.0],
            recipe.training.node_budget,
            advance,
        )
    found = certify(llr, tokens.num_prompts, recipe.training.seed)
    if before is not None and (before.specificity or before.opposites):
        watch.note(
            "what held-out anchors say (specificity, both answers) was measured at the ends of "
            "before: left out"
        )
    return found
