"""What the base answers to a benchmark's questions: the middle column of every method's table.

At coefficient 0 every method is the base, so that one asking does for all methods, and, kept on
disk, for every later dial of that base. It is a pass of its own, also the first time: whatever was
kept, the numbers are the same.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from pasto_cli.base.cache import keep
from pasto_cli.core.evaluation.questions import Answers, TokenisedQuestion, score_answers
from pasto_cli.core.models import distributed
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.kept_answers import answers_file, base_facts
from pasto_cli.core.steering.steerer import NoOpSteerer


class _Kept(BaseModel):
    """The content of a file."""

    log_p: list[list[float]]
    """[q][a], as many as a question has answers."""
    top_token: list[str]
    """[q]."""


def base_answers(
    lm: LoadedModel,
    questions: Sequence[TokenisedQuestion],
    budget: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """`score_answers` at coefficient 0 alone, kept where the base has a commit or a hash.

    Args:
        lm: The base model, with its layers in the precision of the methods' passes.
        questions: Prompts and ways to answer.
        budget: Nodes of one token tree, the answers' own nodes left out.
        progress: Told how many questions there are more.

    Returns:
        Answers with c = 1.
    """
    path = None
    if lm.commit is not None:
        asked = {"questions": questions, "node_budget": budget}
        path = answers_file(asked | base_facts(lm, f"{lm.spec.source} {lm.commit}"))
    # What the first process has decides: to ask takes all of them.
    kept = distributed.all_gather_object(_read(path, questions))[0]
    if kept is not None:
        progress(len(questions))
        return _restored(kept)
    found = score_answers(lm, NoOpSteerer(), questions, [0.0], budget, progress)
    log_p = [
        row[: len(question.answers)]
        for row, question in zip(found.log_p[0].tolist(), questions, strict=True)
    ]
    text = json.dumps({"log_p": log_p, "top_token": found.top_token[0]})
    keep(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return found


def _read(path: Path | None, questions: Sequence[TokenisedQuestion]) -> _Kept | None:
    """What a file holds, if it is whole and about as many answers."""
    if path is None:
        return None
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    counts = [len(question.answers) for question in questions]
    whole = [len(row) for row in kept.log_p] == counts and len(kept.top_token) == len(counts)
    return kept if whole else None


def _restored(kept: _Kept) -> Answers:
    widest = max(map(len, kept.log_p))
    rows = [row + [float("-inf")] * (widest - len(row)) for row in kept.log_p]
    return Answers(torch.tensor([rows], dtype=torch.float64), [kept.top_token])
