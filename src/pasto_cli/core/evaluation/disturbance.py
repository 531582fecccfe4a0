"""Disturbance: what a steerer does to the base model where no value is at stake, and the strength
that does a given amount.

    KL     KL(p_0 || p_a) at every token of the base model's own greedy answers to neutral open prompts; the disturbance is
           its 95th percentile, nats
    NLL    -log p_a of the neutral prompts' own words, nats a token: what steering costs in language modelling

Methods are compared at the strength where the disturbance is 1 nat, found for each sign apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pasto_cli.base.statistics import Floats, cluster_bootstrap
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.generation import decoding
from pasto_cli.core.steering.steerer import Steerer, lead

PERCENTILE = 0.95
LARGEST_COEFFICIENT = 1024.0
"""Coefficient at which the search for a strength gives up."""
CLOSE = 0.02
"""The search ends when the strength is known to this relative error."""


class Probe(NamedTuple):
    """Neutral prompts and the base model's own answers to them."""

    prompts: list[str]
    answers: list[list[int]]
    """Token ids of the greedy answers."""
    base: list[Tensor]
    """(tokens of the answer, d) each: the base's hidden states that the answer's tokens are
    predicted from."""
    words: list[int]
    """Tokens of each prompt's own text, without the chat template around it."""
    tail: int
    """Tokens of the chat template after it."""


class Reading(NamedTuple):
    """Disturbance at one coefficient, one array a prompt."""

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
    lm: LoadedModel, prompts: Sequence[str], tokens: int = 12, budget: int = 512
) -> Probe:
    """Greedy answers of the clean base model to neutral prompts.

    Args:
        lm: The base model.
        prompts: At least two, without a persona.
        tokens: Longest answer.
        budget: Nodes of one token tree.
    """
    ids = [lm.chat.prompt(prompt) for prompt in prompts]
    head, tail = _common(ids), _common([row[::-1] for row in ids])
    answers: list[list[int]] = [[] for _ in ids]
    for length in sorted(
        {len(row) for row in ids}
    ):  # prompts of equal length share a batch: no row is padded
        some = [i for i, row in enumerate(ids) if len(row) == length]
        for index, answer in zip(some, _greedy(lm, [ids[i] for i in some], tokens), strict=True):
            answers[index] = answer
    words = [len(row) - head - tail for row in ids]
    base: list[Tensor] = [torch.empty(0)] * len(ids)
    rows = [row + answer for row, answer in zip(ids, answers, strict=True)]
    for index, states in hidden_states(lm, rows, budget):
        base[index] = states.last(slice(-(len(answers[index]) + 1), -1))[0]
    return Probe(list(prompts), answers, base, words, tail)


def _greedy(lm: LoadedModel, rows: list[list[int]], tokens: int) -> list[list[int]]:
    """The clean model's answers to rows of equal length, each up to and with the token that ends
    it."""
    ids = torch.tensor(rows, device=lm.device)
    arguments: dict[str, Any] = {
        "max_new_tokens": tokens,
        **decoding(0.0),
        "pad_token_id": lm.tokenizer.eos_token_id,
    }
    found = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)[
        :, ids.shape[1] :
    ].tolist()
    more = lm.model.generation_config.eos_token_id  # one, several or none
    ends = {lm.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])}
    return [
        row[: next((n + 1 for n, token in enumerate(row) if token in ends), None)] for row in found
    ]


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    return next(
        (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1),
        min(map(len, rows)),
    )


@torch.no_grad()
def measure(
    lm: LoadedModel, steerer: Steerer, probe: Probe, coefficient: float, budget: int = 512
) -> Reading:
    """Disturbance at one coefficient; a steerer that works by words is measured with its words
    before each prompt."""
    leading = lead(steerer, coefficient) or ""
    rows = [
        lm.chat.prompt(leading + p) + answer
        for p, answer in zip(probe.prompts, probe.answers, strict=True)
    ]
    kl: list[Floats] = [np.empty(0)] * len(rows)
    nll: list[Floats] = [np.empty(0)] * len(rows)

    passes = hidden_states(lm, rows, budget, steer=steerer.at, coefficients=[coefficient])
    for index, states in passes:
        own, words = len(probe.answers[index]), probe.words[index]
        end = len(rows[index]) - own - probe.tail  # where the prompt's own text ends
        log_p = lm.head(states.last(slice(end - words - 1, -1))[0]).log_softmax(-1)
        log_p0 = lm.head(probe.base[index]).log_softmax(-1)
        answer = log_p[-own:] if own else log_p[:0]
        kl[index] = (log_p0.exp() * (log_p0 - answer)).sum(-1).cpu().double().numpy()
        said = torch.tensor(rows[index][end - words : end], device=log_p.device)
        nll[index] = -log_p[:words].gather(-1, said[:, None])[:, 0].cpu().double().numpy()
    return Reading(kl, nll)


def summary(reading: Reading, zero: Reading, seed: int = 0) -> dict[str, Any]:
    """Figures of a reading with 95 % intervals, prompts resampled whole.

    Args:
        reading: At a coefficient.
        zero: At coefficient 0, for the shift of the NLL.
        seed: Of the bootstrap.

    Returns:
        `kl_p95`, `kl_mean`, `nll`, `nll_shift`: estimates as mappings, nats.
    """
    names = [str(i) for i in range(len(reading.kl))]

    def estimate(statistic: Callable[[np.ndarray], float]) -> dict[str, Any]:
        return cluster_bootstrap(statistic, names, seed)._asdict()

    def joined(arrays: list[Floats], index: np.ndarray) -> Floats:
        return np.concatenate([arrays[i] for i in index])

    return {
        "kl_p95": estimate(lambda i: float(np.quantile(joined(reading.kl, i), PERCENTILE))),
        "kl_mean": estimate(lambda i: float(joined(reading.kl, i).mean())),
        "nll": estimate(lambda i: float(joined(reading.nll, i).mean())),
        "nll_shift": estimate(
            lambda i: float((joined(reading.nll, i) - joined(zero.nll, i)).mean())
        ),
    }


def coefficient_at_budget(
    lm: LoadedModel, steerer: Steerer, probe: Probe, sign: float, target: float = 1.0
) -> float:
    """The coefficient's size at which KL's 95th percentile is `target` nats, bracketed, then by
    Brent's method; positive.

    Disturbance grows about as the square of a small coefficient, so logarithms of both are nearly
    on a line. Where even `LARGEST_COEFFICIENT` does not disturb so much, that is returned."""
    from scipy.optimize import brentq

    known: dict[float, float] = {}

    def excess(log_size: float) -> float:
        if log_size not in known:
            found = measure(lm, steerer, probe, sign * math.exp(log_size)).kl_p95
            known[log_size] = math.log(max(found, 1e-12) / target)
        return known[log_size]

    limit, step = math.log(LARGEST_COEFFICIENT), math.log(2.0)
    low = high = min(-excess(0.0) / 2, limit)
    while excess(high) < 0:
        if high >= limit:
            return LARGEST_COEFFICIENT
        high = min(high + step, limit)
    while excess(low) > 0:
        low -= step
    root: Any = brentq(excess, low, high, xtol=CLOSE) if low < high else low
    return math.exp(root)
