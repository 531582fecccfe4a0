"""What the losses need of the vocabulary, without ever holding a vocabulary-wide tensor of a whole
batch.

For every steered position that counts these are a total variation to the base, the log-probability
of the token that comes next, or an expected log-likelihood ratio: single numbers, whose gradients
with respect to the hidden state are rows of d. Both are computed a few pairs at a time; what
autograd keeps is the gradients (n, d), not the distributions (n, v).

Legend: g pairs of a group, w window (positions of one row that count), n rows of a group, d
d_model, v vocabulary."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.training import losses

CHOSEN, REJECTED, NEUTRAL = range(3)
WATCHED = ((CHOSEN, 0), (REJECTED, 1), (NEUTRAL, 0), (NEUTRAL, 1))
"""(side, index of the sign) whose total variation to the base the coherence term sees; signs are
+1, -1."""
UNWATCHED = ((CHOSEN, 1), (REJECTED, 0))


class BaseRead(NamedTuple):
    """Of the base model, one pair."""

    entropy: list[Tensor]
    """Each side (w,), nats."""
    said: list[Tensor]
    """Chosen and rejected side, (w - 1,): log-probability of the next token, nats."""
    expected: Tensor
    """(3,): T of the neutral, the chosen and the rejected prompt, nats."""


class SteeredRead(NamedTuple):
    """Of the steered model, one pair."""

    tv: list[Tensor]
    """For each of `WATCHED` that there is (w,): total variation to the base."""
    said: list[Tensor]
    """Chosen and rejected side, (2, w - 1): log-probability of the next token at +1 and -1,
    nats."""
    expected: Tensor | None
    """(2,): T at +1 and -1, nats; None without a neutral side."""


class Sides(NamedTuple):
    """Hidden states before the output head of one pair, and what comes next there."""

    last: Sequence[Tensor]
    """Steered: each side (2, w, d), two or three sides."""
    still: Sequence[Tensor]
    """Base: each side (w, d)."""
    targets: Sequence[Tensor]
    """Chosen and rejected side, (w - 1,) int64: the token after each position of the window but the
    last."""
    end: int
    """Positions over which T is taken: the suffix and the token before it."""


@torch.no_grad()
def read_base(lm: LoadedModel, pairs: Sequence[Sides]) -> list[BaseRead]:
    """The base model's numbers of a group of pairs."""
    rows = [x for pair in pairs for x in pair.still]
    log_p = iter(lm.head(torch.cat(rows)).log_softmax(-1).split([len(x) for x in rows]))
    found = []
    for pair in pairs:
        each = [next(log_p) for _ in pair.still]
        said = [
            x[:-1].gather(-1, t[:, None])[:, 0] for x, t in zip(each, pair.targets, strict=False)
        ]
        ratio = _ratio(each, pair.end)
        ends = each[NEUTRAL], each[CHOSEN], each[REJECTED]
        expected = torch.stack([(x[-pair.end :].exp() * ratio).sum(-1).mean() for x in ends])
        found.append(BaseRead([losses.entropy(x) for x in each], said, expected))
    return found


def read_steered(lm: LoadedModel, pairs: Sequence[Sides]) -> list[SteeredRead]:
    """The steered model's numbers of a group of pairs, differentiable in `last`."""
    watched = torch.cat([p.last[side][sign] for p in pairs for side, sign in _there(p, WATCHED)])
    unwatched = torch.cat([p.last[side][sign] for p in pairs for side, sign in UNWATCHED])
    values: Any = _Read.apply(watched, unwatched, lm, pairs)
    flat = _blocks(values, pairs)
    found = []
    for pair in pairs:
        tv, second = {}, {}
        for key in _there(pair, WATCHED):
            tv[key], second[key] = next(flat)
        for key in UNWATCHED:
            _, second[key] = next(flat)
        said = [
            torch.stack([second[side, sign][:-1] for sign in (0, 1)]) for side in (CHOSEN, REJECTED)
        ]
        neutral = (
            [second[NEUTRAL, sign][-pair.end :].mean() for sign in (0, 1)]
            if len(pair.last) == 3
            else None
        )
        found.append(
            SteeredRead(list(tv.values()), said, torch.stack(neutral) if neutral else None)
        )
    return found


def _there(pair: Sides, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [key for key in keys if key[0] < len(pair.last)]


def _ratio(log_p: Sequence[Tensor], end: int) -> Tensor:
    """Log p_0(y | cho) - log p_0(y | rej) over the end of the rows, (end, v)."""
    return log_p[CHOSEN][-end:] - log_p[REJECTED][-end:]


def _blocks(
    values: tuple[Tensor, Tensor, Tensor], pairs: Sequence[Sides]
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """(total variation, second number) block by block: of each pair the watched ones, then the
    unwatched."""
    tv, second, unwatched = values
    at = other = 0
    for pair in pairs:
        for side, _ in _there(pair, WATCHED):
            width = pair.last[side].shape[1]
            yield tv[at : at + width], second[at : at + width]
            at += width
        for side, _ in UNWATCHED:
            width = pair.last[side].shape[1]
            yield None, unwatched[other : other + width]
            other += width


class _Read(torch.autograd.Function):
    """(watched (n, d), unwatched (m, d)) -> total variation (n,), second number (n,), second number
    (m,).

    The second number is the log-probability of the next token on persona rows and the expected
    ratio on neutral rows. Each output depends on one row only, so that its gradient is one row of
    d, computed here and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, watched: Tensor, unwatched: Tensor, lm: LoadedModel, pairs: Sequence[Sides]
    ) -> Any:  # type: ignore[override]
        want = any(ctx.needs_input_grad[:2])
        logits = lm.head(unwatched)
        second_y, gradient = _unwatched(logits, pairs)
        by_y = lm.head_gradient(logits, gradient) if want else None
        del logits, gradient
        logits = lm.head(watched)
        tv, second, by_tv, by_second = _watched(logits, lm, pairs)
        if want:
            assert by_y is not None
            ctx.save_for_backward(
                lm.head_gradient(logits, by_tv), lm.head_gradient(logits, by_second), by_y
            )
            ctx.dtype = watched.dtype
        return tv, second, second_y

    @staticmethod
    def backward(ctx: Any, tv: Tensor, second: Tensor, second_y: Tensor) -> Any:  # type: ignore[override]
        by_tv, by_second, by_y = ctx.saved_tensors
        x = tv[:, None] * by_tv + second[:, None] * by_second
        return x.to(ctx.dtype), (second_y[:, None] * by_y).to(ctx.dtype), None, None


def _next_tokens(logits: Tensor, lse: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Log p of the next token of one block (w,), its last entry 0; turns p in place into the
    gradient by the logits."""
    said = logits.new_zeros(len(logits))
    index = targets[:, None]
    said[:-1] = logits[:-1].gather(-1, index)[:, 0] - lse[:-1, 0]
    p.neg_()
    p[:-1].scatter_add_(-1, index, torch.ones_like(p[:-1, :1]))
    p[-1] = 0.0
    return said


def _unwatched(logits: Tensor, pairs: Sequence[Sides]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next tokens (m,) and their gradients by the logits (m, v)."""
    lse = logits.logsumexp(-1, keepdim=True)
    p = (logits - lse).exp_()
    said, at = [], 0
    for pair in pairs:
        for side, _ in UNWATCHED:
            block = slice(at, at := at + pair.last[side].shape[1])
            said.append(_next_tokens(logits[block], lse[block], p[block], pair.targets[side]))
    return torch.cat(said), p


def _watched(
    logits: Tensor, lm: LoadedModel, pairs: Sequence[Sides]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total variation (n,), second number (n,), and the gradients of both by the logits (n, v)."""
    base = [x for pair in pairs for x in pair.still[: len(pair.last)]]
    log_p0 = iter(lm.head(torch.cat(base)).log_softmax(-1).split([len(x) for x in base]))
    lse = logits.logsumexp(-1, keepdim=True)
    p = (logits - lse).exp_()
    by_tv = torch.empty_like(p)
    tv, second, at = [], [], 0
    for pair in pairs:
        each = [next(log_p0) for _ in pair.last]
        still = [x.exp() for x in each]
        for side, _ in _there(pair, WATCHED):
            block = slice(at, at := at + pair.last[side].shape[1])
            mine = p[block]
            # d TV / d logits = p (w - sum p w) with w = sign(p - p_0) / 2.
            w = torch.sub(mine, still[side], out=by_tv[block])
            tv.append(0.5 * w.abs().sum(-1))
            w.sign_().mul_(0.5).mul_(mine)
            w.addcmul_(mine, w.sum(-1, keepdim=True), value=-1)
            if side == NEUTRAL:
                # d T / d logits = p (r - sum p r).
                expected = logits.new_zeros(len(mine))
                mine[: -pair.end] = 0.0
                ends = mine[-pair.end :]
                weighted = ends * _ratio(each, pair.end)
                expected[-pair.end :] = weighted.sum(-1)
                mine[-pair.end :] = weighted.addcmul_(ends, expected[-pair.end :, None], value=-1)
                second.append(expected)
            else:
                second.append(_next_tokens(logits[block], lse[block], mine, pair.targets[side]))
    return torch.cat(tv), torch.cat(second), by_tv, p
