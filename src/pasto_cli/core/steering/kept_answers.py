"""The clean base's answers to prompts, kept on disk: asking again costs a file, not the model.

One JSON file per set of answers in $PASTO_CACHE/answers, here of token ids. Its name is a hash of
all that they depend on: the prompts in tokens, how they are decoded, the base, how it is computed
with.
A run with a full cache has the same answers as one with an empty one. The folder may be deleted at
any time.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from pasto_cli.base.cache import cached_file, keep
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.generation import Decoding, greedy_answers

Rows = list[list[int]]
"""Token ids."""
_TOKENS = TypeAdapter(Rows)


def kept_greedy_answers(
    lm: LoadedModel, rows: Rows, tokens: int, progress: Callable[[int], None] = lambda _: None
) -> Rows:
    """`greedy_answers` to each row, kept where the base has a commit or a hash that names it.

    Args:
        lm: The base model.
        rows: Token ids of prompts.
        tokens: Longest answer.
        progress: Told how many answers there are more.
    """

    def ask() -> Rows:
        return greedy_answers(lm, rows, tokens, progress)

    if lm.commit is None:
        return ask()
    return kept_answers(lm, rows, Decoding(tokens), f"{lm.spec.source} {lm.commit}", ask, progress)


def kept_answers(
    lm: LoadedModel,
    rows: Rows,
    how: Decoding,
    base: str,
    ask: Callable[[], Rows],
    progress: Callable[[int], None] = lambda _: None,
) -> Rows:
    """Answers from the cache, or asked for now.

    Args:
        lm: The base model.
        rows: Token ids of prompts.
        how: The decoding.
        base: What names the weights and the configuration.
        ask: Answers the rows, and tells its progress itself.
        progress: Told how many answers the cache gave.
    """
    path = answers_file({"prompts": rows, "decoding": how._asdict()} | base_facts(lm, base))
    found = None if path is None else _read(path, len(rows))
    if found is not None:
        progress(len(rows))
        return found
    found = ask()
    text = json.dumps(found)
    keep(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return found


def base_facts(lm: LoadedModel, base: str) -> dict[str, Any]:
    """What a base's answers depend on, beside the questions.

    Args:
        lm: The base model.
        base: What names the weights and the configuration.
    """
    return {
        "base": base,
        "spec": lm.spec.model_dump(mode="json", exclude={"source", "revision"}),
        "dtype": str(lm.dtype),
        "layers": "bfloat16" if lm.autocast else str(lm.dtype),
        "decoded": "trees" if lm.trees else "equal lengths",
        "device": lm.device.type,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def answers_file(facts: Mapping[str, Any]) -> Path | None:
    """The place in the cache of what depends on these facts alone; None where there is no cache."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
    return cached_file("answers", f"{name}.json")


def _read(path: Path, count: int) -> Rows | None:
    """The answers of a file, if it is whole and holds as many as there are prompts."""
    try:
        answers = _TOKENS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return answers if len(answers) == count else None
