"""The `losses` section of a recipe: every term with its weight and its constants. No torch.

Defaults follow the AntiPaSTO paper (arXiv 2601.07473, Table 9) or its published code where an
experiment in `docs/LOG.md` does not say otherwise; neutral branch, anchors and preference have no
counterpart there. `core.training.losses` holds the formulas.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pasto_cli.core.recipe.section import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Real,
    Section,
    Signed,
)


class ProjectionSpec(Section):
    """Anti-parallel projection loss."""

    kind: Literal["scaled", "symlog"] = "scaled"
    """scaled: published code; symlog: paper."""
    weight: NonNegative = 1.0
    """Weight of the term."""
    scale: Positive = 30.0
    """Factor on the anti-parallelism a (scaled only)."""
    margin: Signed = 0.0
    """Added to a before the hinge."""
    softness: Fraction = 0.25
    """The focus exponent is 1 - softness: 1 switches the focus off."""
    orth_weight: NonNegative = 0.0
    """Weight of the term that keeps the two changes on one line."""


class CoherenceSpec(Section):
    """Total-variation budget by the base model's entropy."""

    weight: NonNegative = 10.0
    """Weight inside the barrier; 0 switches the term off."""
    barrier: Literal["log1p_squared", "log"] = "log1p_squared"
    """log1p_squared: published code; log: paper."""
    kappa: Positive = 0.3
    """The budget is kappa sqrt(H + beta), H in nats. 0.3 is the paper's; 0.9, the published code's,
    cannot bind."""
    beta: NonNegative = 0.02
    """Floor under the entropy, nats."""
    aggregate: Literal["mean", "lse", "max"] = "mean"
    """How the tokens of a row are put together."""
    temperature: Positive = 3.0
    """Temperature of lse."""
    tokens: Literal["suffix", "all"] = "suffix"
    """The shared suffix, or every token of the prompt (original)."""


class MonotonicitySpec(Section):
    """The gap between the personas must grow at +1 and shrink at -1."""

    weight: NonNegative = 30.0
    """Weight of the hinge; 0 switches the term off."""
    variant: Literal["forward", "batch"] = "forward"
    """forward keeps the pairs' own orientation; batch takes the better of it and its mirror
    (original)."""
    frac: NonNegative = 0.5
    """Threshold: frac sqrt(mean H) + floor, nats."""
    floor: NonNegative = 0.04
    """Constant part of the threshold, nats; see frac."""
    tokens: Literal["suffix", "all"] = "suffix"
    """The shared suffix, or every token of the prompt (original)."""


class NeutralSpec(Section):
    """The neutral branch: sign and strength on prompts without a persona."""

    orientation_weight: NonNegative = 15.0
    """Weight of mean(o- - o+)."""
    likeness_weight: NonNegative = 30.0
    """Weight of relu(m - s(+1)) + relu(m + s(-1)), and of the same beyond the ceiling."""
    margin: Positive = 1.0
    """m: wanted strength, prompt-equivalents."""
    ceiling: Positive | None = None
    """Strength beyond which the dial is held back, prompt-equivalents; null lets it grow."""
    coherence: bool = True
    """Coherence on the neutral leaf too."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.ceiling is not None and self.ceiling < self.margin:
            raise ValueError(
                f"ceiling ({self.ceiling:g}) must not be below margin ({self.margin:g}), the "
                f"strength wanted"
            )
        return self


_ORIGINAL_LOSSES: dict[str, Any] = {
    "coherence": {"kappa": 0.9, "tokens": "all"},
    "monotonicity": {"variant": "batch", "tokens": "all"},
    "neutral": None,
}


class AnchorSpec(Section):
    """Anchors: prompts on which the dial should change nothing."""

    weight: NonNegative = 30.0
    """Weight of the mean KL(p_0 || p_a) at +1 and -1 on the base's own greedy answers."""
    prompts: str = "bundled"
    """`bundled`, or a text file with one prompt per line."""
    count: Count = 4
    """Anchors drawn per optimiser step."""
    tokens: Count = 6
    """Longest answer, tokens."""
    held_out: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the anchors that is kept for the certificate's specificity."""
    aggregate: Literal["mean", "root", "rms", "p95"] = "mean"
    """Over the token positions of a step: root, the mean of square roots, is felt where the KL is
    small; rms and p95 see a loop in a few tokens, which a mean hides."""
    choice: NonNegative = 0.0
    """Weight of the mean squared change, nats, of the log-odds of the base's two likeliest tokens,
    where its answer is least decided between them: a Yes or No is held where the base is sure too,
    where no KL feels it."""
    reach: Annotated[Real, Field(ge=1.0)] = 1.0
    """Anchors are held at +-r with r drawn for each step from 1 to this: calibrated ends lie beyond
    the coefficients of training, and what holds at +-1 need not hold there."""
    opposites: NonNegative = 0.0
    """Weight of the mean squared change, nats, that the answers to a question and to its opposite
    share: a dial may change which of two actions is right, not say Yes to both; 0 leaves the
    questions that are asked both ways out."""
    opposites_count: Count = 1
    """Questions asked both ways drawn per optimiser step."""


class PreferenceSpec(Section):
    """Preference between the model's own answers under each persona (`pairs.answers`)."""

    weight: NonNegative = 30.0
    """Weight of the term."""
    kind: Literal["margin", "bipo"] = "margin"
    """margin: hinges on log-ratios per token; bipo: logistic loss of their sums over an answer."""
    margin: Positive = 0.3
    """m: wanted log-ratio of chosen to rejected at +1, and of rejected to chosen at -1, nats per
    token (margin only)."""
    beta: Positive = 0.1
    """Factor on the summed log-ratios (bipo only)."""
    count: Count = 4
    """Pairs of answers drawn per optimiser step."""


class LossesSpec(Section):
    """The loss terms. `losses: original` is the published code's set: no neutral branch."""

    projection: ProjectionSpec = ProjectionSpec()
    """Anti-parallel projection."""
    coherence: CoherenceSpec = CoherenceSpec()
    """Coherence constraint."""
    monotonicity: MonotonicitySpec = MonotonicitySpec()
    """Monotonicity constraint."""
    neutral: NeutralSpec | None = NeutralSpec()
    """Neutral branch; null leaves it out."""
    anchor: AnchorSpec | None = None
    """Anchors; null leaves them out."""
    preference: PreferenceSpec | None = None
    """Preference between the model's own answers; null leaves it out. Needs `pairs.answers`."""

    @model_validator(mode="before")
    @classmethod
    def _named_set(cls, data: Any) -> Any:
        if isinstance(data, str):
            if data == "original":
                return _ORIGINAL_LOSSES
            if data != "pasto":
                raise ValueError(
                    f"{data!r} is not a set of losses; write 'pasto', 'original' or a mapping"
                )
            return {}
        return data
