"""The loss terms, as pure functions of tensors (AntiPaSTO, arXiv 2601.07473, section 3).

    projection      cos+ focus+ cos- focus- -> -1       opposite ways along d_ref
    coherence       TV <= kappa sqrt(H + beta)          the model still talks sense
    monotonicity    G+ > t, G- < -t                     the gap of the personas grows, shrinks
    orientation     O+ -> 1, O- -> -1                   pasto's own: the neutral branch
    likeness        s(+1) > m, s(-1) < -m               pasto's own: the neutral branch

The neutral branch is not in the paper: its losses shape only the difference between two persona
prompts, and leave to chance what +1 and -1 do to a prompt without any persona.

Two words that are close: *likeness* is the loss term (also in recipes, `likeness_weight`, and in
history.jsonl); *persona_llr* is the quantity T that it is made from, `PersonaLLR`.

Legend: b pairs, d d_model, k rank of the subspace, t tokens, v vocabulary. All float32, all
differentiable in the steered side only: what belongs to the base model is detached by the caller.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core.recipe.losses_spec import (
    CoherenceSpec,
    MonotonicitySpec,
    NeutralSpec,
    ProjectionSpec,
)

_TINY = 1e-8
"""Keeps divisors and bases of powers off zero."""


class Projection(NamedTuple):
    """Projection loss and what it was made from."""

    loss: Tensor
    """(b,), weight applied."""
    antiparallelism: Tensor
    """(b,): cos+ focus+ cos- focus-, in [-1, 1]; -1 is wanted."""
    cos_pos: Tensor
    """(b,)."""
    cos_neg: Tensor
    """(b,)."""


def subspace_scale(
    d_ref: Tensor, basis: Tensor, *, floor_share: float = 0.1, floor: float = 0.05
) -> Tensor:
    """sigma: std of the base differences along each basis vector, floored, detached.

    Args:
        d_ref: (b, d) h_cho - h_rej of the base model.
        basis: (d, k).
        floor_share: Floor as a share of the median std.
        floor: Absolute floor.

    Returns:
        (k,).
    """
    projected = d_ref @ basis  # (b, k)
    # One pair has no spread: its std would be NaN with Bessel's correction, and is 0 without.
    std = projected.std(dim=0, correction=1 if len(projected) > 1 else 0)  # (k,)
    # Without a floor, a direction along which the pairs agree would outweigh all others.
    return torch.maximum(std, (floor_share * std.median()).clamp_min(floor)).detach()


def _focus(change: Tensor, projected: Tensor, exponent: float) -> Tensor:
    """(|change P| / |change|)^exponent: share of a change that lies inside the subspace, (b,)."""
    share = projected.norm(dim=-1) / change.norm(dim=-1).clamp_min(_TINY)  # (b,)
    # The gradient of a fractional power at 0 is infinite: a zero change must not reach it.
    return share.clamp_min(_TINY) ** exponent


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the rows of a and b, (b, k) each; (b,)."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=_TINY)


def projection_loss(
    *,
    d_ref: Tensor,
    d_pos: Tensor,
    d_neg: Tensor,
    basis: Tensor,
    spec: ProjectionSpec,
    focus_ramp: float = 1.0,
) -> Projection:
    """The changes at +1 and -1 point opposite ways along d_ref, inside the subspace.

        D+ = d_{+1} - d_ref;  D- = d_{-1} - d_ref;  a = cos+ focus+ cos- focus-
        scaled (published code): s = scale a + margin; s + relu(s)^2
        symlog (paper):          symlog(a + m + relu(a + m)^2), symlog(x) = sign(x) log(1 + |x|)

    Args:
        d_ref: (b, d) h_cho - h_rej at coefficient 0.
        d_pos: (b, d) at +1.
        d_neg: (b, d) at -1.
        basis: P (d, k), orthonormal columns.
        spec: Kind, scale, margin, softness, weights.
        focus_ramp: Factor on the focus exponent during warm-up, 0 to 1.
    """
    sigma = subspace_scale(d_ref, basis)  # (k,)
    changes = d_pos - d_ref, d_neg - d_ref
    reference = d_ref @ basis / sigma  # (b, k)
    projected = [change @ basis for change in changes]  # (b, k) each
    # Cosines are of the whitened coordinates, so that no loud direction decides alone; focus is a
    # share of lengths in the residual stream, and therefore is not whitened.
    cos_pos, cos_neg = (_cosine(p / sigma, reference) for p in projected)
    exponent = (1.0 - spec.softness) * focus_ramp
    focus_pos, focus_neg = (_focus(c, p, exponent) for c, p in zip(changes, projected, strict=True))
    a = cos_pos * focus_pos * cos_neg * focus_neg  # (b,)
    if spec.kind == "scaled":
        s = spec.scale * a + spec.margin
        # The square makes two changes that point the same way (a > 0) cost far more than the
        # linear part rewards those that point apart.
        loss = s + torch.relu(s) ** 2
    else:
        s = a + spec.margin
        s = s + torch.relu(s) ** 2
        loss = torch.sign(s) * torch.log1p(s.abs())
    if spec.orth_weight:
        loss = loss + spec.orth_weight * _off_axis(projected, reference, sigma)
    return Projection(spec.weight * loss, a, cos_pos, cos_neg)


def _off_axis(projected: list[Tensor], reference: Tensor, sigma: Tensor) -> Tensor:
    """How far D+ and D- are from one line, relative to the reference (published code), (b,).

    sqrt((|v+|^2 + |v-|^2 - 2 |v+ . v-|) / max(|reference|^2, 1)), v the whitened changes.
    """
    v_pos, v_neg = (p / sigma for p in projected)  # (b, k) each
    inner = (v_pos * v_neg).sum(-1).abs()  # (b,)
    spread = (v_pos.square().sum(-1) + v_neg.square().sum(-1) - 2 * inner).clamp_min(0.0)
    size = reference.square().sum(-1).clamp_min(1.0)
    return torch.sqrt(spread / size + 1e-6)  # the root of 0 has no finite gradient


def total_variation(log_p: Tensor, log_p0: Tensor) -> Tensor:
    """1/2 sum_y |p(y) - p_0(y)| for log-probabilities (..., v); returns (...), in [0, 1]."""
    return 0.5 * (log_p.exp() - log_p0.exp()).abs().sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy of log-probabilities (..., v), nats; returns (...)."""
    return -(log_p.exp() * log_p).sum(-1)


def coherence_penalty(
    tv: Tensor, *, base_entropy: Tensor, mask: Tensor, spec: CoherenceSpec
) -> Tensor:
    """Penalty on total variation beyond a budget that grows with the base model's uncertainty.

        budget = kappa sqrt(H + beta);  v = relu(TV - budget)
        log1p_squared: log1p(w v)^2 + v           log: -w log(1 - v / (1 - budget))

    TV never exceeds 1: where the budget does, the term cannot bind.

    Args:
        tv: (b, t) total variation.
        base_entropy: (b, t) nats, detached.
        mask: (b, t) bool, true at real tokens.
        spec: Weight w, kappa, beta, barrier, aggregate.

    Returns:
        (b,); exactly 0 at weight 0.
    """
    if spec.weight == 0.0:  # the bare v of the first barrier would remain
        return torch.zeros_like(tv[:, 0])
    # Where the base model is sure, a small change of distribution already is a blunder; where many
    # words would do, a large one need not be.
    budget = spec.kappa * torch.sqrt(base_entropy + spec.beta)  # (b, t)
    v = torch.relu(tv - budget)
    if spec.barrier == "log1p_squared":
        penalty = torch.log1p(spec.weight * v) ** 2 + v
    else:
        room = (1.0 - budget).clamp_min(_TINY)
        penalty = -spec.weight * torch.log((1.0 - v / room).clamp_min(1e-4))
    mask = mask.bool()
    count = mask.sum(-1).clamp_min(1)  # (b,)
    if spec.aggregate == "mean":
        return (penalty * mask).sum(-1) / count
    lowest = penalty.masked_fill(~mask, float("-inf"))
    if spec.aggregate == "max":
        return lowest.max(-1).values
    # log-mean-exp rather than log-sum-exp: a longer suffix is not less coherent for its length.
    return spec.temperature * (torch.logsumexp(lowest / spec.temperature, -1) - torch.log(count))


def monotonicity_loss(
    *, gap_pos: Tensor, gap_neg: Tensor, base_entropy: Tensor, spec: MonotonicitySpec
) -> Tensor:
    """Hinges that make the log-probability gap of the personas grow at +1 and shrink at -1.

        t = frac sqrt(H) + floor;  w (relu(G- + t) + relu(t - G+))

    Args:
        gap_pos: (b,) G+ = g_{+1} - g_0, nats per token.
        gap_neg: (b,) G- = g_{-1} - g_0.
        base_entropy: (b,) H, mean over the tokens of each pair, nats.
        spec: Weight, frac, floor, variant (`batch`: the better of this and its mirror, original).

    Returns:
        (b,).
    """
    threshold = spec.frac * torch.sqrt(base_entropy) + spec.floor  # (b,)
    forward = torch.relu(gap_neg + threshold) + torch.relu(threshold - gap_pos)  # (b,)
    if spec.variant == "batch":
        # The original is content with either direction and repairs the sign after training.
        mirror = torch.relu(threshold - gap_neg) + torch.relu(gap_pos + threshold)
        forward = torch.where(mirror.mean() < forward.mean(), mirror, forward)
    return spec.weight * forward


class Orientation(NamedTuple):
    """How far the neutral prompt moves along the personas' direction, (b,) each, in [-1, 1]."""

    pos: Tensor
    neg: Tensor


def orientation(
    *,
    shift_pos: Tensor,
    shift_neg: Tensor,
    d_ref: Tensor,
    basis: Tensor,
    softness: float,
    focus_ramp: float = 1.0,
) -> Orientation:
    """O = cos(N P / sigma, d_ref P / sigma) focus(N) for the shifts N+ and N- of a neutral prompt.

    Args:
        shift_pos: (b, d) N+ = h_{+1} - h_0 on the neutral leaf.
        shift_neg: (b, d) N- = h_{-1} - h_0.
        d_ref: (b, d) h_cho - h_rej at coefficient 0.
        basis: P (d, k).
        softness: The focus exponent is 1 - softness.
        focus_ramp: Factor on the exponent.
    """
    sigma = subspace_scale(d_ref, basis)  # (k,)
    reference = d_ref @ basis / sigma  # (b, k)
    exponent = (1.0 - softness) * focus_ramp

    def along(shift: Tensor) -> Tensor:
        projected = shift @ basis  # (b, k)
        return _cosine(projected / sigma, reference) * _focus(shift, projected, exponent)

    return Orientation(pos=along(shift_pos), neg=along(shift_neg))


class PersonaLLR(NamedTuple):
    """T: whose words the model would say, as a log-likelihood ratio of the two personas, nats.

    T(a) = mean over suffix tokens of sum_y p_a(y | neutral) [log p_0(y | cho) - log p_0(y | rej)]

    It is the expectation, over what the steered model would say next, of how much likelier the
    base model says it under the chosen persona than under the rejected one. Of one pair (), or of a
    batch (b,).
    """

    pos: Tensor
    """T(+1), differentiable."""
    neg: Tensor
    """T(-1), differentiable."""
    zero: Tensor
    """T(0)."""
    chosen: Tensor
    """The same of the base model under the chosen persona."""
    rejected: Tensor
    """Under the rejected persona."""


class Strength(NamedTuple):
    """Strength in prompt-equivalents: 1 is as far as the persona prompt itself goes, (b,) each."""

    pos: Tensor
    neg: Tensor


def strength(persona_llr: PersonaLLR) -> Strength:
    """s(a) = (T(a) - T(0)) / ((T_cho - T_rej) / 2), in prompt-equivalents."""
    t = persona_llr
    # Averaged over the batch before dividing: the span of a single pair may be close to zero.
    half_span = ((t.chosen - t.rejected).mean() / 2.0).clamp_min(1e-6).detach()  # ()
    return Strength(pos=(t.pos - t.zero) / half_span, neg=(t.neg - t.zero) / half_span)


def likeness_loss(s: Strength, spec: NeutralSpec) -> Tensor:
    """Hinges that make s(+1) reach m and s(-1) reach -m, (b,).

    w (relu(m - s(+1)) + relu(m + s(-1))), plus what exceeds the ceiling if there is one
    """
    loss = torch.relu(spec.margin - s.pos) + torch.relu(spec.margin + s.neg)
    if spec.ceiling is not None:
        loss = loss + torch.relu(s.pos - spec.ceiling) + torch.relu(-s.neg - spec.ceiling)
    return spec.likeness_weight * loss
