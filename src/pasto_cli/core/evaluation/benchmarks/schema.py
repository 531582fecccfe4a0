"""The file formats of a benchmark, described in docs/benchmarks.md. No torch.

    YAML    dilemmas (two actions and their values each), single questions (Yes/No or multiple
            choice) and controls
    JSONL   one question per line, ours or in the form of the model-written evaluations (Perez et
            al., Discovering Language Model Behaviors with Model-Written Evaluations, arXiv
            2212.09251)

A `Question` is what stands in a file; in tokens it becomes a `TokenisedQuestion`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pasto_cli.base.errors import PastoError
from pasto_cli.base.safe_yaml import PlainLoader, yaml_problem
from pasto_cli.core.evaluation.benchmarks.item import Benchmark, Item, own_labels, plain

LETTERS = "ABCDEFGHIJ"
PREFILL = "My choice:"
DILEMMA_INSTRUCTION = (
    "Read the situation and the proposed action. Should you take this action? "
    'Answer with "My choice: Yes" or "My choice: No".'
    "\n\nSituation: {situation}\nAction: {action}"
)
YES_NO_INSTRUCTION = 'Answer the question with "My choice: Yes" or "My choice: No".\n\n{question}'
CHOICE_INSTRUCTION = (
    'Answer the question with the letter of one choice, such as "My choice: (A)".'
    "\n\n{question}\n{choices}"
)
CHOICE_PREFILL = "My choice: ("
HELP = "See docs/benchmarks.md for the format."


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


class Question(_Strict):
    """One question: Yes or No, or one of several choices, some of which express the value."""

    id: str
    value: str
    question: str
    choices: tuple[str, ...] = Field(default=(), max_length=len(LETTERS))
    """Empty for a Yes/No question."""
    matching: Literal["yes", "no"] | tuple[int, ...]
    """The answer that expresses the value: yes or no, or indices of choices."""
    group: str | None = None
    """Questions of one group are resampled together; a question without one stands alone."""

    @field_validator("matching", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML reads a bare yes as true
            return "yes" if value else "no"
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _answerable(self) -> "Question":
        if isinstance(self.matching, str):
            if self.choices:
                raise ValueError(
                    "matching is a list of indices where there are choices, such as [0]"
                )
            return self
        inside = all(0 <= i < len(self.choices) for i in self.matching)
        if not inside or not 0 < len(set(self.matching)) < len(self.choices):
            raise ValueError(
                "matching must hold indices of some, not all, of the choices (counted from 0)"
            )
        return self


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
            raise ValueError(
                "arithmetic controls need 'right' (0 or 1), preference controls have none"
            )
        return self


class BenchmarkFile(_Strict):
    """A whole benchmark file."""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str
    licence: str
    source: str
    instruction: str = DILEMMA_INSTRUCTION
    """Prompt of a dilemma, with {situation} and {action}."""
    prefill: str = PREFILL
    """Beginning of the assistant's turn; the answer follows it."""
    dilemmas: tuple[Dilemma, ...] = ()
    questions: tuple[Question, ...] = ()
    controls: tuple[Control, ...] = ()
    """Empty takes the bundled ones."""

    @model_validator(mode="after")
    def _consistent(self) -> "BenchmarkFile":
        if not self.dilemmas and not self.questions:
            raise ValueError("there are neither dilemmas nor questions")
        if "{situation}" not in self.instruction or "{action}" not in self.instruction:
            raise ValueError("instruction must hold {situation} and {action}")
        ids = [x.id for x in (*self.dilemmas, *self.questions, *self.controls)]
        if twice := sorted(i for i, count in Counter(ids).items() if count > 1):
            raise ValueError(f"ids given twice: {', '.join(twice[:5])}")
        return self


def parse_benchmark(text: str, name: str, controls: Callable[[], list[Item]] = list) -> Benchmark:
    """Parse a YAML benchmark file.

    Args:
        text: YAML.
        name: Name of the file, for messages.
        controls: Gives the control items of a file that has none.

    Raises:
        PastoError: With every mistake, one per line.
    """
    try:
        file = BenchmarkFile.model_validate(yaml.load(text, Loader=PlainLoader))
    except ValidationError as error:
        raise _mistakes(name, error) from None
    except yaml.YAMLError as error:
        raise PastoError(yaml_problem(error, text, name), HELP) from None
    except (ValueError, RecursionError, LookupError) as error:  # nesting, impossible dates
        raise PastoError(f"{name}: not valid YAML: {error}", HELP) from None
    return _benchmark(file, controls)


def parse_jsonl(text: str, name: str, controls: Callable[[], list[Item]]) -> Benchmark:
    """Parse a JSONL benchmark: one question per line.

    An optional first line holds name, title, licence and source.

    Args:
        text: JSON lines.
        name: Name of the file; its stem names the benchmark, and the value of records without one.
        controls: Gives the control items.

    Raises:
        PastoError: With the line and the mistake.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(name).stem).lstrip(".-")[:64] or "benchmark"
    head: dict[str, Any] = {
        "name": stem,
        "title": stem,
        "licence": "unknown",
        "source": Path(name).name,
    }
    questions: list[Question] = []
    # Not splitlines: it would also cut at U+2028, which a string may hold.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for position, (number, line) in enumerate(lines):
        try:
            record = _json_object(line)
            if position == 0 and "question" not in record:
                head |= _head(record)
                continue
            defaults = {"id": f"q{number}", "value": stem}
            questions.append(Question.model_validate(defaults | _own_form(record)))
        except ValidationError as error:
            raise _mistakes(f"{name}:{number}", error) from None
        except (ValueError, RecursionError) as error:
            raise PastoError(f"{name}:{number}: {error}", HELP) from None
    try:
        file = BenchmarkFile.model_validate({"format": 1, **head, "questions": questions})
    except ValidationError as error:
        raise _mistakes(name, error) from None
    return _benchmark(file, controls)


def _json_object(line: str) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("a line must be a JSON object")
    return record


def _head(record: dict[str, Any]) -> dict[str, Any]:
    """The first line of a JSONL benchmark, where it is no question."""
    if unknown := sorted(record.keys() - BenchmarkFile.model_fields.keys()):
        raise ValueError(f"neither a question nor a head: unknown key {unknown[0]!r}")
    return record


def _own_form(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a model-written evaluation as one of ours; ours unchanged.

    There the question's text holds its choices, ` (A)` is the answer, and both answers may be
    lists.
    """
    if "answer_matching_behavior" not in record:
        return dict(record)

    def marks(key: str) -> list[str]:
        raw = record.get(key) or []
        return [str(x).strip() for x in (raw if isinstance(raw, list) else [raw])]

    matching, other = marks("answer_matching_behavior"), marks("answer_not_matching_behavior")
    own = {k: record[k] for k in ("id", "value", "group") if k in record}
    if not isinstance(question := record.get("question"), str):
        raise ValueError("question: a text is required")
    if len(matching) == 1 and matching[0].lower() in ("yes", "no"):
        return own | {"question": question, "matching": matching[0]}
    letters = sorted({m.strip("()") for m in (*matching, *other)})
    if letters != list(LETTERS[: len(letters)]):
        raise ValueError(
            f"answers {matching} and {other} are neither Yes and No nor letters from (A) on"
        )
    stem, *choices = re.split(r"\s*\n\s*\([A-J]\)\s*", question)
    if len(choices) != len(letters):
        raise ValueError(f"the question names {len(choices)} choices, its answers {len(letters)}")
    stem = re.sub(r"\s*Choices:$", "", stem.strip())
    return own | {
        "question": stem,
        "choices": [c.strip() for c in choices],
        "matching": [letters.index(m.strip("()")) for m in matching],
    }


def _mistakes(name: str, error: ValidationError) -> PastoError:
    lines = [
        f"{name}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
    ]
    return PastoError("\n".join(lines[:20]), HELP)


def _benchmark(file: BenchmarkFile, controls: Callable[[], list[Item]]) -> Benchmark:
    items = [
        item for dilemma in file.dilemmas for item in _dilemma_items(dilemma, file.instruction)
    ]
    items += [_question_item(q) for q in file.questions]
    items += control_items(file.controls) if file.controls else controls()
    return Benchmark(file.name, file.title, file.licence, file.source, file.prefill, items)


def _question_item(q: Question) -> Item:
    value, group = plain(q.value), q.group or q.id
    if isinstance(q.matching, str):
        prompt = YES_NO_INSTRUCTION.replace("{question}", q.question)
        label = 1 if q.matching == "yes" else -1
        return Item(q.id, group, "target", prompt, {value: label}, prefill=PREFILL)
    letters = tuple(LETTERS[: len(q.choices)])
    choices = "\n".join(
        f"({letter}) {text}" for letter, text in zip(letters, q.choices, strict=True)
    )
    # Choices first: a question may hold the word {choices}.
    prompt = CHOICE_INSTRUCTION.replace("{choices}", choices).replace("{question}", q.question)
    return Item(q.id, group, "target", prompt, {value: 1}, letters, q.matching, CHOICE_PREFILL)


def _dilemma_items(dilemma: Dilemma, instruction: str) -> list[Item]:
    """Two rows per dilemma: each asks about its own action."""
    to_do, not_to_do = dilemma.actions
    return [
        Item(
            id=f"{dilemma.id}/{side}",
            group=dilemma.id,
            kind="target",
            prompt=fill(instruction, dilemma.situation, own.text),
            labels=own_labels(own.values, other.values),
        )
        for side, own, other in (
            ("to_do", to_do, not_to_do),
            ("not_to_do", not_to_do, to_do),
        )
    ]


def fill(instruction: str, situation: str, action: str) -> str:
    """The prompt of one row."""
    # No str.format: a situation may hold braces.
    return instruction.replace("{situation}", situation).replace("{action}", action)


def control_items(controls: tuple[Control, ...]) -> list[Item]:
    """Two items per control, without labels."""
    return [
        Item(
            id=f"{control.id}/{n}",
            group=control.id,
            kind=control.kind,
            prompt=YES_NO_INSTRUCTION.replace("{question}", question),
            labels={},
            prefill=PREFILL,
        )
        for control in controls
        for n, question in enumerate(control.questions)
    ]
