"""The certificate of a dial: its strength on held-out suffixes under held-out neutral prompts.

The persona log-likelihood ratio of what a model would say (`persona_llr`, nats per token):

    T(a) = mean over suffix tokens of sum_y p_a(y | neutral) [log p_0(y | cho) - log p_0(y | rej)]

and T_cho, T_rej the same of the base model under the two persona prompts. The strength of a
steerer in prompt-equivalents, where 1 is as far as the persona prompt itself goes:

    s(a) = (mean T(a) - mean T(0)) / ((mean T_cho - mean T_rej) / 2)

A dial is certified if s(+1) > 0 > s(-1) with 95 % intervals that exclude 0 by `MIN_STRENGTH`, and
each of its ends moves by `USEFUL` at least: a dial of +0.11 and -0.25 moved dilemmas the wrong way.
A dial without ends is not asked that: how far it goes at +1 is then a matter of units.
Benchmark data is never used: a dial must not be chosen by what it is later measured with.

The published method (AntiPaSTO, arXiv 2601.07473) shapes differences between persona prompts only;
what a prompt without a persona does is pasto's own question, and T is its answer.

Legend: c coefficients, n pairs, w window (the suffix and the token before it), v vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pasto_cli.base.statistics import Estimate, Floats, cluster_bootstrap
from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.forward import RowStates, hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.tokentree import cut
from pasto_cli.core.records.adapter import Certificate
from pasto_cli.core.steering.steerer import Steerer

MIN_SPAN = 1e-3
"""Nats per token by which the persona prompts must differ, to have something to measure against."""
MIN_STRENGTH = 0.01
"""Prompt-equivalents that each end must move for certain: less is within rounding, which has a sign
on every pair as well."""
USEFUL = 0.2
"""Prompt-equivalents: an end that moves less is certain and of no use."""


class HeldOutPersonaLLR(NamedTuple):
    """T of each held-out pair, (n,) each, nats per token."""

    steered: dict[float, Floats]
    """Coefficient -> T(a) under the neutral prompts."""
    neutral: Floats
    """T(0)."""
    chosen: Floats
    """T_cho."""
    rejected: Floats
    """T_rej."""
    clusters: list[str]
    """The suffix of each pair: pairs of one suffix are resampled together."""

    @property
    def span(self) -> float:
        """Mean of T_cho - T_rej: how far apart the persona prompts are, nats per token."""
        return float((self.chosen - self.rejected).mean())

    def strength(self, coefficient: float, seed: int = 0) -> Estimate:
        """s(a) with an interval over suffixes."""
        moved = self.steered[coefficient] - self.neutral
        span = (self.chosen - self.rejected) / 2

        # Means are divided, not pairs: the span of a single pair may be next to nothing.
        def ratio(index: np.ndarray) -> float:
            half = span[index].mean()
            return float(moved[index].mean() / half) if half > 0 else float("nan")

        return cluster_bootstrap(ratio, self.clusters, seed)


class _PairPersonaLLR(NamedTuple):
    """T of one held-out pair, nats per token."""

    chosen: float
    rejected: float
    neutral: float
    steered: list[float]
    """One per coefficient."""


@torch.no_grad()
def measure_persona_llr(
    lm: LoadedModel,
    steerer: Steerer,
    pairs: Sequence[TokenPair],
    coefficients: Sequence[float],
    budget: int,
    progress: Callable[[int], None] = lambda _: None,
) -> HeldOutPersonaLLR:
    """T of a steerer at several coefficients.

    Args:
        lm: The base model.
        steerer: What is measured.
        pairs: Held-out pairs.
        coefficients: Without 0, which is the base.
        budget: Nodes of one token tree.
        progress: Told how many pairs are done.
    """

    def read(group: list[int]) -> dict[int, _PairPersonaLLR]:
        some = [pairs[i] for i in group]
        return dict(zip(group, _read(lm, steerer, some, coefficients, budget), strict=True))

    groups = cut([p.neutral for p in pairs], budget, lm.trees)
    found = distributed.map_groups(groups, read, progress)
    each = [found[i] for i in range(len(pairs))]
    return HeldOutPersonaLLR(
        {a: np.array([x.steered[c] for x in each]) for c, a in enumerate(coefficients)},
        np.array([x.neutral for x in each]),
        np.array([x.chosen for x in each]),
        np.array([x.rejected for x in each]),
        [" ".join(map(str, p.neutral[-p.suffix_len :])) for p in pairs],
    )


def _read(
    lm: LoadedModel,
    steerer: Steerer,
    pairs: Sequence[TokenPair],
    coefficients: Sequence[float],
    budget: int,
) -> list[_PairPersonaLLR]:
    """T of a group of pairs whose neutral prompts fit one pass together."""
    windows = [slice(-(p.suffix_len + 1), None) for p in pairs]
    base = _base_states(lm, pairs, windows, budget)
    steered: dict[int, RowStates] = {}
    if coefficients:
        rows = [p.neutral for p in pairs]
        steered |= hidden_states(lm, rows, None, steer=steerer.at, coefficients=coefficients)
    found = []
    for index, window in enumerate(windows):
        # One pair at a time: distributions over the vocabulary are by far the largest tensors here.
        log_p = [lm.head(side).log_softmax(-1) for side in base[index]]  # (w, v) each
        ratio = log_p[0] - log_p[1]  # (w, v): log p_0(y | cho) - log p_0(y | rej)
        chosen, rejected, neutral = ((x.exp() * ratio).sum(-1).mean().item() for x in log_p)
        at_coefficients: list[float] = []
        if index in steered:
            p = lm.head(steered[index].last(window)).softmax(-1)  # (c, w, v)
            at_coefficients = (p * ratio).sum(-1).mean(-1).tolist()  # (c,)
        found.append(_PairPersonaLLR(chosen, rejected, neutral, at_coefficients))
    return found


def _base_states(
    lm: LoadedModel, pairs: Sequence[TokenPair], windows: Sequence[slice], budget: int
) -> list[list[Tensor]]:
    """The base's last hidden states: for each pair (w, d_model) of chosen, rejected and neutral.

    A function of its own, so that the rest of its passes is freed before the steered one needs the
    memory.
    """
    rows = [row for p in pairs for row in (p.chosen, p.rejected, p.neutral)]
    found: dict[int, Tensor] = {}
    for index, states in hidden_states(lm, rows, budget):
        found[index] = states.last(windows[index // 3])[0]  # (1, w, d_model) -> (w, d_model)
    return [[found[3 * i + side] for side in range(3)] for i in range(len(pairs))]


def certify(
    llr: HeldOutPersonaLLR, num_prompts: int, seed: int = 0, *, at_ends: bool = True
) -> Certificate:
    """The certificate of what was measured at +1 and -1.

    Args:
        llr: Must hold the coefficients 1.0 and -1.0.
        num_prompts: Number of different neutral prompts behind it.
        seed: Seed of the bootstrap.
        at_ends: Whether +1 and -1 are ends that were found for a budget.
    """
    strengths = {f"{a:g}": llr.strength(a, seed) for a in sorted(llr.steered)}
    reasons = _why_not(llr, strengths)
    if at_ends and not reasons:
        reasons = _too_weak(strengths["1"], strengths["-1"])
    half = max(llr.span / 2, 1e-12)
    return Certificate(
        passed=not reasons,
        strength=strengths,
        # The persona prompts need not be symmetric about the neutral one.
        persona_prompts={
            "chosen": float((llr.chosen - llr.neutral).mean()) / half,
            "rejected": float((llr.rejected - llr.neutral).mean()) / half,
        },
        span_nats=llr.span,
        num_suffixes=len(set(llr.clusters)),
        num_neutral_prompts=num_prompts,
        reason="; ".join(reasons),
    )


def _why_not(llr: HeldOutPersonaLLR, strengths: Mapping[str, Estimate]) -> list[str]:
    """What stands against a certificate; nothing if it is passed."""
    up, down = strengths["1"], strengths["-1"]
    reasons: list[str] = []
    if llr.span < MIN_SPAN:
        reasons.append(f"the persona prompts differ by {llr.span:.2g} nats per token only")
    if len(set(llr.clusters)) < 2:
        reasons.append(
            "one held-out opening gives no interval: raise pairs.count or training.certificate"
        )
        return reasons
    # Written as "not above" and "not below", so that NaN does not pass.
    if not up.low > MIN_STRENGTH:
        reasons.append(f"s(+1) = {up.value:+.2f} [{up.low:+.2f}, {up.high:+.2f}] is not above 0")
    if not down.high < -MIN_STRENGTH:
        reasons.append(
            f"s(-1) = {down.value:+.2f} [{down.low:+.2f}, {down.high:+.2f}] is not below 0"
        )
    return reasons


def _too_weak(up: Estimate, down: Estimate) -> list[str]:
    """A reason where an end, certain as it is, hardly moves."""
    weak = [
        f"s({shown}) = {found.value:+.2f}"
        for shown, found in (("+1", up), ("-1", down))
        if abs(found.value) < USEFUL
    ]
    if not weak:
        return []
    return [
        f"{' and '.join(weak)}: too weak to be of use (less than {USEFUL:g} prompt-equivalents)"
    ]
