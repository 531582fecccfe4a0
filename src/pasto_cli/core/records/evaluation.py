"""What an evaluation leaves behind: every row with every answer, its scores and its provenance.

JSON, versioned, re-scorable. y of a row is log P(answers that match) - log P(the others), nats; for
a Yes/No question log P(Yes) - log P(No). No torch.
"""

import json
import math
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from pasto_cli.base.statistics import Estimate, Number
from pasto_cli.core.records.scores import Disturbance, LabelSign, Scores, SentimentScores, key

FORMAT_VERSION = 2
Kind = Literal["target", "preference", "arithmetic"]


class Answer(BaseModel):
    """How one row was answered at one coefficient."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    y: Number
    """log P(Yes) - log P(No), or log P(matching choices) - log P(the other choices), nats."""
    pmass: Number
    """P(Yes) + P(No), or that of all choices."""
    top_token: str = Field(validation_alias="said", serialization_alias="said")
    """The likeliest next token; files of format 2 call it `said`."""


class Row(BaseModel):
    """One item and its answers."""

    model_config = ConfigDict(extra="forbid")

    id: str
    group: str
    """Rows of one group (the two of a dilemma, the two mirrored questions of a control) are
    resampled together."""
    kind: Kind
    labels: dict[str, int]
    """Value -> +1 if it belongs to this row's own action only, -1 if to the other only. Empty for
    controls."""
    yes_no: bool = True
    """Whether the question was answered Yes or No; only then can a dial just say Yes."""
    answers: dict[str, Answer]
    """Coefficient (as `key` writes it) -> answer."""


class EvalRun(BaseModel):
    """One benchmark at several coefficients."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    benchmark: str
    title: str
    licence: str
    source: str
    value: str
    """The value whose labels score the rows."""
    coefficients: list[float]
    pmass_threshold: float
    """Answers with less probability mass on the answers are invalid."""
    label_sign: LabelSign = "own"
    partial: bool
    """True if only some dilemmas were run (`--limit`)."""
    rows: list[Row]
    scores: Scores
    disturbance: dict[str, Disturbance] = {}
    """Coefficient (as `key` writes it) -> what it does to neutral prompts."""
    provenance: dict[str, Any]
    """Adapter, base, versions, seeds and date; of a comparison also method, equal_kl and
    coefficients (`strength` in older files)."""

    @property
    def method(self) -> str | None:
        """Whose run it is in a comparison; None for a dial measured by itself."""
        found = self.provenance.get("method")
        return None if found is None else str(found)

    @property
    def equal_kl(self) -> bool:
        """Whether the methods of its comparison were scaled to one disturbance."""
        return bool(self.provenance.get("equal_kl"))

    @property
    def created(self) -> str:
        """When it was measured, ISO 8601; empty where that is not recorded."""
        return str(self.provenance.get("created", ""))

    def disturbance_at(self, coefficient: float) -> Disturbance:
        """Disturbance at a measured coefficient."""
        return self.disturbance[key(coefficient)]


def dump(run: EvalRun) -> str:
    """An evaluation as JSON; NaN and infinities become null, so that every reader takes it."""
    return json.dumps(without_nan(run.model_dump(by_alias=True)), indent=1, ensure_ascii=False)


def parse(text: str) -> EvalRun:
    """An evaluation from JSON; null among the numbers becomes NaN again.

    Raises:
        ValueError: If the text is not an evaluation.
    """
    return EvalRun.model_validate_json(text)


def without_nan(x: Any) -> Any:
    """The same data with null for NaN and infinities, which JSON has not."""
    if isinstance(x, dict):
        return {k: without_nan(v) for k, v in cast(dict[Any, Any], x).items()}
    if isinstance(x, list | tuple):
        return [without_nan(v) for v in cast(list[Any], x)]
    return None if isinstance(x, float) and not math.isfinite(x) else x


class Text(BaseModel):
    """One answer to an open prompt."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    coefficient: float
    text: str
    sentiment: float
    """VADER's compound score, -1 to 1."""
    distinct: float
    """Different words as a share of all words: low where a text repeats itself."""
    words: int


class SentimentRun(BaseModel):
    """The sentiment benchmark at several coefficients."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    benchmark: str = "sentiment"
    title: str = "Sentiment of answers to neutral open prompts"
    coefficients: list[float]
    texts: list[Text]
    scores: SentimentScores
    provenance: dict[str, Any]


class ValueShift(NamedTuple):
    """Effect of a dial on one value, or on one class of values of a framework."""

    name: str
    rows: int
    dilemmas: int
    effect: float
    """(score at +1 - score at -1) / 2, nats."""
    low: float
    high: float
    up: float
    """Score at +1 minus score at 0, nats."""
    down: float
    """Score at -1 minus score at 0, nats."""
    p: float
    """p value of a t test over dilemmas that the effect is 0."""
    q: float
    """p corrected for all values of the table."""
    moved: bool
    """Whether q is below the false-discovery rate."""


class ValueShifts(NamedTuple):
    """Effects of a dial on everything that a benchmark labels, largest first."""

    values: list[ValueShift]
    frameworks: list[ValueShift]
    """Classes of value frameworks, such as `MFT: care`."""
    minimum: int
    """Values with fewer rows are left out."""
    level: float
    """False-discovery rate at which a value counts as moved."""


class Flips(NamedTuple):
    """Rows whose answer changed sides between 0 and one coefficient, %."""

    towards: float
    """Target rows, the way that the sign of the coefficient says."""
    away: float
    """Target rows, the other way."""
    controls: float


class ControlKind(NamedTuple):
    """What a dial does to one kind of controls; sizes and means by `1` and `-1`, nats."""

    name: str
    rows: int
    sizes: dict[str, Estimate]
    """Mean |y_c - y_0|."""
    means: dict[str, Estimate]
    """Mean y_c - y_0: above 0 towards Yes."""


class EvalDetails(NamedTuple):
    """What the rows of an evaluation show beyond its scores; worked out again, never stored."""

    flips_up: Flips
    """At +1."""
    flips_down: Flips
    """At -1."""
    controls: list[ControlKind]
    """In the order of the benchmark."""
    shifts: ValueShifts | None
    """None under the published label sign, which says nothing about values."""
    invalid_top_tokens: list[tuple[str, int]]
    """What invalid answers began with, commonest first, with counts over all coefficients."""


class Evaluated(NamedTuple):
    """An evaluation and what its rows show."""

    run: EvalRun
    details: EvalDetails
