"""Benchmark files, read: every mistake with its line. No torch.

YAML    dilemmas, questions and controls
JSONL   one question per line, ours or in the form of the model-written evaluations (Perez et
al., Discovering Language Model Behaviors with Model-Written Evaluations, arXiv
2212.09251)
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pasto_cli.base.errors import PastoError, message_of
from pasto_cli.base.marked_yaml import Document, KeyPath, dotted, read_yaml
from pasto_cli.base.safe_yaml import OwnLoader
from pasto_cli.base.strict_json import parse_json_object
from pasto_cli.core.evaluation.benchmarks.item import Benchmark, Item
from pasto_cli.core.evaluation.benchmarks.schema import (
    LETTERS,
    BenchmarkFile,
    Question,
    benchmark_of,
)

HELP = "See docs/benchmarks.md for the format."


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
        document = read_yaml(text, name)
    except PastoError as error:
        raise PastoError(error.message, HELP) from None
    problems = [f"{name}:{n}: {dotted(key)}: {said}" for n, key, said in document.problems]
    try:
        file = BenchmarkFile.model_validate(document.data)
    except ValidationError as error:
        raise _refused(name, [*problems, *_mistakes_in(document, name, error)]) from None
    if problems := problems + list(_ids_twice(file, document, name)):
        raise _refused(name, problems)
    return benchmark_of(file, controls)


def parse_bundled(text: str, controls: Callable[[], list[Item]]) -> Benchmark:
    """A benchmark of the package, from its YAML.

    Each call makes items of its own; the text is read once a process.
    """
    return benchmark_of(_bundled_file(text), controls)


@lru_cache(maxsize=8)
def _bundled_file(text: str) -> BenchmarkFile:
    return BenchmarkFile.model_validate(yaml.load(text, Loader=OwnLoader))


def _mistakes_in(document: Document, name: str, error: ValidationError) -> Iterator[str]:
    """What pydantic complains about, with the line, and what to write instead of a bare word."""
    for mistake in error.errors():
        location = _written(mistake["loc"])
        place = document.nearest(location)
        said = document.quote(location) if mistake["type"] == "string_type" else None
        line = place.line if place else 1
        yield f"{name}:{line}: {dotted(location) or 'file'}: {said or message_of(mistake)}"


def _ids_twice(file: BenchmarkFile, document: Document, name: str) -> Iterator[str]:
    """Every id that something before it has."""
    first: dict[str, int] = {}
    for section in ("dilemmas", "questions", "controls"):
        for index, one in enumerate(getattr(file, section)):
            place = document.nearest((section, index, "id"))
            line = place.line if place else 1
            if one.id in first:
                yield (
                    f"{name}:{line}: {section}[{index}].id: {one.id!r} is given twice, first in "
                    f"line {first[one.id]}"
                )
            first.setdefault(one.id, line)


def _refused(name: str, problems: Sequence[str]) -> PastoError:
    lines = list(dict.fromkeys(problems))
    more = [f"{name}: ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return PastoError("\n".join([*lines[:20], *more]), HELP)


def parse_jsonl(text: str, name: str, controls: Callable[[], list[Item]]) -> Benchmark:
    """Parse a JSONL benchmark: one question per line.

    An optional first line holds name, title, licence and source, or whatever a YAML file has beside
    its questions.

    Args:
        text: JSON lines.
        name: Name of the file; its stem names the benchmark, and the value of records without one.
        controls: Gives the control items.

    Raises:
        PastoError: With the line and the mistake of each bad line.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(name).stem).lstrip(".-")[:64] or "benchmark"
    head: dict[str, Any] = {
        "name": stem,
        "title": stem,
        "licence": "unknown",
        "source": Path(name).name,
    }
    questions: dict[str, Question] = {}
    first: dict[str, int] = {}
    problems: list[str] = []
    # Not splitlines: it would also cut at U+2028, which a string may hold.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for position, (number, line) in enumerate(lines):
        try:
            record = parse_json_object(line)
            if position == 0 and "question" not in record:
                head |= _head(record)
                continue
            one = Question.model_validate({"id": f"q{number}", "value": stem} | _own_form(record))
            if one.id in questions:
                raise ValueError(f"id {one.id!r} is given twice, first in line {first[one.id]}")
            questions[one.id], first[one.id] = one, number
        except ValidationError as error:
            problems += [f"{name}:{number}: {_said(e)}" for e in error.errors()]
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
    if problems:
        raise _refused(name, problems)
    if not questions:
        raise PastoError(f"{name}: there are no questions", HELP)
    try:
        file = BenchmarkFile.model_validate(
            {"format": 1, **head, "questions": tuple(questions.values())}
        )
    except ValidationError as error:  # the questions are good: it is the first line
        raise _refused(
            name, [f"{name}:{lines[0][0]}: {_said(e)}" for e in error.errors()]
        ) from None
    return benchmark_of(file, controls)


def _written(location: KeyPath) -> KeyPath:
    """A location of pydantic's without the names of branches of unions, such as `literal[...]`."""
    return tuple(part for part in location if isinstance(part, int) or "[" not in part)


def _said(mistake: ErrorDetails) -> str:
    where = dotted(_written(mistake["loc"]))
    return f"{where}: {message_of(mistake)}" if where else message_of(mistake)


def _head(record: dict[str, Any]) -> dict[str, Any]:
    """The first line of a JSONL benchmark, where it is no question."""
    if unknown := sorted(record.keys() - (BenchmarkFile.model_fields.keys() - {"questions"})):
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
