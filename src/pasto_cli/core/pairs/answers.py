"""Preference pairs from the model's own answers: what it says under each persona, persona gone.

The model is asked an everyday question under the positive persona and under the negative one. The
question alone, without a persona, is then a prompt with two answers: chosen, what was said under
the positive persona; rejected, what was said under the negative one.

    "You are an honest person. Q"   ->  chosen        pair: Q + chosen
    "You are a dishonest person. Q" ->  rejected            Q + rejected

Pairs that contrast something else are dropped: answers that are equal or empty, and answers that
open as a refusal does (`usable`). Here is text and token ids only; `core.training.own_answers` asks
the model.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.pairs.openings import (
    MAX_REFUSAL,
    Opening,
    commonest_opening,
    opening,
    own_words,
    takes_up,
)
from pasto_cli.core.pairs.pairs import Pair
from pasto_cli.core.pairs.split_files import read_split
from pasto_cli.core.recipe.answers_spec import AnswersSpec

MIN_QUESTIONS = 8
"""Fewer cannot be split into trained and held-out ones that say anything."""
MIN_HELD_OUT = 2
"""Questions: one has no interval."""


class Asked(NamedTuple):
    """One question under a template's two personas."""

    question: str
    personas: tuple[str, str]
    """Filled template: positive, negative."""
    sample: int
    """Which of the samples of this question it is."""

    @property
    def messages(self) -> tuple[str, str]:
        """What the model is asked under each persona."""
        positive, negative = (f"{persona}\n\n{self.question}" for persona in self.personas)
        return positive, negative


class AnswerPair(BaseModel):
    """Two answers to one question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    personas: tuple[str, str]
    """Under which the answers were given: positive, negative."""
    sample: int
    chosen: str
    rejected: str
    chosen_tokens: tuple[int, ...]
    """Token ids as they were sampled: text need not be tokenised into the same ones."""
    rejected_tokens: tuple[int, ...]


class AnswerSplit(NamedTuple):
    """Pairs that share no question."""

    train: list[AnswerPair]
    held_out: list[AnswerPair]

    @property
    def digest(self) -> str:
        """SHA-256 over both parts in order: names the set in an artifact."""
        return hashlib.sha256(_as_lines(self).encode()).hexdigest()


def load_questions(origin: str) -> list[str]:
    """Different questions: bundled, or of a text file with one per line.

    Raises:
        PastoError: If the file cannot be read, or holds fewer than `MIN_QUESTIONS`.
    """
    if origin == "bundled":
        return bundled.lines("questions.txt")
    found = list(dict.fromkeys(q.strip() for q in bundled.read_lines(origin, "questions")))
    if len(found) < MIN_QUESTIONS:
        raise PastoError(
            f"{origin} holds {len(found)} different questions, at least {MIN_QUESTIONS} are needed",
            "Add questions, one per line, or write pairs.answers.questions: bundled.",
        )
    return found


def draw_asked(questions: Sequence[str], pairs: Sequence[Pair], spec: AnswersSpec) -> list[Asked]:
    """What will be asked: questions, and for each sample of one a template of the recipe's pairs.

    Args:
        questions: From `load_questions`.
        pairs: Contrast pairs, for their personas.
        spec: Number of questions and samples, seed.
    """
    personas = list(dict.fromkeys((pair.chosen, pair.rejected) for pair in pairs))
    rng = random.Random(spec.seed)
    drawn = rng.sample(list(questions), min(spec.count, len(questions)))
    return [
        Asked(question, rng.choice(personas), sample)
        for question in drawn
        for sample in range(spec.samples)
    ]


def usable(pairs: Sequence[AnswerPair]) -> tuple[list[AnswerPair], Counter[str]]:
    """The pairs that contrast the personas, and why the others are dropped: reason -> how many.

    An answer opens as a refusal does if it begins with the commonest opening of a persona's answers
    and some of the other persona's begin like that too, or half of that persona's own do: such a
    pair contrasts answering with refusing, or nothing.
    """
    if not pairs:
        return [], Counter()
    each = [p.chosen_tokens for p in pairs], [p.rejected_tokens for p in pairs]
    refusals = {
        _refusal(commonest_opening(own), len(own), {opening(answer) for answer in other})
        for own, other in (each, each[::-1])
    }
    kept: list[AnswerPair] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        openings = {opening(pair.chosen_tokens), opening(pair.rejected_tokens)}
        if not (pair.chosen.strip() and pair.rejected.strip()):
            dropped["an answer is empty"] += 1
        elif pair.chosen.strip() == pair.rejected.strip():
            dropped["both answers are the same"] += 1
        elif _names_a_persona(pair):
            dropped["an answer names its persona"] += 1
        elif openings & refusals:
            dropped["an answer opens as most do: a refusal, or a set phrase"] += 1
        else:
            kept.append(pair)
    return kept, dropped


def _names_a_persona(pair: AnswerPair) -> bool:
    """Whether an answer opens with "As an honest person": that would teach the name alone."""
    positive, negative = pair.personas
    return takes_up(own_words(positive, negative), pair.chosen) or takes_up(
        own_words(negative, positive), pair.rejected
    )


def _refusal(
    commonest: Opening, answers: int, of_the_other: set[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The opening of a persona's refusals, where it has one."""
    if not commonest.times:  # it stands alone
        return None
    shared = commonest.tokens in of_the_other
    return commonest.tokens if shared or commonest.times / answers >= MAX_REFUSAL else None


def require_answers(kept: Sequence[AnswerPair], dropped: Counter[str]) -> None:
    """Refuse a set that is too small to be split.

    Raises:
        PastoError: With how many were dropped for what, and the next step.
    """
    questions = len({pair.question for pair in kept})
    if questions >= MIN_QUESTIONS:
        return
    why = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.most_common())
    total = len(kept) + dropped.total()
    raise PastoError(
        f"the model's own answers give {len(kept)} usable pairs of {total}, to {questions} "
        f"questions, at least {MIN_QUESTIONS} are needed" + (f" ({why})" if why else ""),
        "Keep the templates it answers under (pasto make-pairs --screen MODEL), or raise "
        "pairs.answers.count or temperature.",
    )


def split_answers(pairs: Sequence[AnswerPair], held_out: float, seed: int) -> AnswerSplit:
    """Whole questions are held out, at least `MIN_HELD_OUT`.

    Args:
        pairs: Of at least `MIN_QUESTIONS` questions.
        held_out: Share of the questions between 0 and 1.
        seed: Seed of the choice.
    """
    questions = list(dict.fromkeys(pair.question for pair in pairs))
    random.Random(seed).shuffle(questions)
    count = min(max(MIN_HELD_OUT, round(held_out * len(questions))), len(questions) - 1)
    kept = set(questions[:count])
    return AnswerSplit(
        [pair for pair in pairs if pair.question not in kept],
        [pair for pair in pairs if pair.question in kept],
    )


def _as_lines(split: AnswerSplit) -> str:
    return "".join(
        json.dumps({**pair.model_dump(), "part": part}, ensure_ascii=False) + "\n"
        for part, pairs in split._asdict().items()
        for pair in pairs
    )


def write_answers(split: AnswerSplit, path: Path) -> None:
    """Write a split as JSON lines: the fields of `AnswerPair`, and the part.

    Raises:
        PastoError: If it cannot be written.
    """
    write_text(path, _as_lines(split))


def read_answers(path: Path) -> AnswerSplit:
    """Read what `write_answers` wrote.

    Raises:
        PastoError: If the file is missing, or with the number of the first bad line.
    """
    return AnswerSplit(*read_split(path, AnswerPair.model_validate))
