"""What the losses need of the vocabulary, without holding vocabulary-wide tensors of a whole batch.

For every position that counts these are single numbers of the next-token distribution p (v,):

    TV = 1/2 sum_y |p(y) - p_0(y)|                                  coherence
    log p(next token)                                               monotonicity
    sum_y p(y) r(y),  r(y) = log p_0(y | cho) - log p_0(y | rej)    persona_llr, on neutral rows

Each depends on the hidden state of one position only, so that its gradient is one row of d numbers.
Values and gradients are computed together, a few pairs at a time; autograd keeps the gradients
(n, d), not the distributions (n, v), which are far wider.

By the logits z, with p = softmax(z) (each a vector over y):

    d TV / dz          = p (w - sum_y p w),  w = sign(p - p_0) / 2
    d log p(next) / dz = onehot(next) - p
    d sum_y p r / dz   = p (r - sum_y p r)

Legend: g pairs of a group, w window (positions of one row that count), n watched rows of a group,
m unwatched ones, d d_model, v vocabulary. Signs are +1, -1, in this order on every axis of two.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.training import losses

CHOSEN, REJECTED, NEUTRAL = range(3)
"""Sides of a pair."""
WATCHED = ((CHOSEN, 0), (REJECTED, 1), (NEUTRAL, 0), (NEUTRAL, 1))
"""(side, index of the sign) whose total variation to the base the coherence term sees: the persona
that +1 strengthens at +1, the other one at -1, the neutral prompt at both."""
UNWATCHED = ((CHOSEN, 1), (REJECTED, 0))
"""The rest; of these only the log-probability of the next token is wanted."""


class BaseRead(NamedTuple):
    """The base model's numbers of one pair."""

    entropy: list[Tensor]
    """Each side (w,), nats."""
    next_token_logp: list[Tensor]
    """Chosen and rejected side, (w - 1,), nats."""
    persona_llr: Tensor
    """(3,): T of the neutral, the chosen and the rejected prompt, nats."""


class SteeredRead(NamedTuple):
    """The steered model's numbers of one pair."""

    tv: list[Tensor]
    """For each of `WATCHED` that there is (w,): total variation to the base."""
    next_token_logp: list[Tensor]
    """Chosen and rejected side, (2, w - 1): at +1 and -1, nats."""
    persona_llr: Tensor | None
    """(2,): T at +1 and -1, nats; None without a neutral side."""


class Sides(NamedTuple):
    """Hidden states before the output head of one pair, and what comes next there."""

    last: Sequence[Tensor]
    """Steered: each side (2, w, d), two or three sides; empty where only the base is read."""
    base: Sequence[Tensor]
    """Base: each side (w, d), always three."""
    targets: Sequence[Tensor]
    """Chosen and rejected side, (w - 1,) int64: the token after each position but the last."""
    end: int
    """Positions over which T is taken: the suffix and the token before it."""


@torch.no_grad()
def read_base(lm: LoadedModel, pairs: Sequence[Sides]) -> list[BaseRead]:
    """The base model's numbers of a group of pairs."""
    rows = [side for pair in pairs for side in pair.base]  # (w, d) each
    # One product with the output head for all rows: the head is the largest matrix of the model.
    logits = lm.head(torch.cat(rows))  # (sum of w, v)
    log_p = iter(logits.log_softmax(-1).split([len(row) for row in rows]))
    del logits
    return [_read_base_pair([next(log_p) for _ in pair.base], pair) for pair in pairs]


def _read_base_pair(log_p: Sequence[Tensor], pair: Sides) -> BaseRead:
    """Numbers of one pair from the log-probabilities (w, v) of its three sides."""
    next_token_logp = [
        log_p[side][:-1].gather(-1, targets[:, None])[:, 0]  # (w - 1, v) -> (w - 1,)
        for side, targets in zip((CHOSEN, REJECTED), pair.targets, strict=True)
    ]
    ratio = _persona_ratio(log_p, pair.end)  # (end, v)
    persona_llr = [
        (log_p[side][-pair.end :].exp() * ratio).sum(-1).mean()  # (end, v) -> ()
        for side in (NEUTRAL, CHOSEN, REJECTED)
    ]
    entropies = [losses.entropy(x) for x in log_p]
    return BaseRead(entropies, next_token_logp, torch.stack(persona_llr))


def read_steered(lm: LoadedModel, pairs: Sequence[Sides]) -> list[SteeredRead]:
    """The steered model's numbers of a group of pairs, differentiable in `last`."""
    watched = [p.last[side][sign] for p in pairs for side, sign in _there(p, WATCHED)]
    unwatched = [p.last[side][sign] for p in pairs for side, sign in UNWATCHED]
    values: Any = _Read.apply(torch.cat(watched), torch.cat(unwatched), lm, pairs)
    blocks = _blocks(values, pairs)
    return [_read_steered_pair(blocks, pair) for pair in pairs]


def _read_steered_pair(blocks: Iterator[tuple[Tensor | None, Tensor]], pair: Sides) -> SteeredRead:
    """Numbers of the pair whose blocks come next."""
    tv: list[Tensor] = []
    second: dict[tuple[int, int], Tensor] = {}  # (side, sign) -> (w,)
    for key in (*_there(pair, WATCHED), *UNWATCHED):
        variation, second[key] = next(blocks)
        if variation is not None:
            tv.append(variation)
    next_token_logp = [
        torch.stack([second[side, sign][:-1] for sign in (0, 1)])  # (2, w - 1)
        for side in (CHOSEN, REJECTED)
    ]
    if len(pair.last) <= NEUTRAL:
        return SteeredRead(tv, next_token_logp, None)
    persona_llr = torch.stack([second[NEUTRAL, sign][-pair.end :].mean() for sign in (0, 1)])
    return SteeredRead(tv, next_token_logp, persona_llr)


def _there(pair: Sides, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of some (side, sign) whose side was run."""
    return [key for key in keys if key[0] < len(pair.last)]


def _persona_ratio(log_p: Sequence[Tensor], end: int) -> Tensor:
    """r(y) = log p_0(y | cho) - log p_0(y | rej) over the last `end` positions, (end, v)."""
    return log_p[CHOSEN][-end:] - log_p[REJECTED][-end:]


def _blocks(
    values: tuple[Tensor, Tensor, Tensor], pairs: Sequence[Sides]
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """(total variation, second number) of each row: a pair's watched ones, then its unwatched ones.

    `_Read` returns all watched rows of a group behind one another, and all unwatched ones.
    """
    tv, second, second_unwatched = values
    at = at_unwatched = 0
    for pair in pairs:
        for side, _ in _there(pair, WATCHED):
            width = pair.last[side].shape[1]
            yield tv[at : at + width], second[at : at + width]
            at += width
        for side, _ in UNWATCHED:
            width = pair.last[side].shape[1]
            yield None, second_unwatched[at_unwatched : at_unwatched + width]
            at_unwatched += width


class _Read(torch.autograd.Function):
    """(watched (n, d), unwatched (m, d)) -> TV (n,), second number (n,), second number (m,).

    The second number is log p(next token) on persona rows and sum_y p r on neutral rows. The
    gradients are computed in the forward pass, while the distributions are there, and only scaled
    in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, watched: Tensor, unwatched: Tensor, lm: LoadedModel, pairs: Sequence[Sides]
    ) -> Any:  # type: ignore[override]
        want = any(ctx.needs_input_grad[:2])
        logits = lm.head(unwatched)  # (m, d) -> (m, v)
        second_unwatched, gradient = _unwatched(logits, pairs)
        by_unwatched = lm.head_gradient(logits, gradient) if want else None  # (m, v) -> (m, d)
        del logits, gradient  # two vocabulary-wide tensors, before the next ones are made
        logits = lm.head(watched)  # (n, d) -> (n, v)
        tv, second, by_logits = _watched(logits, lm, pairs)
        if want:
            assert by_unwatched is not None
            # Both in one product: a few rows more cost nothing beside reading the whole head.
            by_tv, by_second = lm.head_gradient(logits, by_logits)  # (2, n, v) -> (2, n, d)
            ctx.save_for_backward(by_tv, by_second, by_unwatched)
            ctx.dtype = watched.dtype
        return tv, second, second_unwatched

    @staticmethod
    def backward(ctx: Any, tv: Tensor, second: Tensor, second_unwatched: Tensor) -> Any:  # type: ignore[override]
        by_tv, by_second, by_unwatched = ctx.saved_tensors
        by_watched = tv[:, None] * by_tv + second[:, None] * by_second  # (n, d)
        by_unwatched = second_unwatched[:, None] * by_unwatched  # (m, d)
        return by_watched.to(ctx.dtype), by_unwatched.to(ctx.dtype), None, None


def _next_token_logp(logits: Tensor, lse: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Log p of the next token of one row (w,), its last entry 0.

    Turns p (w, v) in place into the gradient by the logits: a second tensor of that size would be
    half of what this file needs. The last position has no next token: value and gradient are 0.
    """
    logp = logits.new_zeros(len(logits))
    index = targets[:, None]
    logp[:-1] = logits[:-1].gather(-1, index)[:, 0] - lse[:-1, 0]
    p.neg_()
    p[:-1].scatter_add_(-1, index, torch.ones_like(p[:-1, :1]))
    p[-1] = 0.0
    return logp


def _unwatched(logits: Tensor, pairs: Sequence[Sides]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next tokens (m,) and their gradients by the logits (m, v)."""
    lse = logits.logsumexp(-1, keepdim=True)  # (m, 1)
    p = (logits - lse).exp_()
    logp, at = [], 0
    for pair in pairs:
        for side, _ in UNWATCHED:
            block = slice(at, at + pair.last[side].shape[1])
            at = block.stop
            logp.append(_next_token_logp(logits[block], lse[block], p[block], pair.targets[side]))
    return torch.cat(logp), p


def _watched(
    logits: Tensor, lm: LoadedModel, pairs: Sequence[Sides]
) -> tuple[Tensor, Tensor, Tensor]:
    """TV (n,), second number (n,), and the gradients of both by the logits (2, n, v)."""
    base = [side for pair in pairs for side in pair.base[: len(pair.last)]]  # (w, d) each
    # p_0 is computed again from the kept hidden states: distributions of all pairs would not fit.
    log_p0 = iter(lm.head(torch.cat(base)).log_softmax(-1).split([len(x) for x in base]))
    lse = logits.logsumexp(-1, keepdim=True)  # (n, 1)
    by_logits = torch.empty((2, *logits.shape), dtype=logits.dtype, device=logits.device)
    by_tv, p = by_logits  # p becomes the gradient of the second number, block by block
    torch.sub(logits, lse, out=p).exp_()
    tv, second, at = [], [], 0
    for pair in pairs:
        pair_log_p0 = [next(log_p0) for _ in pair.last]  # (w, v) each
        pair_p0 = [x.exp() for x in pair_log_p0]
        for side, _ in _there(pair, WATCHED):
            block = slice(at, at + pair.last[side].shape[1])
            at = block.stop
            tv.append(_total_variation(p[block], pair_p0[side], by_tv[block]))
            if side == NEUTRAL:
                second.append(_persona_llr(p[block], _persona_ratio(pair_log_p0, pair.end)))
            else:
                second.append(
                    _next_token_logp(logits[block], lse[block], p[block], pair.targets[side])
                )
    return torch.cat(tv), torch.cat(second), by_logits


def _total_variation(p: Tensor, p0: Tensor, gradient: Tensor) -> Tensor:
    """TV of one row (w,); writes its gradient by the logits into `gradient` (w, v)."""
    w = torch.sub(p, p0, out=gradient)
    tv = 0.5 * w.abs().sum(-1)
    # w = sign(p - p_0) / 2, then p w, then p w - p sum_y p w: all in the memory of `gradient`.
    w.sign_().mul_(0.5).mul_(p)
    w.addcmul_(p, w.sum(-1, keepdim=True), value=-1)
    return tv


def _persona_llr(p: Tensor, ratio: Tensor) -> Tensor:
    """sum_y p(y) r(y) at each position of one row (w,), 0 before the end.

    Turns p (w, v) in place into the gradient by the logits.
    """
    end = len(ratio)
    llr = p.new_zeros(len(p))
    p[:-end] = 0.0
    p_end = p[-end:]  # (end, v), a view
    weighted = p_end * ratio
    llr[-end:] = weighted.sum(-1)
    p[-end:] = weighted.addcmul_(p_end, llr[-end:, None], value=-1)
    return llr
