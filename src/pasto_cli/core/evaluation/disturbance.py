"""Disturbance: what a steerer does to the base model where no value is at stake.

    KL     KL(p_0 || p_a) at every token of the base model's own greedy answers to neutral open
           prompts; the disturbance is its 95th percentile, nats
    NLL    -log p_a of the neutral prompts' own words, nats per token: what steering costs in
           language modelling

Methods are compared at equal disturbance: each at the coefficient where it is 1 nat, found for each
sign by itself, because a vector of norm 3 and a rotation of 45 degrees have no common scale.

Legend: t tokens of an answer or of a prompt's own text, v vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pasto_cli.base.statistics import Estimate, Floats, Indices, cluster_bootstrap, quantile
from pasto_cli.core.models import distributed
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.records.adapter import Specificity
from pasto_cli.core.records.scores import Disturbance
from pasto_cli.core.steering.kept_answers import kept_greedy_answers
from pasto_cli.core.steering.steerer import Steerer

PERCENTILE = 0.95
LARGEST_COEFFICIENT = 1024.0
"""Coefficient at which the search for a budget gives up."""
TOLERANCE = 0.02
"""The search ends when the coefficient is known to this relative error."""


class NeutralProbe(NamedTuple):
    """Neutral prompts and the base model's own answers to them."""

    prompts: list[str]
    openings: list[str]
    """How each reply begins, before the answer; mostly nothing."""
    answers: list[list[int]]
    """Token ids of the greedy answers."""
    base: list[Tensor]
    """(t, d_model) each: the base's hidden states that the answer's tokens are predicted from;
    empty for prompts of another process."""
    words: list[int]
    """Number of tokens of each prompt's own text, without the chat template around it."""
    tail: int
    """Number of tokens of the chat template after it."""

    def without_words(self) -> "NeutralProbe":
        """The same for whoever reads KL alone: no NLL of the prompts' words, half the work."""
        return self._replace(words=[0] * len(self.words), tail=0)


class DisturbanceReading(NamedTuple):
    """KL and NLL of every token at one coefficient, one array per prompt."""

    kl: list[Floats]
    """(tokens of the answer,) each: KL(p_0 || p_a), nats."""
    nll: list[Floats]
    """(tokens of the prompt,) each: -log p_a, nats."""

    @property
    def kl_p95(self) -> float:
        """95th percentile over all answer tokens."""
        return float(np.quantile(np.concatenate(self.kl), PERCENTILE))


@torch.no_grad()
def make_probe(
    lm: LoadedModel,
    prompts: Sequence[str],
    tokens: int = 12,
    budget: int = 512,
    openings: Sequence[str] | None = None,
) -> NeutralProbe:
    """Greedy answers of the clean base model to neutral prompts.

    Args:
        lm: The base model.
        prompts: At least two, without a persona.
        tokens: Length of the longest answer.
        budget: Nodes of one token tree.
        openings: How each reply begins; None or an empty one begins nothing for the base.
    """
    openings = list(openings or [""] * len(prompts))
    ids = [lm.chat.continued(*both) for both in zip(prompts, openings, strict=True)]
    # What all prompts begin and end with is the chat template; the rest is their own text.
    head, tail = _common_prefix(ids), _common_prefix([row[::-1] for row in ids])
    # Where a template writes nothing before them, nothing predicts the first token.
    words = [len(row) - max(head, 1) - tail for row in ids]
    # Of the first process, so that another one's rounding does not make its answers others.
    answers = distributed.all_gather_object(kept_greedy_answers(lm, ids, tokens))[0]
    rows = [row + answer for row, answer in zip(ids, answers, strict=True)]
    base: list[Tensor] = [torch.empty(0)] * len(ids)
    mine = distributed.shard(range(len(rows)))
    for place, states in hidden_states(lm, [rows[i] for i in mine], budget):
        index = mine[place]
        # A token is predicted one position before it stands.
        predicting = slice(-(len(answers[index]) + 1), -1)
        base[index] = states.last(predicting)[0]  # (1, t, d_model) -> (t, d_model)
    return NeutralProbe(list(prompts), openings, answers, base, words, tail)


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    columns = enumerate(zip(*rows, strict=False))
    return next((i for i, tokens in columns if len(set(tokens)) > 1), min(map(len, rows)))


@torch.no_grad()
def measure_disturbance(
    lm: LoadedModel,
    steerer: Steerer,
    probe: NeutralProbe,
    coefficient: float,
    budget: int = 512,
) -> DisturbanceReading:
    """Disturbance at one coefficient; processes share the prompts.

    A steerer that works by words is measured with its words before each prompt.

    Args:
        lm: The base model.
        steerer: What is measured.
        probe: From `make_probe`.
        coefficient: Any finite number.
        budget: Nodes of one token tree.
    """
    prefix = steerer.prompt_prefix(coefficient) or ""
    rows = [
        lm.chat.continued(prefix + prompt, opening) + answer
        for prompt, opening, answer in zip(
            probe.prompts, probe.openings, probe.answers, strict=True
        )
    ]
    found: dict[int, tuple[Floats, Floats]] = {}
    mine = distributed.shard(range(len(rows)))
    own = [rows[i] for i in mine]
    passes = hidden_states(lm, own, budget, steer=steerer.at, coefficients=[coefficient])
    for place, states in passes:
        index = mine[place]
        answer, words = len(probe.answers[index]), probe.words[index]
        end = len(rows[index]) - answer - probe.tail  # where the prompt's own text ends
        # From the position that predicts the first word to the one that predicts the last token.
        last = states.last(slice(end - words - 1, -1))[0]  # (words + tail + answer, d_model)
        # One product with the head for all of them: it reads the whole vocabulary's weights.
        read = torch.cat([last[:words], last[len(last) - answer :], probe.base[index]])
        log_p, log_pa, log_p0 = (
            lm.head(read).log_softmax(-1).split([words, answer, answer])  # (..., v)
        )
        kl = (log_p0.exp() * (log_p0 - log_pa)).sum(-1)  # (answer,)
        text = torch.tensor(rows[index][end - words : end], device=log_p.device)  # (words,)
        nll = -log_p.gather(-1, text[:, None])[:, 0]  # (words,)
        found[index] = kl.cpu().double().numpy(), nll.cpu().double().numpy()
    read = [tokens for _, tokens in sorted(distributed.merge(found).items())]
    return DisturbanceReading([kl for kl, _ in read], [nll for _, nll in read])


def summarise_disturbance(
    reading: DisturbanceReading, zero: DisturbanceReading, seed: int = 0
) -> Disturbance:
    """A reading with 95 % intervals; prompts are resampled whole.

    Args:
        reading: At a coefficient.
        zero: At coefficient 0, for the shift of the NLL.
        seed: Seed of the bootstrap.
    """
    shifts = [now - base for now, base in zip(reading.nll, zero.nll, strict=True)]
    return Disturbance(
        kl_p95=_p95(reading.kl, seed),
        kl_mean=_mean(reading.kl, seed),
        nll=_mean(reading.nll, seed),
        nll_shift=_mean(shifts, seed),
    )


def _p95(arrays: Sequence[Floats], seed: int) -> Estimate:
    """95th percentile over the tokens of all prompts."""

    def statistic(index: Indices) -> float:
        return quantile(np.concatenate([arrays[i] for i in index]), PERCENTILE)

    return cluster_bootstrap(statistic, [str(i) for i in range(len(arrays))], seed)


def _mean(arrays: Sequence[Floats], seed: int) -> Estimate:
    """Over all tokens; prompts with more of them count for more."""
    sums, counts = np.array([a.sum() for a in arrays]), np.array([len(a) for a in arrays])
    names = [str(i) for i in range(len(arrays))]
    return cluster_bootstrap(lambda i: float(sums[i].sum() / counts[i].sum()), names, seed)


def measure_specificity(
    lm: LoadedModel,
    steerer: Steerer,
    anchors: Sequence[Anchor],
    *,
    tokens: int,
    budget: int,
    seed: int,
) -> dict[str, Specificity]:
    """KL on held-out anchors at +1 and -1, by coefficient; anchors are resampled whole.

    Args:
        lm: The base model.
        steerer: What is measured.
        anchors: Those that were not trained on.
        tokens: Longest answer.
        budget: Nodes of one token tree.
        seed: Seed of the bootstrap.
    """
    prompts, openings = [a.prompt for a in anchors], [a.opening for a in anchors]
    probe = make_probe(lm, prompts, tokens, budget, openings).without_words()
    found = {}
    for name, coefficient in (("1", 1.0), ("-1", -1.0)):
        kl = measure_disturbance(lm, steerer, probe, coefficient, budget).kl
        found[name] = Specificity(kl_mean=_mean(kl, seed), kl_p95=_p95(kl, seed))
    return found


def coefficient_at_budget(
    lm: LoadedModel, steerer: Steerer, probe: NeutralProbe, sign: float, target: float = 1.0
) -> float:
    """Size (positive) of the coefficient at which the 95th percentile of KL is `target` nats.

    Bracketed, then by Brent's method. Where even `LARGEST_COEFFICIENT` does not disturb so much,
    that is returned.

    Args:
        lm: The base model.
        steerer: What is scaled.
        probe: From `make_probe`.
        sign: +1 or -1: the side on which to search.
        target: Budget, nats.
    """
    from scipy.optimize import brentq

    probe = probe.without_words()
    known: dict[float, float] = {}  # log size -> log excess: a reading costs a forward pass

    # Disturbance grows about as the square of a small coefficient, so that the logarithms of both
    # are nearly on a line, which is what Brent's method likes.
    def excess(log_size: float) -> float:
        if log_size not in known:
            found = measure_disturbance(lm, steerer, probe, sign * math.exp(log_size)).kl_p95
            known[log_size] = math.log(max(found, 1e-12) / target)
        return known[log_size]

    limit, step = math.log(LARGEST_COEFFICIENT), math.log(2.0)
    # By that law the budget lies near a log size of -excess(0) / 2; the bracket grows from there.
    low = high = min(-excess(0.0) / 2, limit)
    while excess(high) < 0:
        if high >= limit:
            return LARGEST_COEFFICIENT
        high = min(high + step, limit)
    while excess(low) > 0:
        low -= step
    root: Any = brentq(excess, low, high, xtol=TOLERANCE) if low < high else low
    return math.exp(root)
