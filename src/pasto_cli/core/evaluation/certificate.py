"""Strength in prompt-equivalents on held-out suffixes under held-out neutral prompts, and the
certificate made from it.

    T(a) = mean over suffix tokens of sum_y p_a(y | neutral) [log p_0(y | cho) - log p_0(y | rej)]
    s(a) = (mean T(a) - mean T(0)) / ((mean T_cho - mean T_rej) / 2)

A dial is certified if s(+1) > 0 > s(-1) with 95 % intervals that exclude 0. Benchmark data is never
used."""

from collections.abc import Callable, Sequence
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
from pasto_cli.core.records.adapter import Certificate, Interval
from pasto_cli.core.steering.steerer import Steerer

MIN_SPAN = 1e-3
"""Nats a token by which the persona prompts must differ: below it there is nothing to measure
strength against."""


class Likeness(NamedTuple):
    """T of each held-out pair, (n,) nats a token."""

    steered: dict[float, Floats]
    neutral: Floats
    chosen: Floats
    rejected: Floats
    clusters: list[str]

    def strength(self, coefficient: float, seed: int = 0) -> Estimate:
        """s(a) with an interval; pairs of one suffix are resampled together."""
        moved = self.steered[coefficient] - self.neutral
        span = (self.chosen - self.rejected) / 2

        def ratio(index: np.ndarray) -> float:
            half = span[index].mean()
            return float(moved[index].mean() / half) if half > 0 else float("nan")

        return cluster_bootstrap(ratio, self.clusters, seed)


class _PairLikeness(NamedTuple):
    """T of one held-out pair, nats per token."""

    chosen: float
    rejected: float
    neutral: float
    steered: list[float]
    """One per coefficient."""


@torch.no_grad()
def measure_likeness(
    lm: LoadedModel,
    steerer: Steerer,
    pairs: Sequence[TokenPair],
    coefficients: Sequence[float],
    budget: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Likeness:
    """T of a steerer at several coefficients.

    Args:
        lm: The base model.
        steerer: What is measured.
        pairs: Held-out pairs.
        coefficients: Without 0, which is the base.
        budget: Nodes of one token tree.
        progress: Told how many pairs are done.
    """

    def read(group: list[int]) -> dict[int, _PairLikeness]:
        some = [pairs[i] for i in group]
        return dict(zip(group, _read(lm, steerer, some, coefficients, budget), strict=True))

    groups = cut([p.neutral for p in pairs], budget, lm.trees)
    found = distributed.map_groups(groups, read, progress)
    each = [found[i] for i in range(len(pairs))]
    return Likeness(
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
) -> list[_PairLikeness]:
    """T of a group of pairs whose neutral prompts fit one pass together.

    Legend: c coefficients, w window (the suffix and the token before it), v vocabulary.
    """
    windows = [slice(-(p.suffix_len + 1), None) for p in pairs]
    sides = [row for p in pairs for row in (p.chosen, p.rejected, p.neutral)]
    base: dict[int, Tensor] = {}  # three sides per pair, (w, d_model) each
    for index, states in hidden_states(lm, sides, budget):
        base[index] = states.last(windows[index // 3])[0]
    # The base's pass is over and only its windows are kept: the steered one has the memory.
    steered: dict[int, RowStates] = {}
    if coefficients:
        rows = [p.neutral for p in pairs]
        steered |= hidden_states(lm, rows, None, steer=steerer.at, coefficients=coefficients)
    found = []
    for index, window in enumerate(windows):
        chosen, rejected, neutral = (
            lm.head(base[3 * index + side]).log_softmax(-1) for side in range(3)
        )  # (w, v) each
        ratio = chosen - rejected  # (w, v): log p_0(y | cho) - log p_0(y | rej)
        at_base = [
            (log_p.exp() * ratio).sum(-1).mean().item() for log_p in (chosen, rejected, neutral)
        ]
        at_coefficients: list[float] = []
        if index in steered:
            p = lm.head(steered[index].last(window)).softmax(-1)  # (c, w, v)
            at_coefficients = (p * ratio).sum(-1).mean(-1).tolist()
        found.append(_PairLikeness(*at_base, at_coefficients))
    return found


def certify(likeness: Likeness, num_prompts: int, seed: int = 0) -> Certificate:
    """The certificate of what was measured at +1 and -1.

    Args:
        likeness: Must hold the coefficients 1.0 and -1.0.
        num_prompts: Different neutral prompts behind it.
        seed: Of the bootstrap.
    """
    span = float((likeness.chosen - likeness.rejected).mean())
    half = max(span / 2, 1e-12)
    strengths = {f"{a:g}": likeness.strength(a, seed) for a in sorted(likeness.steered)}
    up, down = strengths["1"], strengths["-1"]
    reasons = []
    if span < MIN_SPAN:
        reasons.append(f"the persona prompts differ by {span:.2g} nats a token only")
    if len(set(likeness.clusters)) < 2:
        reasons.append(
            "one held-out opening gives no interval: raise pairs.count or training.certificate"
        )
    elif not up.low > 0:
        reasons.append(f"s(+1) = {up.value:+.2f} [{up.low:+.2f}, {up.high:+.2f}] is not above 0")
    if len(set(likeness.clusters)) > 1 and not down.high < 0:
        reasons.append(
            f"s(-1) = {down.value:+.2f} [{down.low:+.2f}, {down.high:+.2f}] is not below 0"
        )
    stand = {
        "chosen": float((likeness.chosen - likeness.neutral).mean()) / half,
        "rejected": float((likeness.rejected - likeness.neutral).mean()) / half,
    }
    return Certificate(
        passed=not reasons,
        strength={
            c: Interval(value=e.value, low=e.low, high=e.high, n=e.n) for c, e in strengths.items()
        },
        persona_prompts=stand,
        span_nats=span,
        num_suffixes=len(set(likeness.clusters)),
        num_neutral_prompts=num_prompts,
        reason="; ".join(reasons),
    )
