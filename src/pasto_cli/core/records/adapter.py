"""pasto.json: what an adapter is, where it came from and what it was shown to do.

The words of its numbers: strength is in prompt-equivalents (1 is half of the way from the rejected
to the chosen persona prompt), disturbance is KL to the base in nats. Records only, no torch.
"""

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

from pasto_cli.base.errors import PastoError
from pasto_cli.base.statistics import Estimate
from pasto_cli.core.recipe.schema import ModelSpec
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

    @model_serializer(mode="wrap")
    def _without_absent_anchors(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(handler(self), "specificity")


class BaseInfo(BaseModel):
    """The model that an adapter was made for."""

    model_config = ConfigDict(extra="forbid")

    spec: ModelSpec
    commit: str | None
    architecture: str
    dtype: str
    fingerprints: dict[str, str]
    """Module path -> SHA-256 of the weight as it was in memory."""


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


class Calibration(BaseModel):
    """How far the dial may be turned for a stated disturbance of the base model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kl_p95: float
    """The budget: KL(p_0 || p_a) at the 95th percentile of the tokens of neutral answers, nats."""
    coefficients: dict[Literal["1", "-1"], float]
    """Sign -> the coefficient that reaches it."""
    reached: dict[Literal["1", "-1"], StoredEstimate]
    """Sign -> KL p95 there, nats."""
    quantization: str
    """Quantisation of the base that it was measured on."""

    @model_validator(mode="after")
    def _signs(self) -> Self:
        if not (self.coefficients.get("1", 0.0) > 0 > self.coefficients.get("-1", 0.0)):
            raise ValueError("a calibration has a positive and a negative coefficient")
        return self


class Meta(BaseModel):
    """pasto.json."""

    model_config = ConfigDict(extra="forbid")

    format_version: int
    created: str
    base: BaseInfo
    bound: Literal["spectral", "entrywise"]
    max_angle: float = Field(gt=0.0, lt=180.0, allow_inf_nan=False)
    """Degrees, as the recipe says."""
    largest_angle: float
    """True largest rotation angle at coefficient 1, degrees."""
    recipe: Annotated[dict[str, Any], BeforeValidator(upgrade_recipe)]
    tensors_sha256: str | None = None
    """SHA-256 of adapter.safetensors; written by `save`."""
    pairs_sha256: str
    anchors_sha256: str | None = None
    """SHA-256 of the anchors, trained and held out; left out of the file where there are none."""
    answers_sha256: str | None = None
    """SHA-256 of the model's own answers, trained and held out; left out likewise."""
    num_pairs: dict[str, int]
    personas: list[str]
    """One filled template of each persona: positive, negative."""
    training: TrainingRecord | ImportRecord
    certificate: Certificate | None
    calibration: Calibration | None = None
    """Made by `pasto calibrate`."""
    reference: Reference
    versions: dict[str, str]

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(_without_none(handler(self), "anchors_sha256"), "answers_sha256")

    def coefficient(self, strength: float) -> float:
        """The coefficient of a strength in per cent of the calibrated one.

        Raises:
            PastoError: Without a calibration, or beyond 100 %.
        """
        if self.calibration is None:
            raise PastoError(
                "this dial is not calibrated, so that per cent mean nothing",
                "Run pasto calibrate, or use --coeff.",
            )
        if not abs(strength) <= 100:
            raise PastoError(
                f"strength {strength:g} is not between -100 and 100 per cent",
                "Use --coeff to go further.",
            )
        if strength == 0:
            return 0.0
        return abs(strength) / 100 * self.calibration.coefficients["1" if strength > 0 else "-1"]


def _without_none(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields of a record as format 1 has them: what is not there has no key."""
    if fields[name] is None:
        del fields[name]
    return fields
