"""How answers open. Pure functions of token ids and words, of any language.

A model that refuses says one thing to every question, so that the commonest opening of its answers
tells a refusal without a list of phrases.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

OPENING_TOKENS = 4
"""Tokens of an answer that count as its opening."""
MAX_REFUSAL = 0.5
"""Share of answers with one opening from which a persona is said to give one answer to all."""


TAKES_UP = 6
"""Words within which an answer that speaks of the persona takes it up."""


class Opening(NamedTuple):
    """One opening among some answers."""

    tokens: tuple[int, ...]
    times: int
    """Answers that begin with it; 0 for one that stands alone."""


def opening(answer: Sequence[int]) -> tuple[int, ...]:
    """The opening of an answer in token ids."""
    return tuple(answer[:OPENING_TOKENS])


def commonest_opening(answers: Sequence[Sequence[int]]) -> Opening:
    """The commonest opening of at least one answer, each in token ids."""
    tokens, count = Counter(map(opening, answers)).most_common(1)[0]
    return Opening(tokens, count if count > 1 else 0)


def echoes(persona: str, text: str) -> bool:
    """Whether a text repeats a word of the persona (of four letters or more, case aside)."""
    return not _words(persona, 4).isdisjoint(_words(text))


def takes_up(persona: str, answer: str) -> bool:
    """Whether an answer opens by naming the persona: "As an honest person, I ..."."""
    return echoes(persona, " ".join(answer.split()[:TAKES_UP]))


def own_words(persona: str, other: str) -> str:
    """The words of one filled template that the other persona's has not."""
    return " ".join(sorted(_words(persona) - _words(other)))


def _words(text: str, shortest: int = 1) -> set[str]:
    return {w for w in re.findall(r"\w+", text.lower()) if len(w) >= shortest}
