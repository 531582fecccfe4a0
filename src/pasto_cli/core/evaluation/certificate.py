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
from pasto_cli.core.models.forward import run
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.memory import Pieces
from pasto_cli.core.models.tokentree import cut, pack
from pasto_cli.core.records.adapter import Certificate
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
    t: dict[str, list[float]] = {
        name: [float("nan")] * len(pairs) for name in ("neutral", "chosen", "rejected")
    }
    steered: dict[float, list[float]] = {a: [float("nan")] * len(pairs) for a in coefficients}
    groups = cut([p.neutral for p in pairs], budget, lm.trees)

    def read(group: list[int]) -> None:
        ends = [pairs[i].suffix_len + 1 for i in group]
        base = _window_states(
            lm,
            [row for i in group for row in pairs[i][:3]],
            [e for e in ends for _ in range(3)],
            budget,
        )
        packed = pack([pairs[i].neutral for i in group], lm.trees)
        with steerer.at([a for a in coefficients for _ in range(packed.input_ids.shape[0])]):
            last = run(lm, packed, rows=len(coefficients)).last if coefficients else None
        for position, index in enumerate(group):
            cho, rej, neutral = (
                lm.head(x).log_softmax(-1) for x in base[3 * position : 3 * position + 3]
            )
            ratio = cho - rej  # (w, v)
            for name, log_p in (("chosen", cho), ("rejected", rej), ("neutral", neutral)):
                t[name][index] = (log_p.exp() * ratio).sum(-1).mean().item()
            if last is not None:
                path = packed.paths[position][-ends[position] :].to(lm.device)
                values = (lm.head(last[:, path]).softmax(-1) * ratio).sum(-1).mean(-1)
                for a, value in zip(coefficients, values.tolist(), strict=True):
                    steered[a][index] = value
        progress(len(group))

    pieces = Pieces(read)
    for group in distributed.shard(groups):
        pieces(group)
    if distributed.size() > 1:
        own = [i for group in distributed.shard(groups) for i in group]
        for some, *found in distributed.all_gather_object((own, t, steered)):
            for mine, theirs in zip((t, steered), found, strict=True):
                for name, values in theirs.items():
                    for i in some:
                        mine[name][i] = values[i]
        progress(len(pairs) - len(own))
    clusters = [" ".join(map(str, p.neutral[-p.suffix_len :])) for p in pairs]
    arrays = {name: np.array(x) for name, x in t.items()}
    return Likeness(
        {a: np.array(x) for a, x in steered.items()},
        arrays["neutral"],
        arrays["chosen"],
        arrays["rejected"],
        clusters,
    )


def _window_states(
    lm: LoadedModel, rows: list[list[int]], windows: list[int], budget: int
) -> list[Tensor]:
    """Base model's last hidden states at the final positions of each row."""
    result = [torch.empty(0)] * len(rows)
    for group in cut(rows, budget, lm.trees):
        packed = pack([rows[i] for i in group], lm.trees)
        last = run(lm, packed).last[0]
        for index, path in zip(group, packed.paths, strict=True):
            result[index] = last[path[-windows[index] :].to(last.device)]
    return result


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
        strength=strengths,
        persona_prompts=stand,
        span_nats=span,
        num_suffixes=len(set(likeness.clusters)),
        num_neutral_prompts=num_prompts,
        reason="; ".join(reasons),
    )
