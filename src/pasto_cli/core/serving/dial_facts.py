"""What is known of a dial that is served, for people who turn it: from its own records only."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import EvalRun, SentimentRun

End = Literal["-1", "1"]


class CertificateFacts(BaseModel):
    """What was shown without labels."""

    passed: bool
    reason: str
    """Why it failed, or empty."""
    strength: dict[End, Estimate]
    """Coefficient -> prompt-equivalents."""


class BenchmarkFacts(BaseModel):
    """One benchmark that was run with the dial alone."""

    benchmark: str
    title: str
    slope: Estimate
    unit: str
    """Of the slope."""


class DialFacts(BaseModel):
    """One dial."""

    name: str
    """What requests call it."""
    default: float | None
    """Where it stands for requests that say nothing; None for 0."""
    poles: dict[End, str]
    """Coefficient -> the words or the phrase that it goes towards."""
    ends: dict[End, float] | None
    """Coefficient -> the coefficient of training that it means; None for a dial without ends, or
    one that is served without them."""
    disturbance: dict[End, Estimate] | None
    """Coefficient -> KL p95 to the base on neutral answers, nats."""
    certificate: CertificateFacts | None
    """None also where the coefficients are not those of the ends, of which it speaks."""
    benchmarks: list[BenchmarkFacts]


def facts_of(
    name: str,
    default: float | None,
    meta: Meta,
    *,
    raw: bool,
    evaluations: Sequence[EvalRun] = (),
    sentiment: SentimentRun | None = None,
) -> DialFacts:
    """Gather them.

    Args:
        name: What requests call the dial.
        default: Where its server put it.
        meta: Its pasto.json.
        raw: Whether coefficients are those of training, though it has ends.
        evaluations: What was measured with it; comparisons are left out.
        sentiment: The sentiment benchmark, if it was run.
    """
    kept = None if raw else meta.calibration
    benchmarks = [
        BenchmarkFacts(
            benchmark=run.benchmark,
            title=run.title + (" (part of the benchmark)" if run.partial else ""),
            slope=run.scores.slope,
            unit="nats per unit",
        )
        for run in evaluations
        if run.method is None and run.label_sign == "own"
    ]
    if sentiment is not None:
        slope, unit = sentiment.scores.slope, "compound score per unit"
        benchmarks.append(
            BenchmarkFacts(
                benchmark=sentiment.benchmark, title=sentiment.title, slope=slope, unit=unit
            )
        )
    return DialFacts(
        name=name,
        default=default,
        poles=_poles(meta),
        ends=kept and {"-1": kept.coefficients["-1"], "1": kept.coefficients["1"]},
        disturbance=kept and {"-1": kept.reached["-1"], "1": kept.reached["1"]},
        certificate=None if raw else _certificate(meta),
        benchmarks=benchmarks,
    )


def _poles(meta: Meta) -> dict[End, str]:
    """The two words or phrases of the recipe; filled templates where it has neither."""
    pairs = meta.recipe.get("pairs") or {}
    for found in (pairs.get("words"), pairs.get("personas"), meta.personas):
        if found and len(found) == 2:
            return {"1": str(found[0]), "-1": str(found[1])}
    return {"1": "", "-1": ""}


def _certificate(meta: Meta) -> CertificateFacts | None:
    if (kept := meta.certificate) is None:
        return None
    strength: dict[End, Estimate] = {"-1": kept.strength["-1"], "1": kept.strength["1"]}
    return CertificateFacts(passed=kept.passed, reason=kept.reason, strength=strength)
