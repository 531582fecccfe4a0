"""Anchors in the loss: on some prompts the steered model is held to what the base would say.

    L_anchor = w mean over prompts, answer tokens and a in {+1, -1} of KL(p_0 || p_a)

on the base's own greedy answer to each prompt. Nothing else in the losses says where the dial
should *not* act: a dial that says Yes to everything, facts included, pays nothing for it. The
base's side does not change while training runs and is kept as hidden states before the head.

A KL hardly feels a shift where the base is sure: one nat on the log-odds of a Yes of 99 % is a KL
of 0.005. A second term, off by default, looks at the log-odds themselves:

    L_choice = w_c mean over prompts and a in {+1, -1} of (m_a - m_0)^2

with m = log p(first) - log p(second) of the base's two likeliest tokens, at the token of its answer
where these are nearest: the Yes or No of "Verdict: Yes". With `reach` both are read at +-r instead.

Where a question is asked both ways, x and x', a dial may move which of the two is answered Yes, but
not both alike. A third term, off by default, holds only what they share:

    L_opposites = w_o mean over questions and a in {+1, -1} of s^2
    s = ((m_a - m_0)(x) + (m_a - m_0)(x')) / 2

with m of the two likeliest tokens of the base's mean distribution over x and x' in both.

Legend: m drawn anchors, t answer tokens of one, d d_model, v vocabulary; the axis of two is the
coefficients +1, -1.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models.choice import choice_tokens
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.recipe.losses_spec import AnchorSpec
from pasto_cli.core.steering.kept_answers import kept_greedy_answers

VALIDATED = 2
"""Validation looks at this many times as many anchors as a step, the same ones each time."""


ROOT_FLOOR = 1e-4
"""Nats added under the root of `root`: at 0, where a fresh dial stands, a root has no gradient."""


class AnchorRow(NamedTuple):
    """One anchor in tokens, with the base's side of it."""

    row: tuple[int, ...]
    """Prompt, opening and answer; in place of an answer of one token, any token."""
    length: int
    """Tokens of the answer, t."""
    base: Tensor
    """(t, d): hidden states before the output head where the answer's tokens are predicted."""

    choice: tuple[int, int] | None = None
    """The two tokens whose log-odds count, where a question is asked both ways."""

    @property
    def window(self) -> slice:
        """Positions where the answer's tokens are predicted: one before each of them."""
        return slice(-(self.length + 1), -1)


class Anchors:
    """The trained anchors of a run.

    Args:
        lm: The base model.
        asked: The anchors, without the held-out ones.
        spec: The recipe's `losses.anchor`.
        seed: Seed of the draws.
    """

    def __init__(
        self, lm: LoadedModel, asked: Sequence[Anchor], spec: AnchorSpec, seed: int
    ) -> None:
        self.lm, self.spec, self.seed = lm, spec, seed
        self.asked = sorted(asked, key=lambda anchor: bool(anchor.opposite))  # stable
        self.rows: list[AnchorRow] = []
        self.opposites: list[tuple[AnchorRow, AnchorRow]] = []

    @property
    def sides(self) -> list[Anchor]:
        """What the base is asked: a question that is asked both ways is two of them, at the end."""
        return [
            anchor._replace(prompt=prompt)
            for anchor in self.asked
            for prompt in (anchor.prompt, anchor.opposite)
            if prompt
        ]

    @torch.no_grad()
    def remember(self, budget: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Let the base answer every anchor, and keep its side of the KL."""
        sides = self.sides
        prompts = [self.lm.chat.continued(x.prompt, x.opening) for x in sides]
        # What predicts an only token does not depend on it: any will do, and nobody need be asked.
        answers = [ids[-1:] for ids in prompts]
        asked = [i for i, side in enumerate(sides) if longest_answer(side, self.spec) > 1]
        progress(len(sides) - len(asked))
        some = [prompts[i] for i in asked]
        given = kept_greedy_answers(self.lm, some, self.spec.tokens, progress) if some else []
        for i, answer in zip(asked, given, strict=True):
            answers[i] = answer
        rows = [(*ids, *answer) for ids, answer in zip(prompts, answers, strict=True)]
        found: dict[int, AnchorRow] = {}
        for index, states in hidden_states(self.lm, rows, budget):
            # An empty answer has no token to predict; its KL would be of nothing.
            anchor = AnchorRow(rows[index], max(len(answers[index]), 1), torch.empty(0))
            found[index] = anchor._replace(base=states.last(anchor.window)[0].clone())
        self.place([found[i] for i in range(len(rows))])
        self.opposites = [self._opposed(*two) for two in self.opposites]

    def place(self, rows: Sequence[AnchorRow]) -> None:
        """Take what became of `sides`."""
        cut = sum(not anchor.opposite for anchor in self.asked)
        self.rows = list(rows[:cut])
        self.opposites = list(zip(rows[cut::2], rows[cut + 1 :: 2], strict=True))

    def _opposed(self, one: AnchorRow, other: AnchorRow) -> tuple[AnchorRow, AnchorRow]:
        """Both sides with the two tokens that the base likes best over the two: its Yes and No."""
        log_p = self.lm.head(torch.cat([one.base, other.base])).log_softmax(-1)  # (2, v)
        choice = choice_tokens(log_p)
        return one._replace(choice=choice), other._replace(choice=choice)

    def drawn(self, step: int | None) -> list[AnchorRow]:
        """The anchors of an optimiser step, or (None) those that validation looks at.

        The sides of questions that are asked both ways come last, one beside the other.

        A draw depends on seed and step only, so that a resumed run draws what it would have drawn.
        """
        name, times = (step, 1) if step is not None else ("validation", VALIDATED)
        rng = random.Random(f"{self.seed}/{name}")
        single = rng.sample(self.rows, min(times * self.spec.count, len(self.rows)))
        count = min(times * self.spec.opposites_count, len(self.opposites))
        return [*single, *(side for two in rng.sample(self.opposites, count) for side in two)]

    def coefficient(self, step: int | None) -> float:
        """Size r of a step's coefficients, uniform from 1 to `reach`, or (None) the middle."""
        if step is None:
            return (1.0 + self.spec.reach) / 2
        return random.Random(f"{self.seed}/{step}/reach").uniform(1.0, self.spec.reach)


def longest_answer(side: Anchor, spec: AnchorSpec) -> int:
    """Tokens of an answer that are held, at most.

    Where the reply is begun, the choice is in the token that follows: that one is held. Where a
    question is asked both ways, it is Yes or No at once.
    """
    return 1 if side.opening or side.opposite else spec.tokens


class AnchorRead(NamedTuple):
    """What the terms need of one drawn anchor at +1 and -1."""

    kl: Tensor
    """(2, t): KL(p_0 || p_a) at every answer token, nats."""
    choice: Tensor
    """(2,): m_a - m_0, nats, at the answer token where |m_0| is smallest."""
    opposed: bool = False
    """Whether it is a side of a question that is asked both ways; the other one is beside it."""


def read_anchors(
    lm: LoadedModel, anchors: Sequence[AnchorRow], steered: Sequence[Tensor]
) -> list[AnchorRead]:
    """KL at every answer token and the change of the base's nearest choice.

    Args:
        lm: The model whose output head is used.
        anchors: The m anchors that were drawn.
        steered: Hidden states before the head at +1 and -1, (2, t, d) per anchor.

    Returns:
        One per anchor, differentiable in `steered`.
    """
    if not anchors:
        return []
    # One product with the head for all of them: it reads the whole vocabulary's weights each time.
    log_p = lm.head(torch.cat(list(steered), dim=1)).log_softmax(-1)  # (2, sum of t, v)
    with torch.no_grad():
        log_p0 = lm.head(torch.cat([a.base for a in anchors])).log_softmax(-1)  # (sum of t, v)
        likeliest = log_p0.topk(2).indices  # (sum of t, 2)
        lengths = [a.base.shape[0] for a in anchors]
        for tokens, anchor in zip(likeliest.split(lengths), anchors, strict=True):
            if anchor.choice is not None:
                tokens.copy_(torch.tensor(anchor.choice))
        m_0 = torch.sub(*log_p0.gather(-1, likeliest).unbind(-1))  # (sum of t,)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)  # (2, sum of t)
    chosen, other = log_p.gather(-1, likeliest.expand(2, -1, -1)).unbind(-1)
    change = chosen - other - m_0  # (2, sum of t)
    each = zip(kl.split(lengths, 1), change.split(lengths, 1), m_0.split(lengths), strict=True)

    def nearest(base: Tensor) -> Tensor:
        return base.abs().argmin().view(1)

    return [
        AnchorRead(kl_of, moved.index_select(1, nearest(base))[:, 0], anchor.choice is not None)
        for anchor, (kl_of, moved, base) in zip(anchors, each, strict=True)
    ]


def shared_changes(reads: Sequence[AnchorRead]) -> Tensor:
    """What the two sides of each question share: half the sum of their changes, (n, 2), nats."""
    sides = [x.choice for x in reads if x.opposed]
    return (torch.stack(sides[::2]) + torch.stack(sides[1::2])) / 2


def anchor_loss(reads: Sequence[AnchorRead], spec: AnchorSpec) -> Tensor:
    """The weighted terms of all drawn anchors, L_anchor + L_choice + L_opposites; scalar."""
    single = [x for x in reads if not x.opposed]
    terms = []
    if single:
        choice = torch.stack([x.choice for x in single]).square().mean()
        terms += [spec.weight * _aggregated_kl(single, spec), spec.choice * choice]
    if len(single) < len(reads):
        terms.append(spec.opposites * shared_changes(reads).square().mean())
    return torch.stack(terms).sum()


def _aggregated_kl(reads: Sequence[AnchorRead], spec: AnchorSpec) -> Tensor:
    """KL over answer tokens and both coefficients; scalar, nats.

    `mean` over positions; `root`, the mean of their square roots; `rms`, the root of the mean
    square; `p95`, the 95th percentile. A KL grows with the square of a small shift (0.5 nats in an
    even Yes or No are 0.03), its root with the shift itself, so that `root` still holds a dial back
    where a mean no longer feels it. The last two see a text that falls apart in a few tokens.
    """
    values = torch.cat([x.kl.flatten() for x in reads])
    if spec.aggregate == "mean":
        return values.mean()
    if spec.aggregate == "root":
        return (values.clamp_min(0.0) + ROOT_FLOOR).sqrt().mean() - ROOT_FLOOR**0.5
    if spec.aggregate == "rms":
        # The root has no gradient at 0, where a fresh dial stands.
        return values.square().mean().clamp_min(1e-12).sqrt()
    return torch.quantile(values, 0.95)
