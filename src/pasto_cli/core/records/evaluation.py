"""What an evaluation leaves behind: every row with every answer, and where it came from. JSON,
versioned, re-scorable."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

FORMAT_VERSION = 2
Number = Annotated[float, BeforeValidator(lambda x: math.nan if x is None else x)]
"""A float; JSON has no NaN, so null stands for it."""
Kind = Literal["target", "preference", "arithmetic"]


class Answer(BaseModel):
    """How one row was answered at one coefficient."""

    model_config = ConfigDict(extra="forbid")

    y: Number
    """log P(Yes) - log P(No), or log P(matching choices) - log P(the other choices), nats."""
    pmass: float
    """P(Yes) + P(No), or that of all choices."""
    said: str
    """The likeliest next token."""


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
    """Coefficient (as text) -> answer."""


class EvalRun(BaseModel):
    """One benchmark at several coefficients."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    benchmark: str
    title: str
    licence: str
    source: str
    value: str
    coefficients: list[float]
    pmass_threshold: float
    label_sign: Literal["own", "original"] = "own"
    """`original` reproduces the published fault: y and the label of not_to_do rows are both
    negated."""
    partial: bool
    """True if only some dilemmas were run (`--limit`)."""
    rows: list[Row]
    scores: dict[str, Any]
    disturbance: dict[str, Any] = {}
    """Coefficient -> KL to the base on its own answers to neutral prompts, and NLL of those
    prompts, nats."""
    provenance: dict[str, Any]


def key(coefficient: float) -> str:
    """Text of a coefficient as it stands in the file: -1, 0, 0.5."""
    return f"{coefficient + 0.0:g}"  # -0 is 0


def dump(run: EvalRun) -> str:
    """An evaluation as JSON; NaN and infinities become null, so that every reader takes it."""
    return json.dumps(without_nan(run.model_dump()), indent=1, ensure_ascii=False)


def parse(text: str) -> EvalRun:
    """An evaluation from JSON; null among the scores becomes NaN again.

    Raises:
        ValueError: If the text is not an evaluation.
    """
    raw = json.loads(text)
    if isinstance(raw, dict):
        for part in ("scores", "disturbance"):
            raw[part] = with_nan(raw.get(part, {}))
    return EvalRun.model_validate(raw)


def without_nan(x: Any) -> Any:
    """The same data with null for NaN and infinities, which JSON has not."""
    if isinstance(x, dict):
        return {k: without_nan(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [without_nan(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def with_nan(x: Any) -> Any:
    """The same data with NaN for null: what `without_nan` left of it."""
    if isinstance(x, dict):
        return {k: with_nan(v) for k, v in x.items()}
    return math.nan if x is None else x


class Text(BaseModel):
    """One answer."""

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
    scores: Annotated[dict[str, Any], BeforeValidator(with_nan)]
    """`slope`, and for each coefficient `sentiment`, `distinct`, `words`: estimates as mappings."""
    provenance: dict[str, Any]
