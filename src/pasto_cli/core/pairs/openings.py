"""How answers open. Pure functions of token ids: of any tokenizer and any language.

A model that refuses says one thing to every question, so that the commonest opening of its answers
tells a refusal without a list of phrases.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

OPENING_TOKENS = 4
"""Tokens of an answer that count as its opening."""
MAX_REFUSAL = 0.5
"""Share of answers with one opening from which a persona is said to give one answer to all."""


class Opening(NamedTuple):
    """One opening among some answers."""

    tokens: tuple[int, ...]
    share: float
    """Share of the answers that begin with it; 0 for one that stands alone."""


def opening(answer: Sequence[int]) -> tuple[int, ...]:
    """The opening of an answer in token ids."""
    return tuple(answer[:OPENING_TOKENS])


def commonest_opening(answers: Sequence[Sequence[int]]) -> Opening:
    """The commonest opening of at least one answer, each in token ids."""
    tokens, count = Counter(map(opening, answers)).most_common(1)[0]
    return Opening(tokens, count / len(answers) if count > 1 else 0.0)
