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

Legend: m drawn anchors, t answer tokens of one, d d_model, v vocabulary; the axis of two is the
coefficients +1, -1.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
    """Prompt, opening and answer."""
    length: int
    """Tokens of the answer, t."""
    base: Tensor
    """(t, d): hidden states before the output head where the answer's tokens are predicted."""

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
        self.lm, self.asked, self.spec, self.seed = lm, list(asked), spec, seed
        self.rows: list[AnchorRow] = []

    @torch.no_grad()
    def remember(self, budget: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Let the base answer every anchor, and keep its side of the KL."""
        prompts = [self.lm.chat.continued(x.prompt, x.opening) for x in self.asked]
        answers = kept_greedy_answers(self.lm, prompts, self.spec.tokens, progress)
        # Where the reply is begun, the choice is in the token that follows: that one is held.
        answers = [
            answer[:1] if anchor.opening else answer
            for anchor, answer in zip(self.asked, answers, strict=True)
        ]
        rows = [(*ids, *answer) for ids, answer in zip(prompts, answers, strict=True)]
        found: dict[int, AnchorRow] = {}
        for index, states in hidden_states(self.lm, rows, budget):
            # An empty answer has no token to predict; its KL would be of nothing.
            anchor = AnchorRow(rows[index], max(len(answers[index]), 1), torch.empty(0))
            found[index] = anchor._replace(base=states.last(anchor.window)[0].clone())
        self.rows = [found[i] for i in range(len(rows))]

    def drawn(self, step: int | None) -> list[AnchorRow]:
        """The anchors of an optimiser step, or (None) those that validation looks at.

        A draw depends on seed and step only, so that a resumed run draws what it would have drawn.
        """
        name, count = (step, self.spec.count) if step is not None else ("validation", 0)
        count = count or VALIDATED * self.spec.count
        rng = random.Random(f"{self.seed}/{name}")
        return rng.sample(self.rows, min(count, len(self.rows)))

    def coefficient(self, step: int | None) -> float:
        """Size r of a step's coefficients, uniform from 1 to `reach`, or (None) the middle."""
        if step is None:
            return (1.0 + self.spec.reach) / 2
        return random.Random(f"{self.seed}/{step}/reach").uniform(1.0, self.spec.reach)


class AnchorRead(NamedTuple):
    """What the terms need of one drawn anchor at +1 and -1."""

    kl: Tensor
    """(2, t): KL(p_0 || p_a) at every answer token, nats."""
    choice: Tensor
    """(2,): m_a - m_0, nats, at the answer token where |m_0| is smallest."""


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
        top, likeliest = log_p0.topk(2)  # (sum of t, 2)
        m_0 = top[:, 0] - top[:, 1]  # (sum of t,)
    kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)  # (2, sum of t)
    chosen, other = log_p.gather(-1, likeliest.expand(2, -1, -1)).unbind(-1)
    change = chosen - other - m_0  # (2, sum of t)
    lengths = [a.base.shape[0] for a in anchors]
    each = zip(kl.split(lengths, 1), change.split(lengths, 1), m_0.split(lengths), strict=True)
    return [AnchorRead(kl_of, moved[:, base.argmin()]) for kl_of, moved, base in each]


def anchor_loss(reads: Sequence[AnchorRead], spec: AnchorSpec) -> Tensor:
    """Both weighted terms of all drawn anchors, L_anchor + L_choice; scalar.

    `mean` over positions; `root`, the mean of their square roots; `rms`, the root of the mean
    square; `p95`, the 95th percentile. A KL grows with the square of a small shift (0.5 nats in an
    even Yes or No are 0.03), its root with the shift itself, so that `root` still holds a dial back
    where a mean no longer feels it. The last two see a text that falls apart in a few tokens.
    """
    values = torch.cat([x.kl.flatten() for x in reads])
    if spec.aggregate == "mean":
        found = values.mean()
    elif spec.aggregate == "root":
        found = (values.clamp_min(0.0) + ROOT_FLOOR).sqrt().mean() - ROOT_FLOOR**0.5
    elif spec.aggregate == "rms":
        # The root has no gradient at 0, where a fresh dial stands.
        found = values.square().mean().clamp_min(1e-12).sqrt()
    else:
        found = torch.quantile(values, 0.95)
    choice = torch.stack([x.choice for x in reads]).square().mean()
    return spec.weight * found + spec.choice * choice
