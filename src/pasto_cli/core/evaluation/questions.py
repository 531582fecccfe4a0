"""Exact log-probabilities of short answers, as leaves of a token tree.

    log P(answer) = logsumexp over its ways of sum_i log p(token_i | prompt, tokens before it)

An answer such as Yes is the sum over the exact ways to write it (case, leading space or newline,
bold): a scorer that knows only " Yes" misses most of what instruct models say. Each way is a path
of tokens; all but the last token of a path are nodes of the tree, so that most ways, which are one
token long, cost no node at all.

A whole reply is one way of many tokens. The longer of two replies is the less likely one whatever
it says, so that a token's mean is what is compared:

    log P(reply) = mean_i log p(token_i | prompt, tokens before it)

Legend: c coefficients, q prompts, a answers (Yes, No), v vocabulary. A stem is a way without its
last token: what has to be run after the prompt.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import Chat
from pasto_cli.core.models.forward import RowStates, hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.tokentree import cut
from pasto_cli.core.steering.overflow import require_true_logits
from pasto_cli.core.steering.steerer import Steerer

YES_NO = ("Yes", "No")

Way = tuple[int, ...]
"""One exact way to write an answer, in tokens."""


class TokenisedQuestion(NamedTuple):
    """A prompt in tokens and the ways to write each answer after it."""

    ids: list[int]
    answers: tuple[tuple[Way, ...], ...]
    """For each answer its ways, none a continuation of another."""
    whole: bool = False
    """The answers are whole replies, each with one way, of which the mean per token counts."""


class Answers(NamedTuple):
    """What a model answers to some questions."""

    log_p: Tensor
    """(c, q, a) float64, cpu: log-probability of each answer, all ways together; -inf where a
    question has fewer answers."""
    top_token: list[list[str]]
    """[c][q]: likeliest next token after the prompt."""


def ask(
    chat: Chat,
    user: str,
    prefill: str,
    answers: Sequence[str] = YES_NO,
    *,
    whole: bool = False,
) -> TokenisedQuestion:
    """A question in tokens.

    Args:
        chat: Rendering of the model.
        user: The user's message.
        prefill: Opening of the assistant's turn.
        answers: The words that count.
        whole: They are whole replies, which stand as they are.
    """
    text = chat.text(user) + prefill
    ids = chat.continued(user, prefill)
    if whole:
        replies = (tuple(chat.continuation(text, ids, reply)) for reply in answers)
        return TokenisedQuestion(ids, tuple((reply,) for reply in replies), whole)
    return TokenisedQuestion(ids, tuple(_ways(chat, text, ids, word) for word in answers))


def _ways(chat: Chat, text: str, ids: list[int], word: str) -> tuple[Way, ...]:
    """The ways to write a word after a rendered prompt."""
    # "a" is an article, not a choice: a single letter counts only as it is.
    forms = {word} if len(word) == 1 else {word, word.lower(), word.upper()}
    found = {
        tuple(chat.continuation(text, ids, space + mark + form))
        for space in ("", " ", "\n")
        for mark in ("", "**")
        for form in forms
    }
    # A way that continues another one is part of it: counting both would count its mass twice.
    new = (way for way in found if not any(way[:n] in found for n in range(1, len(way))))
    return tuple(sorted(new))


class _Scored(NamedTuple):
    """What a model answers to one question."""

    log_p: Tensor
    """(c, a) float64, cpu."""
    top_token: list[str]
    """[c]."""


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
        steerer: Sets the coefficients, one per row of the batch.
        questions: Prompts and ways to answer.
        coefficients: c of them, in one forward pass.
        budget: Nodes of one token tree, the answers' own nodes left out.
        progress: Told how many questions each pass has answered.

    Raises:
        PastoError: If the states of the model overflow at a coefficient.
    """

    def answer(group: list[int]) -> dict[int, _Scored]:
        # All stems of a group stand in one tree, whatever they add to it: groups are cut by their
        # prompts, and the prompts are what is long.
        owners = [(i, stem) for i in group for stem in _stems(questions[i])]
        rows = [[*questions[i].ids, *stem] for i, stem in owners]
        passes = hidden_states(lm, rows, None, steer=steerer.at, coefficients=coefficients)
        found = {owners[n]: states for n, states in passes}
        return {
            i: _score(
                lm,
                questions[i],
                {stem: found[i, stem] for stem in _stems(questions[i])},
                coefficients,
            )
            for i in group
        }

    groups = cut([q.ids for q in questions], budget, lm.trees)
    scored = distributed.map_groups(groups, answer, progress)
    widest = max(len(q.answers) for q in questions)
    log_p = torch.full(
        (len(coefficients), len(questions), widest), float("-inf"), dtype=torch.float64
    )
    for index, (values, _) in scored.items():  # questions may have unlike numbers of answers
        log_p[:, index, : values.shape[1]] = values
    each = [scored[i].top_token for i in range(len(questions))]  # [q][c]
    return Answers(log_p, [[tops[c] for tops in each] for c in range(len(coefficients))])


def _stems(question: TokenisedQuestion) -> list[Way]:
    """What has to be run after the prompt, the prompt alone included."""
    return sorted({way[:-1] for ways in question.answers for way in ways} | {()})


def _score(
    lm: LoadedModel,
    question: TokenisedQuestion,
    rows: dict[Way, RowStates],
    coefficients: Sequence[float],
) -> _Scored:
    """Read one question's answers off the rows that end in its stems.

    The output head is a product with the whole vocabulary, so it is taken once for each node that a
    way passes through, however many ways share it.
    """
    nodes: dict[Way, int] = {}  # beginning of a way -> the node that predicts what follows it
    for way in (way for ways in question.answers for way in ways):
        path = rows[way[:-1]].path
        for length in range(len(way)):
            nodes[way[:length]] = int(path[len(question.ids) - 1 + length])
    # All rows come from one pass, so that a node of any of them is found in the states of each.
    last = rows[()].nodes.last[:, list(nodes.values())]  # (c, beginnings, d_model)
    logits = lm.head(last)  # (c, beginnings, v)
    require_true_logits(logits[:, 0], coefficients)
    log_p = logits.log_softmax(-1).cpu().double()
    at = {beginning: log_p[:, i] for i, beginning in enumerate(nodes)}  # (c, v) each

    def way_log_p(way: Way) -> Tensor:  # (c,)
        each = (at[way[:n]][:, token] for n, token in enumerate(way))
        return sum(each, torch.zeros(len(log_p))) / (len(way) if question.whole else 1)

    answers = [
        torch.logsumexp(torch.stack([way_log_p(way) for way in ways]), 0)
        for ways in question.answers
    ]
    top = at[()].argmax(-1).tolist()  # (c,)
    return _Scored(torch.stack(answers, dim=1), [lm.tokenizer.decode([token]) for token in top])
