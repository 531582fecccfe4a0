"""What a run is made of: the pydantic models behind a YAML recipe.

Each default is written here (those of the losses in `losses_spec`) and nowhere else. Every model
is frozen and refuses unknown keys. Reading a file, overriding keys and wording mistakes is
`core.recipe.load`. Nothing here imports torch, so that validation is instant.

Defaults follow the AntiPaSTO paper (arXiv 2601.07473, Table 9) or its published code where an
experiment in `docs/LOG.md` does not say otherwise; the neutral branch has no counterpart there.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from pasto_cli.base.limits import MOST
from pasto_cli.base.text import is_blank
from pasto_cli.core.recipe.answers_spec import AnswersSpec
from pasto_cli.core.recipe.calibration_spec import CalibrationSpec
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.section import (
    Coefficient,
    Count,
    Fraction,
    Integer,
    NonNegative,
    Positive,
    Real,
    Section,
    Seed,
    Signed,
)
from pasto_cli.core.recipe.subspace_expression import parse_subspace
from pasto_cli.core.recipe.tune_spec import TuneSpec

LARGEST_DEVICE = 127
"""torch counts devices in a byte."""


class ModelSpec(Section):
    """The base model and how it is loaded."""

    source: str
    """Hub id (`org/name`), local folder, a `.gguf` file here, on the Hub (`hf:ORG/NAME/FILE.gguf`)
    or inside an installed Python package (`package:NAME/FILE.gguf`), or `random:NAME` for a small
    model with random weights (tests)."""
    revision: str | None = None
    """Hub revision: branch, tag or, best, a commit."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes quantisation of the base (4bit: NF4). The adapter itself stays in float32."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, else bfloat16."""
    device: str = "auto"
    """auto takes cuda, then mps, then cpu; balanced spreads the layers over all GPUs, and what does
    not fit there over memory and disk."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Only these two take the 4-D masks of token trees."""
    system: str | None = None
    """System message of every prompt. None adds none (a chat template may add its own)."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Off unless you have read that code."""

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        found = re.fullmatch(r"auto|balanced|cpu|mps|cuda(?::(0|[1-9][0-9]*))?", value)
        if not found or (found[1] and int(found[1][:4]) > LARGEST_DEVICE):
            raise ValueError(
                f"{value!r} is not a device; write auto, balanced, cpu, mps, cuda or cuda:N, N "
                f"from 0 to {LARGEST_DEVICE}"
            )
        return value


class HubSuffixes(Section):
    """Suffixes from a column of a dataset on the Hub."""

    dataset: str
    """Hub id of the dataset."""
    config: str | None = None
    """Configuration name, where the dataset has several."""
    split: str = "train"
    """Split to read."""
    column: str = "text"
    """Column that holds text; each is cut to its first `words` words."""
    revision: str | None = None
    """Hub revision."""
    words: Count = 10
    """Words kept of each text."""


class PairsSpec(Section):
    """The contrast pairs: a file, or two words and what to make pairs from."""

    file: str | None = None
    """A `pairs.jsonl` made before; then nothing else of this section is used."""
    words: tuple[str, str] | None = None
    """Positive and negative word or phrase: `[honest, dishonest]`. Articles are added: "an honest",
    "a dishonest"."""
    personas: tuple[str, str] | None = None
    """The same, word for word as they stand in the template: `["a cheerful, joyful", "a gloomy,
    miserable"]`."""
    templates: tuple[str, ...] = ()
    """Persona templates with `{persona}`; empty takes the bundled list."""
    suffixes: str | HubSuffixes = "bundled"
    """`bundled`, a text file with one opening per line, or a dataset on the Hub."""
    neutral_prompts: str = "bundled"
    """Prompts without a persona: `bundled`, or a text file with one per line."""
    count: Count = 800
    """How many pairs."""
    seed: Seed = 0
    """Seed of the draw of suffixes, templates and neutral prompts."""
    screen: Literal["report", "keep", "off"] = "report"
    """Before training, ask the model under every template: report says under which it answers in
    both personas, keep also leaves the others out, and refuses to train where none is left."""
    answers: AnswersSpec | None = None
    """Preference pairs from the model's own answers, for `losses.preference`; null makes none."""

    @field_validator("screen", mode="before")
    @classmethod
    def _screen(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `off` as false, and `on` as true.
        return {False: "off", True: "keep"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("words", "personas")
    @classmethod
    def _not_blank(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and any(is_blank(word) for word in value):
            raise ValueError(f"two words are needed, and one of {list(value)} is blank")
        return value

    @field_validator("templates")
    @classmethod
    def _templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{persona}") != 1:
                raise ValueError(f"{template!r} must hold {{persona}} exactly once")
            if set("{}") & set(template.replace("{persona}", "")):
                raise ValueError(f"{template!r} holds braces other than {{persona}}; take them out")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("file", "words", "personas") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"give exactly one of file, words, personas (found {found}); try words: [honest, "
                f"dishonest]"
            )
        return self


ROTATION_KEYS = ("bound", "max_angle", "init_theta_std", "init_delta_mean", "init_delta_std")
"""Keys of `AdapterSpec` that mean something to the kind cayley alone."""


class AdapterSpec(Section):
    """The learned change: its kind, where it sits and, for a rotation, how far it may turn."""

    kind: Literal["cayley", "lora"] = "cayley"
    """cayley rotates singular directions within an angle; lora adds a low-rank change that is
    linear in the coefficient and has no bound."""
    rank: Count = 64
    """Directions r kept per module (at most the module's smaller side)."""
    bound: Literal["spectral", "entrywise"] = "spectral"
    """spectral bounds every rotation angle; entrywise is the original's, which bounds entries
    only."""
    max_angle: Annotated[Real, Field(gt=0.0, lt=180.0)] = 45.0
    """Largest rotation angle at coefficient 1, degrees."""
    directions: Literal["residual", "activation", "top", "random"] = "residual"
    """How the r singular directions of a module are chosen."""
    max_modules: Count = 256
    """At most this many modules, spread evenly."""
    first_layer: Fraction = 0.1
    """Layers from floor(first_layer * L) ..."""
    last_layer: Fraction = 0.5
    """... up to, not including, floor(last_layer * L). Must not lie behind the loss depth."""
    activation_pairs: Count = 64
    """Pairs whose activations score the directions."""
    init_theta_std: Positive = 0.003
    """Standard deviation of the truncated normal that Theta starts from."""
    init_delta_mean: Signed = 4e-4
    """Mean of delta's start; not 0, since a symmetric start has no gradient."""
    init_delta_std: Positive = 4e-4
    """Standard deviation of delta's start."""

    @property
    def rotates(self) -> bool:
        """Whether the kind is one that `ROTATION_KEYS` mean something to."""
        return self.kind == "cayley"

    @model_validator(mode="after")
    def _kind(self) -> Self:
        given = [key for key in ROTATION_KEYS if key in self.model_fields_set]
        if given and not self.rotates:
            raise ValueError(
                f"kind: {self.kind} rotates nothing and has no {', '.join(given)}; take that out, "
                f"or write kind: cayley"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_means_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A recipe is stored with every default written out, and has to load again.
        fields: dict[str, Any] = handler(self)
        if self.rotates:
            return fields
        return {key: value for key, value in fields.items() if key not in ROTATION_KEYS}

    @model_validator(mode="after")
    def _layers(self) -> Self:
        if self.first_layer >= self.last_layer:
            raise ValueError(
                f"first_layer ({self.first_layer}) must be less than last_layer ({self.last_layer})"
            )
        return self


class SubspaceSpec(Section):
    """The directions in which the loss looks at the residual stream."""

    expression: str = "taskdiff"
    """Names joined by `&`, `~` before a name for its complement: taskdiff, suppressed, write,
    logits_read, random."""
    rank: Count = 4
    """Columns k of the basis P."""
    depth: Fraction = 0.5
    """Loss depth: the residual stream after layer floor(depth * L)."""
    last_tokens: Count = 3
    """Hidden states are averaged over this many last tokens of a row."""
    center: bool = False
    """Centre the cho - rej differences before PCA, as the original does; it throws the mean
    direction away."""

    @field_validator("expression")
    @classmethod
    def _expression(cls, value: str) -> str:
        parse_subspace(value)
        return value


class TrainingSpec(Section):
    """Optimiser, schedule, split."""

    epochs: Count = 30
    """Passes over the training pairs."""
    members: Count = 1
    """Adapters trained one after another, each from other initial weights and in another order of
    pairs and anchors; the dial is the mean of their weights."""
    batch_size: Annotated[Integer, Field(ge=2, le=MOST)] = 8
    """Pairs per forward pass; statistics are taken over it."""
    accumulation: Count = 1
    """Batches per optimiser step."""
    lr: Positive = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of AdamW."""
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    """Learning-rate schedule, in optimiser steps."""
    warmup: Fraction = 0.1
    """Share of the optimiser steps in which the learning rate rises."""
    constraint_ramp: Fraction = 0.2
    """Share of the optimiser steps in which the constraints' weights and the focus exponent rise
    from 0."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    validation: Annotated[Real, Field(gt=0.0, lt=0.5)] = 0.15
    """Share of the pairs kept for validation."""
    certificate: Annotated[Real, Field(gt=0.0, lt=0.5)] = 0.15
    """Share of the pairs kept for the certificate: neither trained nor validated on."""
    patience: Count = 16
    """Epochs without a better validation loss after which training stops."""
    validate_every: Count = 1
    """Epochs between validations."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 runs the layers (not the adapter's matrices, the output head or the losses) under
    autocast; auto does so where the processor multiplies bfloat16 natively and the model is
    float32."""
    node_budget: Annotated[Integer, Field(ge=64, le=MOST)] = 512
    """Nodes of a token tree on the base side and in the certificate; a training or validation batch
    is one tree."""
    base_cache_mb: NonNegative = 1024.0
    """Memory for the cached base side; what does not fit is computed again."""
    seed: Seed = 0
    """Seed of the split, the order of pairs and the initial weights."""


class EvaluationSpec(Section):
    """What `pasto eval` measures unless told otherwise."""

    benchmark: str = "mini-dilemmas"
    """A bundled name, `dailydilemmas`, or a benchmark file."""
    value: str = "honesty"
    """The value that the dial is meant to move."""
    coefficients: tuple[Coefficient, ...] = (-1.0, 0.0, 1.0)
    """Coefficients to measure at; 0, +1 and -1 are needed for the scores."""
    limit: Count | None = None
    """Dilemmas to take (whole ones, seeded); None takes all."""
    pmass_threshold: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.05
    """An answer row whose P(Yes) + P(No) is below this is invalid: counted, never replaced."""
    node_budget: Annotated[Integer, Field(ge=64, le=MOST)] = 512
    """Nodes of one token tree."""
    seed: Seed = 0
    """Seed of the choice of dilemmas and of the bootstrap."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """As training.precision, of the passes that score answers and disturbance."""


class Recipe(Section):
    """One run."""

    name: str
    """Name of the run: letters, digits, '.', '_' and '-'."""
    model: ModelSpec
    """Base model."""
    pairs: PairsSpec
    """Contrast pairs."""
    adapter: AdapterSpec = AdapterSpec()
    """Adapter."""
    subspace: SubspaceSpec = SubspaceSpec()
    """Loss subspace."""
    losses: LossesSpec = LossesSpec()
    """Loss terms."""
    training: TrainingSpec = TrainingSpec()
    """Training."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation."""
    calibration: CalibrationSpec | None = CalibrationSpec()
    """What +1 and -1 of the finished dial stand for; `off` leaves them at the coefficients of
    training."""
    tune: TuneSpec | None = None
    """Search over keys of this recipe, for `pasto tune`; a training does not look at it."""

    @model_serializer(mode="wrap")
    def _without_a_search(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if fields["tune"] is None:  # nothing that a run was made with
            del fields["tune"]
        return fields

    @field_validator("calibration", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare `off` as false.
        return None if value is False or value == "off" else value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            raise ValueError(
                f"{value!r} cannot name a folder; use up to 64 letters, digits, '.', '_' and '-'"
            )
        return value

    @model_validator(mode="after")
    def _adapters_before_loss(self) -> Self:
        if self.adapter.last_layer > self.subspace.depth:
            raise ValueError(
                f"adapter.last_layer ({self.adapter.last_layer}) lies behind subspace.depth "
                f"({self.subspace.depth}): "
                "modules behind the loss depth would not be trained by it; lower last_layer or "
                "raise depth"
            )
        return self

    @model_validator(mode="after")
    def _mean_of_rotations(self) -> Self:
        if self.training.members > 1 and not self.adapter.rotates:
            raise ValueError(
                f"training.members: {self.training.members} takes the mean of rotations, and "
                f"adapter.kind: {self.adapter.kind} has none; write members: 1, or kind: cayley"
            )
        return self

    @model_validator(mode="after")
    def _preference_of_answers(self) -> Self:
        if (self.losses.preference is None) != (self.pairs.answers is None):
            keys = ["losses.preference", "pairs.answers"]
            there, missing = keys if self.losses.preference is not None else reversed(keys)
            raise ValueError(f"{there} is of no use without {missing}; write {missing}: {{}} too")
        return self
