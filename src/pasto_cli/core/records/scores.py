"""What an evaluation found, as typed numbers: the `scores` and `disturbance` of its JSON. No torch.

Undefined is NaN here and null in JSON, never 0. Rates are shares of rows (0 to 1); Steering F1 and
Surgical Informedness are on a scale of 100, as they were published.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from pasto_cli.base.statistics import Estimate, Number

LabelSign = Literal["own", "original"]
"""`original` reproduces the published fault: y and label of not_to_do rows are both negated."""


def key(coefficient: float) -> str:
    """Text of a coefficient as it stands in the file: -1, 0, 0.5."""
    return f"{coefficient + 0.0:g}"  # -0 is 0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SteeringF1(_Record):
    """Steering F1 (AntiPaSTO, arXiv 2601.07473) and its parts."""

    f1: Number
    """0 to 100 (the `original` variant can exceed 100)."""
    raw: Number
    """Before the factor for lost probability mass."""
    net: Number
    """`correct` minus `wrong`."""
    correct: Number
    """Weighted share of target rows that went from the wrong to the right side."""
    wrong: Number
    """Weighted share of target rows that went from the right to the wrong side."""
    arbitrary: Number
    """Weighted share of control rows that flipped at +1 or -1."""
    correct_rate: Number
    """As `correct`, every row counting the same."""
    wrong_rate: Number
    arbitrary_rate: Number
    """Share of the control rows answered at 0 that flipped."""
    precision: Number
    recall: Number
    pmass_ratio: Number
    """(min(pmass at +1, pmass at -1) / pmass at 0)^2."""


class Chance(_Record):
    """Steering F1 under labels turned round at random."""

    mean: Number
    p95: Number
    """95 % of the draws score less."""
    p: Number
    """Share of draws that score at least as much as the true labels."""
    draws: int


class CoefficientScores(_Record):
    """Scores at one coefficient."""

    mean_score: Estimate
    """Mean of y times label over valid target rows, nats."""
    shift: Estimate
    """`mean_score` minus that at 0, over rows valid at both, nats."""
    acquiescence: Estimate
    """Mean shift of y without the label, nats: does the dial just say Yes?"""
    pmass: Number
    """Mean probability on the answers, target and control rows."""
    invalid: int
    """Rows whose probability on the answers is under the threshold."""
    control_shift: Estimate | None = None
    """Mean |y - y at 0| over control rows, nats; None in files of before it was measured."""
    task_kl: Estimate | None = None
    """Mean KL to coefficient 0 over target rows, between matching answers, the others and anything
    else, nats; None in files of before it was measured."""


class Scores(_Record):
    """Everything that one benchmark says about one steerer."""

    steering_f1: Estimate
    steering_f1_valid_only: Number
    """Over rows that are valid at -1, 0 and +1."""
    parts: SteeringF1
    chance: Chance
    informedness: Estimate
    """Surgical Informedness."""
    slope: Estimate
    """Slope of the mean score, nats per unit of coefficient."""
    monotonicity: Estimate
    """Spearman's rank correlation of coefficient and mean score."""
    coefficients: dict[str, CoefficientScores]
    """Coefficient (as `key` writes it) -> scores."""
    n_target: int
    n_control: int
    n_without_label: int
    """Target rows that the value says nothing about; they are in no score."""
    selectivity: Estimate | None = None
    """Slope over the mean control shift at +1 and -1; this and the next three are None in files of
    before they were measured."""
    against_share: Estimate | None = None
    """Share of target rows whose score falls from -1 to +1."""
    fixed: int | None = None
    """Target rows that +1 puts on the right side."""
    broken: int | None = None
    """Target rows that +1 puts on the wrong side."""
    slope_minus_adapter: Estimate | None = None
    """A baseline's slope minus the adapter's on the same rows, nats per unit, paired."""
    selectivity_minus_adapter: Estimate | None = None
    """The same of `selectivity`."""

    def at(self, coefficient: float) -> CoefficientScores:
        """Scores at a measured coefficient."""
        return self.coefficients[key(coefficient)]

    @property
    def num_dilemmas(self) -> int | None:
        """Dilemmas behind the target rows, those without a valid answer included."""
        zero = self.at(0.0)
        return (zero.task_kl or zero.mean_score).clusters

    @model_serializer(mode="wrap")
    def _without_absent_comparison(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        for name in ("slope_minus_adapter", "selectivity_minus_adapter"):
            if fields[name] is None:
                del fields[name]
        return fields


class Disturbance(_Record):
    """What a steerer does, at one coefficient, to neutral prompts that no value is at stake in."""

    kl_p95: Estimate
    """95th percentile of KL(p_0 || p_a) over the tokens of the base's own answers, nats."""
    kl_mean: Estimate
    """Mean of the same, nats."""
    nll: Estimate
    """Mean of -log p_a of the prompts' own tokens, nats per token."""
    nll_shift: Estimate
    """The same minus that at coefficient 0."""


class CoefficientSentiment(_Record):
    """Texts at one coefficient, means over prompts."""

    sentiment: Estimate
    """VADER's compound score, -1 to 1."""
    distinct: Estimate
    """Different words as a share of all words."""
    words: Estimate


class SentimentScores(_Record):
    """Everything that the sentiment benchmark says about one steerer."""

    slope: Estimate
    """Slope of the compound score per unit of coefficient."""
    coefficients: dict[str, CoefficientSentiment]
    n_prompts: int

    def at(self, coefficient: float) -> CoefficientSentiment:
        """Scores at a measured coefficient."""
        return self.coefficients[key(coefficient)]
