"""How far a dial may be turned, and how dials that are turned together get in each other's way."""

from pathlib import Path

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    coefficient_at_budget,
    measure,
    summary,
)
from pasto_cli.core.models.memory import enough_memory
from pasto_cli.core.records.adapter import Calibration
from pasto_cli.workflows.dials import open_dial, recipe_of
from pasto_cli.workflows.evaluate import LOW_MEMORY, neutral_probe
from pasto_cli.workflows.progress import Watcher
from pasto_cli.workflows.publish import rewrite_card


def calibrate(
    name: str | None,
    budget: float,
    quantization: str | None,
    device: str | None,
    verify: bool,
    watch: Watcher,
) -> tuple[Path, Calibration]:
    """Find for each sign the coefficient that disturbs the base by a budget, and store both with
    the adapter.

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
        raise PastoError(
            f"a budget of {budget:g} nats makes no sense",
            "Write --kl 1, or another number between 0 and 50.",
        )
    if runs.adapter_folder(name) is None:
        raise PastoError(
            f"{name} is on the Hub: a calibration is stored with the adapter",
            "First: pasto pull " + str(name),
        )
    dial = open_dial(name, watch, quantization, device, verify)
    seed = recipe_of(dial.meta, dial.folder).evaluation.seed
    coefficients, reached = {}, {}
    with enough_memory(LOW_MEMORY):
        with watch.task("the base model's own answers to neutral prompts"):
            probe = neutral_probe(dial)
        zero = measure(dial.lm, dial.steerer, probe, 0.0)
        for key, sign in (("1", 1.0), ("-1", -1.0)):
            with watch.task(f"coefficient {sign:+g} x ?: KL p95 = {budget:g} nats"):
                size = coefficient_at_budget(dial.lm, dial.steerer, probe, sign, budget)
                if size == LARGEST_COEFFICIENT:
                    raise PastoError(
                        f"no coefficient up to {sign * LARGEST_COEFFICIENT:+g} disturbs this model "
                        f"by {budget:g} nats",
                        "Lower --kl.",
                    )
                found = summary(measure(dial.lm, dial.steerer, probe, sign * size), zero, seed)
            coefficients[key] = sign * size
            reached[key] = found.kl_p95
    calibration = Calibration(
        kl_p95=budget,
        coefficients=coefficients,
        reached=reached,
        quantization=dial.lm.spec.quantization,
    )
    rewrite_card(dial.folder, dial.meta.model_copy(update={"calibration": calibration}))
    return dial.folder, calibration
