"""From what was read of the model to the loss of a batch (AntiPaSTO, arXiv 2601.07473, section 3).

    loss = projection + ramp (coherence + monotonicity) + orientation + likeness + anchor
        + preference

The terms themselves are in `losses`. Projection and orientation are made from the residual stream
at the loss depth, of the whole batch at once (sigma is a spread over pairs); the others pair by
pair from the numbers of `readout`.

The difference of a pair is d_c = h_cho - h_rej at coefficient c, its gap g_c = mean log p_c(next |
cho) - mean log p_c(next | rej), nats per token.

Legend: b pairs, w window (positions of one row that count), d d_model, k rank of the subspace.
Signs are +1, -1, in this order on every axis of two.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.base.statistics import cluster_bootstrap
from pasto_cli.core.recipe.losses_spec import AnchorSpec, LossesSpec, PreferenceSpec
from pasto_cli.core.training import losses
from pasto_cli.core.training.anchors import AnchorRead, anchor_loss, shared_changes
from pasto_cli.core.training.losses import PersonaLLR
from pasto_cli.core.training.preference import LogRatios, preference_loss
from pasto_cli.core.training.readout import NEUTRAL, WATCHED, BaseRead, SteeredRead


class Side(NamedTuple):
    """One row of a pair (chosen, rejected or neutral): what the loss needs of it."""

    depth: Tensor
    """(..., d) float32: residual stream at the loss depth, mean over the last tokens."""
    last: Tensor
    """(..., w, d): hidden states before the output head at the window."""


class BasePair(NamedTuple):
    """The base model's side of a pair."""

    chosen: Side
    rejected: Side
    neutral: Side
    read: BaseRead

    @property
    def sides(self) -> tuple[Side, Side, Side]:
        """Chosen, rejected, neutral."""
        return self.chosen, self.rejected, self.neutral

    @property
    def size(self) -> int:
        """Bytes."""
        read = self.read
        tensors = [
            *(tensor for side in self.sides for tensor in side),
            *read.entropy,
            *read.next_token_logp,
            read.persona_llr,
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


class PairTerms(NamedTuple):
    """What one pair contributes by its next-token distributions."""

    coherence: Tensor
    """(): penalty on the chosen side at +1, the rejected side at -1 and (if asked) the neutral one
    at both."""
    tv: Tensor
    """(): mean total variation, for the log."""
    gap: Tensor
    """(3,): g at +1, -1 and 0, nats per token."""
    entropy: Tensor
    """(): mean base entropy over both persona sides, nats."""
    persona_llr: PersonaLLR | None
    """() each, nats; None without a neutral side."""


class SteeredPair(NamedTuple):
    """The steered model's side of a pair."""

    depths: list[Tensor]
    """Chosen, rejected and perhaps neutral side, (2, d): `Side.depth` at +1 and -1."""
    terms: PairTerms


class LossReport(NamedTuple):
    """Loss of a batch and what it consists of."""

    total: Tensor
    """Scalar, differentiable."""
    parts: dict[str, float]
    """Each term, as weighted into the total."""
    diagnostics: dict[str, float]
    """Cosines, gaps, total variation, strength: what to watch."""


def pair_terms(
    base: BaseRead, steered: SteeredRead, suffix_len: int, spec: LossesSpec
) -> PairTerms:
    """What one pair contributes by its next-token distributions."""
    # The distribution at the token before the suffix is that of the suffix's first word.
    coherent = _ending(spec.coherence.tokens, suffix_len + 1)
    coherence = _coherence(base, steered, coherent, spec)
    tv = torch.stack([tv[coherent].mean() for tv in steered.tv]).mean().detach()
    # Log-probabilities are of the next token, so that there is one fewer than positions.
    scored = _ending(spec.monotonicity.tokens, suffix_len)
    chosen, rejected = (
        torch.cat([at_signs[:, scored], at_zero[None, scored]]).mean(-1)  # (3, t) -> (3,)
        for at_signs, at_zero in zip(steered.next_token_logp, base.next_token_logp, strict=True)
    )
    entropy = torch.stack([h[:-1][scored].mean() for h in base.entropy[:NEUTRAL]]).mean()
    return PairTerms(coherence, tv, chosen - rejected, entropy, _persona_llr(base, steered))


def _ending(tokens: str, count: int) -> slice:
    """The last `count` positions of a window, or all of them."""
    return slice(-count, None) if tokens == "suffix" else slice(None)


def _coherence(base: BaseRead, steered: SteeredRead, coherent: slice, spec: LossesSpec) -> Tensor:
    """Mean penalty of the persona sides plus (if asked) that of the neutral side, ()."""
    neutral_too = spec.neutral is not None and spec.neutral.coherence
    of_personas, of_neutral = [], []
    for (side, _), tv in zip(WATCHED, steered.tv, strict=False):  # two of four without neutral
        if side == NEUTRAL and not neutral_too:
            continue
        seen = tv[None, coherent]  # (1, t)
        penalty = losses.coherence_penalty(
            seen,
            base_entropy=base.entropy[side][None, coherent],
            mask=torch.ones_like(seen, dtype=torch.bool),
            spec=spec.coherence,
        )
        (of_neutral if side == NEUTRAL else of_personas).append(penalty[0])
    coherence = torch.stack(of_personas).mean()
    return coherence + torch.stack(of_neutral).mean() if of_neutral else coherence


def _persona_llr(base: BaseRead, steered: SteeredRead) -> PersonaLLR | None:
    if steered.persona_llr is None:
        return None
    pos, neg = steered.persona_llr
    zero, chosen, rejected = base.persona_llr
    return PersonaLLR(pos=pos, neg=neg, zero=zero, chosen=chosen, rejected=rejected)


def combine(
    base: Sequence[BasePair],
    steered: Sequence[SteeredPair],
    basis: Tensor,
    spec: LossesSpec,
    ramp: float,
) -> LossReport:
    """The loss of a batch.

    Args:
        base: The base model's side of each pair.
        steered: The steered model's side of each pair.
        basis: P (d, k).
        spec: The recipe's losses.
        ramp: Factor on the constraints' weights and the focus exponent, 0 to 1.
    """
    d_ref = torch.stack([pair.chosen.depth - pair.rejected.depth for pair in base])  # (b, d)
    parts, diagnostics = _persona_parts(d_ref, steered, basis, spec, ramp)
    if steered[0].terms.persona_llr is not None:
        more_parts, more_diagnostics = _neutral_parts(d_ref, base, steered, basis, spec, ramp)
        parts |= more_parts
        diagnostics |= more_diagnostics
    total = torch.stack(list(parts.values())).sum()
    return LossReport(total, _floats(parts), _floats(diagnostics))


def _persona_parts(
    d_ref: Tensor, steered: Sequence[SteeredPair], basis: Tensor, spec: LossesSpec, ramp: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms of the paper, and what to watch of them."""
    d_pos, d_neg = (
        torch.stack([pair.depths[0][sign] - pair.depths[1][sign] for pair in steered])  # (b, d)
        for sign in (0, 1)
    )
    projection = losses.projection_loss(
        d_ref=d_ref, d_pos=d_pos, d_neg=d_neg, basis=basis, spec=spec.projection, focus_ramp=ramp
    )
    gap = torch.stack([pair.terms.gap for pair in steered])  # (b, 3)
    gap_pos, gap_neg = gap[:, 0] - gap[:, 2], gap[:, 1] - gap[:, 2]  # G+, G-: (b,)
    monotonicity = losses.monotonicity_loss(
        gap_pos=gap_pos,
        gap_neg=gap_neg,
        base_entropy=torch.stack([pair.terms.entropy for pair in steered]),
        spec=spec.monotonicity,
    )
    coherence = torch.stack([pair.terms.coherence for pair in steered])
    parts = {
        "projection": projection.loss.mean(),
        "coherence": ramp * coherence.mean(),
        "monotonicity": ramp * monotonicity.mean(),
    }
    diagnostics = {
        "cos_pos": projection.cos_pos.mean(),
        "cos_neg": projection.cos_neg.mean(),
        "antiparallel": projection.antiparallelism.mean(),
        "gap_pos": gap_pos.mean(),
        "gap_neg": gap_neg.mean(),
        "tv": torch.stack([pair.terms.tv for pair in steered]).mean(),
    }
    return parts, diagnostics


def _neutral_parts(
    d_ref: Tensor,
    base: Sequence[BasePair],
    steered: Sequence[SteeredPair],
    basis: Tensor,
    spec: LossesSpec,
    ramp: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms of the neutral branch, where it is on; strength is watched in any case."""
    each = [pair.terms.persona_llr for pair in steered if pair.terms.persona_llr is not None]
    persona_llr = PersonaLLR(*(torch.stack(values) for values in zip(*each, strict=True)))  # (b,)
    s = losses.strength(persona_llr)
    diagnostics = {"strength_pos": s.pos.mean(), "strength_neg": s.neg.mean()}
    if spec.neutral is None:
        return {}, diagnostics
    shift_pos, shift_neg = (
        torch.stack(
            [x.depths[NEUTRAL][sign] - y.neutral.depth for x, y in zip(steered, base, strict=True)]
        )  # (b, d)
        for sign in (0, 1)
    )
    o = losses.orientation(
        shift_pos=shift_pos,
        shift_neg=shift_neg,
        d_ref=d_ref,
        basis=basis,
        softness=spec.projection.softness,
        focus_ramp=ramp,
    )
    # No ramp: they are what the dial is for, not what holds it back.
    parts = {
        "orientation": spec.neutral.orientation_weight * (o.neg - o.pos).mean(),
        "likeness": losses.likeness_loss(s, spec.neutral).mean(),
    }
    diagnostics |= {"orientation_pos": o.pos.mean(), "orientation_neg": o.neg.mean()}
    return parts, diagnostics


def with_anchors(report: LossReport, reads: Sequence[AnchorRead], spec: AnchorSpec) -> LossReport:
    """A report with the anchors' terms added.

    Args:
        report: Terms of the batch's pairs, without anchors.
        reads: All drawn anchors.
        spec: Weights and aggregate.
    """
    loss = anchor_loss(reads, spec)
    found: dict[str, Tensor] = {}  # at +1 and -1, (2,)
    if single := [x for x in reads if not x.opposed]:
        found["kl"] = torch.cat([x.kl for x in single], dim=1).mean(1)  # over tokens
        found["choice"] = torch.stack([x.choice for x in single]).abs().mean(0)
    if len(single) < len(reads):
        found["opposites"] = shared_changes(reads).abs().mean(0)
    return LossReport(
        total=report.total + loss,
        parts=report.parts | {"anchor": loss.item()},
        diagnostics=report.diagnostics | _at_ends({f"anchor_{k}": x for k, x in found.items()}),
    )


def _at_ends(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers at +1 and -1 under a name each, from tensors (2,)."""
    # One by one: in a plan, where tensors hold no numbers, only single ones are given.
    return {
        f"{name}_{end}": value.item()
        for name, both in values.items()
        for end, value in zip(("pos", "neg"), both, strict=True)
    }


def with_preference(
    report: LossReport, ratios: Sequence[LogRatios], spec: PreferenceSpec
) -> LossReport:
    """A report with the preference term added.

    Args:
        report: The other terms.
        ratios: Log-ratios of all drawn pairs of answers.
        spec: Weight and kind.
    """
    loss = preference_loss(ratios, spec)
    per_token = torch.stack([x.per_token for x in ratios]).mean(0)
    return LossReport(
        total=report.total + loss,
        parts=report.parts | {"preference": loss.item()},
        diagnostics=report.diagnostics | _at_ends({"preference": per_token}),
    )


def held_out_preference(
    ratios: Sequence[LogRatios], questions: Sequence[str], spec: PreferenceSpec
) -> LossReport:
    """The preference term alone, on held-out pairs of answers.

    Args:
        ratios: Log-ratios of the pairs.
        questions: That of each pair: an interval is over questions.
        spec: Weight and kind.

    Returns:
        The term, and g(+1) and g(-1) (nats per token) with n and the limits of their intervals.
    """
    nothing = LossReport(ratios[0].per_token.new_zeros(()), {}, {})
    report = with_preference(nothing, ratios, spec)
    diagnostics = report.diagnostics | {"preference_n": float(len(ratios))}
    per_token = torch.stack([x.per_token for x in ratios]).cpu().double().numpy()  # (m, 2)
    for sign, name in enumerate(("preference_pos", "preference_neg")):
        g = per_token[:, sign]
        found = cluster_bootstrap(lambda rows, g=g: float(g[rows].mean()), questions)
        diagnostics |= {f"{name}_low": found.low, f"{name}_high": found.high}
    return report._replace(diagnostics=diagnostics)


def _floats(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in tensors.items()}
