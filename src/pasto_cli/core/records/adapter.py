"""pasto.json: what an adapter is, where it came from and what it was shown to do.

The words of its numbers: strength is in prompt-equivalents (1 is half of the way from the rejected
to the chosen persona prompt), disturbance is KL to the base in nats. Records only, no torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.base.statistics import Estimate
from pasto_cli.core.recipe.schema import ModelSpec, Recipe
from pasto_cli.core.recipe.upgrade import upgrade_recipe
from pasto_cli.core.records.training import ImportRecord, TrainingRecord

FORMAT_VERSION = 1


def _without_clusters(estimate: Estimate) -> Estimate:
    return estimate.model_copy(update={"clusters": None})


StoredEstimate = Annotated[Estimate, AfterValidator(_without_clusters)]
"""An estimate as format 1 holds it: value, low, high and n."""


class Specificity(BaseModel):
    """How far a dial moves held-out anchors, on which it should change nothing."""

    model_config = ConfigDict(extra="forbid")

    kl_mean: StoredEstimate
    """Mean of KL(p_0 || p_a) over the tokens of the base's own answers, nats."""
    kl_p95: StoredEstimate
    """95th percentile of the same, nats."""


class Certificate(BaseModel):
    """What a dial was shown to do without labels."""

    model_config = ConfigDict(extra="forbid")

    passed: bool
    strength: dict[str, StoredEstimate]
    """Coefficient -> prompt-equivalents."""
    persona_prompts: dict[str, float]
    """Where the persona prompts themselves stand, in the same unit, from the neutral prompt:
    chosen, rejected."""
    span_nats: float
    """T_cho - T_rej, nats per token: what one prompt-equivalent is half of."""
    num_suffixes: int
    num_neutral_prompts: int
    reason: str
    """Why it failed, or empty."""
    specificity: dict[str, Specificity] | None = None
    """Coefficient -> KL on held-out anchors; left out of the file where there are none."""
    opposites: dict[str, StoredEstimate] | None = None
    """Coefficient -> mean size of what the answers to held-out questions and to their opposites
    share, nats; left out of the file where none was trained on."""

    @model_validator(mode="after")
    def _both_ends(self) -> Self:
        _require_keys("strength", self.strength, "1", "-1")
        _require_keys("persona_prompts", self.persona_prompts, "chosen", "rejected")
        if self.specificity is not None:
            _require_keys("specificity", self.specificity, "1", "-1")
        if self.opposites is not None:
            _require_keys("opposites", self.opposites, "1", "-1")
        return self

    @model_serializer(mode="wrap")
    def _without_absent_anchors(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(handler(self), "specificity", "opposites")


class BaseInfo(BaseModel):
    """The model that an adapter was made for."""

    model_config = ConfigDict(extra="forbid")

    spec: ModelSpec
    commit: str | None
    architecture: str
    dtype: str
    fingerprints: dict[str, str]
    """Module path -> SHA-256 of the weight as it was in memory."""

    @property
    def repository(self) -> str | None:
        """The base's repository on the Hub; None for a folder, a file, a package or random weights.

        `models/llama` may be either: what came from the Hub has a commit, a folder has none.
        """
        source = self.spec.source
        if source.startswith("hf:"):
            return "/".join(source.removeprefix("hf:").split("/")[:2])
        has_commit = self.commit is not None and not self.commit.startswith("sha256:")
        return source if has_commit and is_hub_id(source) else None


class Reference(BaseModel):
    """Logits of a fixed prompt, to see after loading that everything fits together."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    token_ids: list[int] = Field(min_length=1)
    logits: dict[str, list[float]]
    """Coefficient -> logits of `token_ids` after the prompt."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        lengths = {len(x) for x in self.logits.values()}
        if set(self.logits) != {"-1", "0", "1"} or lengths != {len(self.token_ids)}:
            raise ValueError("reference logits must be those at -1, 0 and 1, one for each token")
        return self


class TextQuality(BaseModel):
    """How greedy answers read at one coefficient (`core.evaluation.text_quality`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    distinct: float
    """Different words as a share of all words, mean over answers."""
    repeated: int
    """Answers that say a run of words again."""
    ended: float
    """Share of answers that end before the limit."""
    alike: float
    """Share of answers that begin with the commonest words."""
    n: int
    """Answers."""


class Calibration(BaseModel):
    """What +1 and -1 of the dial stand for, and what they were found from."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kl_p95: float
    """The budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats."""
    coefficients: dict[Literal["1", "-1"], float]
    """Sign -> the coefficient that reaches it."""
    reached: dict[Literal["1", "-1"], StoredEstimate]
    """Sign -> KL p95 there, nats."""
    quantization: str
    """Quantisation of the base that it was measured on."""
    text: dict[Literal["1", "-1", "0"], TextQuality] | None = None
    """Coefficient that a user turns -> how answers read there."""
    prompts_sha256: str | None = None
    """Hash of the prompts behind disturbance and text."""
    created: str | None = None
    """When it was made, ISO 8601. This and the two above are left out of files of before."""

    @model_validator(mode="after")
    def _signs(self) -> Self:
        if not (self.coefficients.get("1", 0.0) > 0 > self.coefficients.get("-1", 0.0)):
            raise ValueError("a calibration has a positive and a negative coefficient")
        _require_keys("reached", self.reached, "1", "-1")
        if self.text is not None:
            _require_keys("text", self.text, "1", "-1", "0")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """k+ and k-, both positive."""
        return self.coefficients["1"], -self.coefficients["-1"]

    @model_serializer(mode="wrap")
    def _without_absent_facts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(handler(self), "text", "prompts_sha256", "created")


class Meta(BaseModel):
    """pasto.json."""

    model_config = ConfigDict(extra="forbid")

    format_version: int
    created: str
    base: BaseInfo
    bound: Literal["spectral", "entrywise"] | None = None
    """How angles are bounded; None, as the next one, for a kind that does not rotate."""
    max_angle: float | None = Field(default=None, gt=0.0, lt=180.0, allow_inf_nan=False)
    """Degrees, as the recipe says."""
    kind: Literal["cayley", "lora"] = "cayley"
    """Kind of the adapter; the first files of format 1 have none and hold rotations."""
    largest_angle: float | None = None
    """True largest rotation angle at coefficient 1, degrees; None where nothing rotates."""
    recipe: Annotated[dict[str, Any], BeforeValidator(upgrade_recipe)]
    tensors_sha256: str | None = None
    """SHA-256 of adapter.safetensors; written by `save`."""
    pairs_sha256: str
    anchors_sha256: str | None = None
    """SHA-256 of the anchors, trained and held out; left out of the file where there are none."""
    answers_sha256: str | None = None
    """SHA-256 of the model's own answers, trained and held out; left out likewise."""
    num_pairs: dict[str, int]
    reply_start: str | None = None
    """What stands between a prompt and the reply, where that is more than the header of a turn;
    left out likewise."""
    personas: list[str]
    """One filled template of each persona: positive, negative."""
    training: TrainingRecord | ImportRecord
    certificate: Certificate | None
    calibration: Calibration | None = None
    """What +1 and -1 stand for; without one they are the coefficients of training."""
    reference: Reference
    versions: dict[str, str]

    @model_validator(mode="after")
    def _angles_of_rotations(self) -> Self:
        missing = [value is None for value in (self.bound, self.max_angle, self.largest_angle)]
        if any(missing) if self.kind == "cayley" else not all(missing):
            raise ValueError(
                "bound, max_angle and largest_angle belong to the kind cayley, all three of them"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.personas) != 2:
            raise ValueError("personas are two: positive, negative")
        parts = {"train", "validation", "certificate"}
        if isinstance(self.training, TrainingRecord) and not parts <= set(self.num_pairs):
            raise ValueError("num_pairs says how many train, validation and certificate have")
        return self

    @property
    def trained_with(self) -> Recipe:
        """The recipe, with today's keys and every default.

        Raises:
            ValidationError: If it is none of ours.
        """
        return Recipe.model_validate(self.recipe)

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(handler(self), "anchors_sha256", "answers_sha256", "reply_start")

    @property
    def ends(self) -> tuple[float, float]:
        """k+ and k-, both positive: the sizes of the trained coefficient at +1 and at -1."""
        return (1.0, 1.0) if self.calibration is None else self.calibration.ends


def _require_keys(name: str, values: Mapping[Any, object], *keys: str) -> None:
    if missing := [key for key in keys if key not in values]:
        raise ValueError(f"{name} has no {missing[0]!r}")


def _without_none(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """Fields of a record as format 1 has them: what is not there has no key."""
    for name in names:
        if fields[name] is None:
            del fields[name]
    return fields
