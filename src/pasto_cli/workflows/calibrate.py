"""`pasto calibrate`: how far a dial may be turned."""

from pathlib import Path

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    coefficient_at_budget,
    measure_disturbance,
    summarise_disturbance,
)
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.records.adapter import Calibration
from pasto_cli.workflows.dials import AS_TRAINED, Dial, LoadOptions, open_dial
from pasto_cli.workflows.evaluate import LOW_MEMORY, neutral_probe
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.publish import rewrite_card


def calibrate(
    name: str | None, budget: float, watch: Watcher, options: LoadOptions = AS_TRAINED
) -> tuple[Path, Calibration]:
    """Find the coefficient of each sign at a KL budget, and store both with the adapter.

    Args:
        name: Run or adapter folder, or None for the latest run.
        budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats.
        watch: Told of progress.
        options: How the base is loaded and the adapter checked.

    Returns:
        The adapter's folder and what was found.

    Raises:
        PastoError: If no coefficient disturbs so much, or the adapter is not a local folder.
    """
    if not 0 < budget < 50:
        raise PastoError(
            f"a budget of {budget:g} nats makes no sense",
            "Write --kl 1, or another number between 0 and 50.",
        )
    if runs.adapter_folder(name) is None:
        raise PastoError(
            f"{name} is on the Hub: a calibration is stored with the adapter",
            f"First: pasto pull {name}",
        )
    dial = open_dial(name, watch, options)
    calibration = _find(dial, budget, watch)
    rewrite_card(dial.folder, dial.meta.model_copy(update={"calibration": calibration}))
    return dial.folder, calibration


def _find(dial: Dial, budget: float, watch: Watcher) -> Calibration:
    seed = dial.recipe.evaluation.seed
    coefficients, reached = {}, {}
    with enough_memory(LOW_MEMORY):
        with watch.task("the base model's own answers to neutral prompts"):
            probe = neutral_probe(dial)
        zero = measure_disturbance(dial.lm, dial.steerer, probe, 0.0)
        for key, sign in (("1", 1.0), ("-1", -1.0)):
            with watch.task(f"coefficient {sign:+g} x ?: KL p95 = {budget:g} nats"):
                size = coefficient_at_budget(dial.lm, dial.steerer, probe, sign, budget)
                if size == LARGEST_COEFFICIENT:
                    raise PastoError(
                        f"no coefficient up to {sign * LARGEST_COEFFICIENT:+g} disturbs this model "
                        f"by {budget:g} nats",
                        "Lower --kl.",
                    )
                reading = measure_disturbance(dial.lm, dial.steerer, probe, sign * size)
            coefficients[key] = sign * size
            reached[key] = summarise_disturbance(reading, zero, seed).kl_p95
    return Calibration(
        kl_p95=budget,
        coefficients=coefficients,
        reached=reached,
        quantization=dial.lm.spec.quantization,
    )
