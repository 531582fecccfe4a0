"""Exact log-probabilities of short answers, as leaves of a token tree.

An answer such as Yes is the sum over the exact ways to write it (case, leading space or newline,
bold). Each way is a path of tokens; all but the last token of a path are nodes of the tree, so most
ways cost no node at all.

Legend: c coefficients, q prompts, a answers (Yes, No).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.forward import run
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import Pieces
from pasto_cli.core.models.tokentree import cut, pack
from pasto_cli.core.steering.steerer import Steerer

YES_NO = ("Yes", "No")


class TokenisedQuestion(NamedTuple):
    """A prompt in tokens and the ways to write each answer after it."""

    ids: list[int]
    answers: tuple[tuple[tuple[int, ...], ...], ...]
    """For each answer its ways, none a continuation of another."""


class Answers(NamedTuple):
    """What a model answers to some questions."""

    log_p: Tensor
    """(c, q, a) float64, cpu: log-probability of each answer, all ways together; -inf where a
    question has fewer answers."""
    said: list[list[str]]
    """[c][q]: likeliest next token after the prompt."""


def ask(chat: Chat, user: str, prefill: str, answers: Sequence[str] = YES_NO) -> TokenisedQuestion:
    """A question in tokens.

    Args:
        chat: Rendering of the model.
        user: The user's message.
        prefill: Opening of the assistant's turn.
        answers: The words that count.
    """
    text = chat.text(user) + prefill
    ids = chat.continued(user, prefill)
    return TokenisedQuestion(ids, tuple(_ways(chat, text, ids, word) for word in answers))


def _ways(chat: Chat, text: str, ids: list[int], word: str) -> tuple[tuple[int, ...], ...]:
    found = {
        tuple(chat.continuation(text, ids, space + mark + form))
        for space in ("", " ", "\n")
        for mark in ("", "**")
        for form in (
            {word} if len(word) == 1 else {word, word.lower(), word.upper()}
        )  # "a" is an article, not a choice
    }
    # A way that continues another one is part of it: counting both would count its mass twice.
    return tuple(
        sorted(way for way in found if not any(way[:n] in found for n in range(1, len(way))))
    )


@torch.no_grad()
def score_answers(
    lm: LoadedModel,
    steerer: Steerer,
    questions: Sequence[TokenisedQuestion],
    coefficients: Sequence[float],
    budget: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Log-probabilities of the answers to every question at every coefficient.

    Args:
        lm: The base model.
        steerer: Sets the coefficients, one for each batch row.
        questions: Prompts and ways to answer.
        coefficients: c of them, in one forward pass.
        budget: Nodes of one token tree.
        progress: Told how many questions each pass has answered.
    """
    widest = max(len(q.answers) for q in questions)
    result = torch.full(
        (len(coefficients), len(questions), widest), float("-inf"), dtype=torch.float64
    )
    said = [[""] * len(questions) for _ in coefficients]
    groups = cut([q.ids for q in questions], budget, lm.trees)

    def answer(group: list[int]) -> None:
        rows, owner = [], []
        for index in group:
            stems = {way[:-1] for ways in questions[index].answers for way in ways} | {()}
            for stem in sorted(stems):
                rows.append([*questions[index].ids, *stem])
                owner.append((index, stem))
        packed = pack(rows, lm.trees)
        with steerer.at([a for a in coefficients for _ in range(packed.input_ids.shape[0])]):
            states = run(lm, packed, rows=len(coefficients))
        paths = dict(zip(owner, packed.paths, strict=True))
        for index in group:
            _answer(lm, states.last, paths, questions[index], index, result, said)
        progress(len(group))

    pieces = Pieces(answer)
    for group in distributed.shard(groups):
        pieces(group)
    if distributed.size() > 1:
        own = [i for group in distributed.shard(groups) for i in group]
        for some, values, words in distributed.all_gather_object(
            (own, result[:, own], [[row[i] for i in own] for row in said])
        ):
            result[:, some] = values
            for row, mine in zip(said, words, strict=True):
                for i, word in zip(some, mine, strict=True):
                    row[i] = word
        progress(len(questions) - len(own))
    return Answers(result, said)


def _answer(
    lm: LoadedModel,
    last: Tensor,
    paths: dict[tuple[int, tuple[int, ...]], Tensor],
    question: TokenisedQuestion,
    index: int,
    result: Tensor,
    said: list[list[str]],
) -> None:
    """Fill in one question's answers; log-probabilities are taken at the nodes that its ways pass
    through only."""
    nodes: dict[tuple[int, ...], int] = {}  # stem -> node at its end
    for ways in question.answers:
        for way in ways:
            for length in range(len(way)):
                path = paths[(index, way[:-1])]
                nodes[way[:length]] = int(path[len(question.ids) - 1 + length])
    stems = list(nodes)
    log_p = (
        lm.head(last[:, [nodes[s] for s in stems]]).log_softmax(-1).cpu().double()
    )  # (c, stems, v)
    where = {stem: i for i, stem in enumerate(stems)}
    for a, ways in enumerate(question.answers):
        each = torch.stack(
            [
                sum(
                    (log_p[:, where[way[:n]], way[n]] for n in range(len(way))),
                    torch.zeros(len(log_p)),
                )
                for way in ways
            ]
        )
        result[:, index, a] = torch.logsumexp(each, 0)
    for c, token in enumerate(log_p[:, where[()]].argmax(-1).tolist()):
        said[c][index] = lm.tokenizer.decode([token])
