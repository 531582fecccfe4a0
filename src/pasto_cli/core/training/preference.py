"""Preference between the model's own answers: at +1 what it says as one persona, at -1 the other.

The question alone, x, has two answers (`core.pairs.answers`): y+ was given under the positive
persona, y- under the negative one. With the log-ratio of the steered model to the base

    r_a(y) = log p_a(y | x) - log p_0(y | x)

    margin   g(a) = r_a(y+) / |y+| - r_a(y-) / |y-|     per token
             L = w mean [relu(m - g(+1)) + relu(m + g(-1))]
    bipo     G(a) = r_a(y+) - r_a(y-)                   summed over an answer
             L = w mean [-log sigmoid(b G(+1)) - log sigmoid(-b G(-1))]

`bipo` is the loss of BiPO (Cao et al., arXiv 2406.00045), which trains an added vector in
both directions; it draws a direction each step, where here both are run. RePS (Wu et al.,
arXiv 2505.20809) is bidirectional too, divides by the length of an answer and needs no base.
`margin` takes the length from it and the base from BiPO; a hinge instead of a logistic loss stops
pulling where the margin is met, and leaves the rest to the other terms.

Legend: m drawn pairs, t answer tokens of one row, n answer tokens of some rows, d d_model,
v vocabulary; an axis of two is the coefficients +1, -1.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.answers import AnswerPair, AnswerSplit
from pasto_cli.core.recipe.losses_spec import PreferenceSpec


class AnswerRow(NamedTuple):
    """A question and one answer in tokens, with the base's side of it."""

    row: tuple[int, ...]
    """Prompt and answer."""
    length: int
    """Tokens of the answer, t."""
    base: Tensor
    """(t,) log p_0 of the answer's tokens, nats."""

    @property
    def window(self) -> slice:
        """Positions where the answer's tokens are predicted: one before each of them."""
        return slice(-(self.length + 1), -1)


class PreferencePair(NamedTuple):
    """Two answers to one question."""

    question: str
    chosen: AnswerRow
    rejected: AnswerRow

    @property
    def sides(self) -> tuple[AnswerRow, AnswerRow]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


class LogRatios(NamedTuple):
    """Log-ratios of chosen to rejected of one pair at +1 and -1, less the base's, (2,) each."""

    per_token: Tensor
    """g, nats per token."""
    summed: Tensor
    """G, nats."""


class Preferences:
    """The model's own answers of a run.

    Args:
        lm: The base model.
        answers: Trained and held-out pairs.
        spec: The recipe's `losses.preference`.
        seed: Seed of the draws.
    """

    def __init__(
        self, lm: LoadedModel, answers: AnswerSplit, spec: PreferenceSpec, seed: int
    ) -> None:
        self.lm, self.answers, self.spec, self.seed = lm, answers, spec, seed
        self.train: list[PreferencePair] = []
        self.held_out: list[PreferencePair] = []

    @torch.no_grad()
    def remember(self, budget: int, positions: int) -> None:
        """Keep what the base says of every answer.

        Args:
            budget: Nodes of a token tree.
            positions: Of one product with the output head.
        """
        pairs = [*self.answers.train, *self.answers.held_out]
        rows = [row for pair in pairs for row in self._rows(pair)]
        states: dict[int, Tensor] = {}
        for index, found in hidden_states(self.lm, [row.row for row in rows], budget):
            states[index] = found.last(rows[index].window)[0].clone()  # (t, d)
        logp = token_logp(self.lm, rows, [states[i] for i in range(len(rows))], positions)
        known = [row._replace(base=base) for row, base in zip(rows, logp, strict=True)]
        both = [
            PreferencePair(pair.question, known[2 * i], known[2 * i + 1])
            for i, pair in enumerate(pairs)
        ]
        cut = len(self.answers.train)
        self.train, self.held_out = both[:cut], both[cut:]

    def _rows(self, pair: AnswerPair) -> list[AnswerRow]:
        prompt = self.lm.chat.prompt(pair.question)
        return [
            AnswerRow((*prompt, *answer), len(answer), torch.empty(0))
            for answer in (pair.chosen_tokens, pair.rejected_tokens)
        ]

    def drawn(self, step: int) -> list[PreferencePair]:
        """The pairs of an optimiser step.

        A draw depends on seed and step only, so that a resumed run draws what it would have drawn.
        """
        rng = random.Random(f"{self.seed}/answers/{step}")
        return rng.sample(self.train, min(self.spec.count, len(self.train)))


def token_logp(
    lm: LoadedModel, rows: Sequence[AnswerRow], states: Sequence[Tensor], positions: int
) -> list[Tensor]:
    """Log p of the tokens of some answers, nats.

    Args:
        lm: The model whose output head is used.
        rows: For their tokens.
        states: Hidden states before the head in the window of each row, (..., t, d), with the same
            leading axes.
        positions: Of one product with the head.

    Returns:
        (..., t) per row, differentiable in `states`.
    """
    if not rows:
        return []
    targets = torch.cat([torch.tensor(row.row[-row.length :]) for row in rows])  # (n,)
    flat = torch.cat(list(states), dim=-2)  # (..., n, d)
    leading = flat.shape[:-1]
    targets = targets.to(flat.device).expand(leading).reshape(-1)  # (... n,)
    found: Any = _TokenLogp.apply(flat.flatten(0, -2), targets, lm, positions)
    return list(found.view(leading).split([row.length for row in rows], dim=-1))


class _TokenLogp(torch.autograd.Function):
    """(hidden states (n, d), next tokens (n,)) -> log p of them (n,).

    As in `readout`, the gradient onehot(next) - p by the logits is turned into one by the hidden
    states while the distributions are there: autograd keeps (n, d), not (n, v).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, lm: LoadedModel, positions: int) -> Any:  # type: ignore[override]
        logp: list[Tensor] = []
        gradients: list[Tensor] = []
        blocks = zip(states.split(positions), targets[:, None].split(positions), strict=True)
        for some, index in blocks:  # (k, d), (k, 1)
            logits = lm.head(some)  # (k, v)
            log_p = logits.log_softmax(-1)
            logp.append(log_p.gather(-1, index)[:, 0])
            if ctx.needs_input_grad[0]:
                by_logits = log_p.exp_().neg_()
                by_logits.scatter_add_(-1, index, torch.ones_like(by_logits[:, :1]))
                gradients.append(lm.head_gradient(logits, by_logits))  # (k, v) -> (k, d)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.dtype = states.dtype
        return torch.cat(logp)

    @staticmethod
    def backward(ctx: Any, by_logp: Tensor) -> Any:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        return (by_logp[:, None] * gradients).to(ctx.dtype), None, None, None


def log_ratios(
    lm: LoadedModel, pairs: Sequence[PreferencePair], steered: Sequence[Tensor], positions: int
) -> list[LogRatios]:
    """Log-ratios of chosen to rejected, less the base's.

    Args:
        lm: The model whose output head is used.
        pairs: The m pairs that were drawn.
        steered: Hidden states before the head at +1 and -1, (2, t, d), of the chosen and the
            rejected row of each pair.
        positions: Of one product with the head.

    Returns:
        One per pair, differentiable in `steered`.
    """
    rows = [row for pair in pairs for row in pair.sides]
    logp = token_logp(lm, rows, steered, positions)
    ratios = [at_signs - row.base for at_signs, row in zip(logp, rows, strict=True)]  # (2, t)
    return [
        LogRatios(chosen.mean(-1) - rejected.mean(-1), chosen.sum(-1) - rejected.sum(-1))
        for chosen, rejected in zip(ratios[::2], ratios[1::2], strict=True)
    ]


def preference_loss(ratios: Sequence[LogRatios], spec: PreferenceSpec) -> Tensor:
    """The weighted term from the log-ratios of some pairs; scalar, nats per token for `margin`."""
    per_token, summed = (torch.stack(x, dim=-1) for x in zip(*ratios, strict=True))  # (2, m) each
    if spec.kind == "margin":
        pos, neg = per_token
        loss = torch.relu(spec.margin - pos) + torch.relu(spec.margin + neg)  # (m,)
    else:
        pos, neg = spec.beta * summed
        loss = -logsigmoid(pos) - logsigmoid(-neg)
    return spec.weight * loss.mean()
