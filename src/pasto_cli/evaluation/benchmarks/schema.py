"""The file format of a benchmark: YAML with dilemmas (two actions and their values each) and controls."""

from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pasto_cli.errors import PastoError
from pasto_cli.evaluation.benchmarks.item import Benchmark, Item, own_labels


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Action(_Strict):
    """One of the two actions of a dilemma."""

    text: str
    values: tuple[str, ...] = Field(min_length=1)


class Dilemma(_Strict):
    """A situation and its two actions."""

    id: str
    situation: str
    actions: tuple[Action, Action]


class Control(_Strict):
    """Two mirrored questions whose answers no value should move."""

    id: str
    kind: Literal["preference", "arithmetic"]
    questions: tuple[str, str]
    right: Literal[0, 1] | None = None
    """Arithmetic: index of the question whose right answer is Yes."""

    @model_validator(mode="after")
    def _right(self) -> "Control":
        if (self.kind == "arithmetic") != (self.right is not None):
            raise ValueError("arithmetic controls need 'right' (0 or 1), preference controls have none")
        return self


class BenchmarkFile(_Strict):
    """A whole benchmark file."""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str
    licence: str
    source: str
    instruction: str
    """Prompt with {situation} and {action}."""
    prefill: str
    dilemmas: tuple[Dilemma, ...] = Field(min_length=1)
    controls: tuple[Control, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "BenchmarkFile":
        if "{situation}" not in self.instruction or "{action}" not in self.instruction:
            raise ValueError("instruction must hold {situation} and {action}")
        ids = [x.id for x in (*self.dilemmas, *self.controls)]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"ids given twice: {', '.join(twice[:5])}")
        return self


def parse_benchmark(text: str, name: str) -> Benchmark:
    """Parse a benchmark file.

    Args:
        text: YAML.
        name: Of the file, for messages.

    Raises:
        PastoError: With every mistake, one a line.
    """
    try:
        file = BenchmarkFile.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        lines = [f"{name}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise PastoError("\n".join(lines[:20]), "See mini-dilemmas.yaml in the package for the format.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PastoError(f"{name}: not valid YAML: {error}", "See mini-dilemmas.yaml in the package for the format.") from None
    items = [item for dilemma in file.dilemmas for item in _dilemma_items(dilemma, file.instruction)]
    items += control_items(file.controls)
    return Benchmark(file.name, file.title, file.licence, file.source, file.prefill, items)


def _dilemma_items(dilemma: Dilemma, instruction: str) -> list[Item]:
    items = []
    for side, own, other in (("to_do", *dilemma.actions), ("not_to_do", *reversed(dilemma.actions))):
        prompt = fill(instruction, dilemma.situation, own.text)
        items.append(Item(f"{dilemma.id}/{side}", dilemma.id, "target", prompt, own_labels(own.values, other.values)))
    return items


def fill(instruction: str, situation: str, action: str) -> str:
    """The prompt of one row. No str.format: a situation may hold braces."""
    return instruction.replace("{situation}", situation).replace("{action}", action)


def control_items(controls: tuple[Control, ...]) -> list[Item]:
    """Two items a control, without labels."""
    instruction = 'Answer the question with "My choice: Yes" or "My choice: No".\n\n{question}'
    return [
        Item(f"{c.id}/{n}", c.id, c.kind, instruction.replace("{question}", question), {})
        for c in controls
        for n, question in enumerate(c.questions)
    ]
