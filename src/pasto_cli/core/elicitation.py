"""Before training: do the two personas move the clean base model at all?

If prompting with a persona changes nothing, there is no direction to learn, and every later number is noise.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from pasto_cli.core.adapter import Coefficients
from pasto_cli.core.answers import ask, score_answers
from pasto_cli.core.certificate import measure_likeness
from pasto_cli.core.chat import TokenPair
from pasto_cli.core.models import LoadedModel
from pasto_cli.evaluation.benchmarks import Benchmark
from pasto_cli.evaluation.statistics import Estimate, cluster_bootstrap

WEAK_SPAN = 0.05
"""Nats a token; below it the personas hardly move the model, which deserves a loud warning."""


class Elicitation(NamedTuple):
    """How far the personas move the clean base model."""

    span: Estimate
    """T_cho - T_rej, nats a token, on the shared suffixes."""
    y: dict[str, float]
    """Mean log P(Yes) - log P(No) on a few dilemmas under the positive, neutral and negative persona, nats."""
    y_range: float
    """Mean over those dilemmas of the range of y over the three, nats."""
    num_dilemmas: int

    @property
    def weak(self) -> bool:
        """Whether the personas hardly move the model."""
        return self.span.value < WEAK_SPAN


class Base:
    """The steerer that does nothing."""

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:  # noqa: ARG002
        """The untouched model at any coefficient."""
        return nullcontext()


def elicit(
    lm: LoadedModel, pairs: Sequence[TokenPair], personas: tuple[str, str], benchmark: Benchmark, budget: int, count: int = 6
) -> Elicitation:
    """Measure the personas on the clean base model.

    Args:
        lm: The model.
        pairs: A sample of pairs.
        personas: One filled template of each persona: positive, negative.
        benchmark: A few of its items are asked.
        budget: Nodes of one token tree.
        count: Items.
    """
    likeness = measure_likeness(lm, Base(), pairs, [], budget)
    difference = likeness.chosen - likeness.rejected
    span = cluster_bootstrap(lambda i: float(difference[i].mean()), likeness.clusters)
    items = [item for item in benchmark.items if item.kind == "target"][:count]
    prompts = {"positive": personas[0] + "\n\n", "neutral": "", "negative": personas[1] + "\n\n"}
    questions = [ask(lm.chat, lead + item.prompt, benchmark.prefill) for lead in prompts.values() for item in items]
    log_p = score_answers(lm, Base(), questions, [0.0], budget).log_p[0]  # (3 items, 2)
    y = (log_p[:, 0] - log_p[:, 1]).reshape(3, len(items))
    means = dict(zip(prompts, y.mean(1).tolist(), strict=True))
    return Elicitation(span, means, (y.amax(0) - y.amin(0)).mean().item(), len(items))
