"""The ends of a dial: the coefficients k+ and k- that +1 and -1 of the finished dial stand for.

    k+-  the size at which KL(p_0 || p_a) on neutral prompts is the budget (95th percentile, nats),
         lowered by steps until greedy text at +-k still reads (`text_quality`)

A user turns c in [-1, 1]; the model is steered at a = c k+ for c >= 0 and a = c k- below. What
a = 1 does depends on model, recipe and seed: it disturbs one model by half of the budget and makes
another one babble, which nobody can know who turns a slider.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.base.statistics import Estimate
from pasto_cli.core.evaluation.disturbance import (
    LARGEST_COEFFICIENT,
    NeutralProbe,
    coefficient_at_budget,
    measure_disturbance,
    summarise_disturbance,
)
from pasto_cli.core.evaluation.text_quality import Answer, faults, quality
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec
from pasto_cli.core.records.adapter import Calibration, TextQuality
from pasto_cli.core.steering.generation import generate_many
from pasto_cli.core.steering.steerer import Steerer

Key = Literal["1", "-1"]
SIGNS: tuple[tuple[Key, float], ...] = (("1", 1.0), ("-1", -1.0))


class Found(NamedTuple):
    """What a search for the ends gave."""

    calibration: Calibration
    lowered: dict[Key, list[str]]
    """Sign -> what was wrong with text at the budget, where a smaller coefficient mended it."""
    unreadable: dict[Key, list[str]]
    """Sign -> what is wrong with text however little the dial is turned; such an end stands at the
    budget."""


def find_ends(
    lm: LoadedModel,
    steerer: Steerer,
    probe: NeutralProbe,
    prompts: Sequence[str],
    spec: CalibrationSpec,
    *,
    now: str,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Find both ends of a dial.

    Args:
        lm: The base model.
        steerer: The adapter at raw coefficients a.
        probe: Neutral prompts for the disturbance.
        prompts: Open prompts for the text.
        spec: Budget and thresholds.
        now: When this is, ISO 8601.
        seed: Seed of the bootstrap.
        tell: Told what is being looked at.

    Raises:
        PastoError: If no coefficient disturbs so much.
    """
    sizes = _sizes_at_budget(lm, steerer, probe, spec, tell)
    read = _lower_until_readable(lm, steerer, prompts, spec, sizes, tell)
    zero = measure_disturbance(lm, steerer, probe, 0.0)
    reached: dict[Key, Estimate] = {
        key: summarise_disturbance(
            measure_disturbance(lm, steerer, probe, sign * read.sizes[key]), zero, seed
        ).kl_p95
        for key, sign in SIGNS
    }
    calibration = Calibration(
        kl_p95=spec.kl,
        coefficients={key: sign * read.sizes[key] for key, sign in SIGNS},
        reached=reached,
        quantization=lm.spec.quantization,
        text=read.text,
        created=now,
        prompts_sha256=_digest([*probe.prompts, *prompts]),
    )
    return Found(calibration, read.lowered, read.unreadable)


def _sizes_at_budget(
    lm: LoadedModel,
    steerer: Steerer,
    probe: NeutralProbe,
    spec: CalibrationSpec,
    tell: Callable[[str], None],
) -> dict[Key, float]:
    """The size of each sign's coefficient at the budget."""
    sizes: dict[Key, float] = {}
    for key, sign in SIGNS:
        tell(f"{sign:+g}: the coefficient with KL p95 of {spec.kl:g} nats")
        sizes[key] = coefficient_at_budget(lm, steerer, probe, sign, spec.kl)
        if sizes[key] == LARGEST_COEFFICIENT:
            raise PastoError(
                f"no coefficient up to {sign * LARGEST_COEFFICIENT:+g} disturbs this model by "
                f"{spec.kl:g} nats",
                "Lower the budget (--kl, or calibration.kl in the recipe).",
            )
    return sizes


class _Readable(NamedTuple):
    """Sizes whose text reads."""

    sizes: dict[Key, float]
    text: dict[Literal["1", "-1", "0"], TextQuality]
    lowered: dict[Key, list[str]]
    unreadable: dict[Key, list[str]]


def _lower_until_readable(
    lm: LoadedModel,
    steerer: Steerer,
    prompts: Sequence[str],
    spec: CalibrationSpec,
    sizes: dict[Key, float],
    tell: Callable[[str], None],
) -> _Readable:
    """Shrink each end until its greedy text has no faults beside the base's."""
    at_budget, sizes = sizes, dict(sizes)
    unreadable: dict[Key, list[str]] = {}
    tell("the base's own text")
    (base,) = read_texts(lm, steerer, prompts, spec, [0.0])
    text: dict[Key, TextQuality] = {}
    budget_text: dict[Key, TextQuality] = {}
    lowered: dict[Key, list[str]] = {}
    pending: dict[Key, float] = dict(SIGNS)
    for attempt in range(spec.step_limit + 1):
        at = [sign * sizes[key] for key, sign in pending.items()]
        tell(f"text at coefficient {' and '.join(f'{a:+.3g}' for a in at)}")
        found = dict(zip(pending, read_texts(lm, steerer, prompts, spec, at), strict=True))
        wrong: dict[Key, list[str]] = {key: faults(found[key], base, spec) for key in pending}
        if attempt == 0:
            text, lowered = dict(found), {key: wrong[key] for key in pending if wrong[key]}
            budget_text = dict(found)
        text.update(found)
        pending = {key: sign for key, sign in pending.items() if wrong[key]}
        if not pending:
            break
        for key in pending:
            sizes[key] *= spec.shrink
    for key in pending:  # no size helps: what is wrong is not that the dial is turned too far
        unreadable[key] = lowered.pop(key)
        sizes[key], text[key] = at_budget[key], budget_text[key]
    return _Readable(sizes, {"0": base, "1": text["1"], "-1": text["-1"]}, lowered, unreadable)


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def read_texts(
    lm: LoadedModel,
    steerer: Steerer,
    prompts: Sequence[str],
    spec: CalibrationSpec,
    coefficients: Sequence[float],
) -> list[TextQuality]:
    """Quality of greedy answers at each coefficient; one batch serves all of them."""
    texts = generate_many(lm, steerer, prompts, coefficients, spec.tokens)  # [n][c]
    return [
        quality([Answer(t, _length(lm, t)) for t in column], spec.tokens)
        for column in zip(*texts, strict=True)
    ]


def _length(lm: LoadedModel, text: str) -> int:
    return len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
