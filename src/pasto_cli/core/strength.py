"""Equal disturbance: how far a steerer moves the base model where no value is at stake, and the strength that does so.

KL(p_0 || p_a) at every token of the base model's own greedy answers to neutral open prompts; its 95th percentile is the
disturbance. Methods are compared at the strength where it is 1 nat, found for each sign apart.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from pasto_cli.core.adapter import Coefficients
from pasto_cli.core.forward import run
from pasto_cli.core.generation import decoding
from pasto_cli.core.models import LoadedModel
from pasto_cli.core.steering import Steerer
from pasto_cli.core.tokentree import cut, pack

PERCENTILE = 0.95
STRONGEST = 1024.0
"""Coefficient at which the search for a strength gives up."""


class Scaled:
    """A steerer whose +1 and -1 are other coefficients of another steerer."""

    def __init__(self, steerer: Steerer, up: float, down: float) -> None:
        self.steerer, self.up, self.down = steerer, up, down

    def at(self, coefficients: Coefficients) -> AbstractContextManager[None]:
        """See `Steerer.at`."""

        def scaled(a: float) -> float:
            return a * (self.up if a > 0 else self.down)

        if isinstance(coefficients, torch.Tensor):
            coefficients = coefficients.tolist()
        if isinstance(coefficients, int | float):
            return self.steerer.at(scaled(coefficients))
        return self.steerer.at([scaled(float(a)) for a in coefficients])


class Probe(NamedTuple):
    """Rows on which disturbance is measured: a prompt and the base model's own answer."""

    rows: list[list[int]]
    answer_lengths: list[int]


@torch.no_grad()
def make_probe(lm: LoadedModel, prompts: Sequence[str], tokens: int = 12) -> Probe:
    """Greedy answers of the clean base model to neutral prompts."""
    rows, lengths = [], []
    for prompt in prompts:
        ids = lm.chat.prompt(prompt)
        whole = lm.model.generate(
            input_ids=torch.tensor([ids], device=lm.device),
            attention_mask=torch.ones(1, len(ids), device=lm.device, dtype=torch.long),
            max_new_tokens=tokens, **decoding(0.0),
            pad_token_id=lm.tokenizer.eos_token_id,
        )[0].tolist()  # fmt: skip
        rows.append(whole)
        lengths.append(len(whole) - len(ids))
    return Probe(rows, lengths)


@torch.no_grad()
def disturbance(lm: LoadedModel, steerer: Steerer, probe: Probe, coefficient: float, budget: int = 512) -> float:
    """95th percentile over answer tokens of KL(p_0 || p_a), nats."""
    values = []
    for group in cut(probe.rows, budget, lm.trees):
        packed = pack([probe.rows[i] for i in group], lm.trees)
        sequences = packed.input_ids.shape[0]
        with steerer.at([0.0] * sequences + [coefficient] * sequences):
            last = run(lm, packed, rows=2).last
        for index, path in zip(group, packed.paths, strict=True):
            nodes = path[-(probe.answer_lengths[index] + 1) : -1].to(last.device)
            log_p = lm.head(last[:, nodes]).log_softmax(-1)
            values.append((log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1))
    return torch.quantile(torch.cat(values), PERCENTILE).item()


def equal_strength(lm: LoadedModel, steerer: Steerer, probe: Probe, sign: float, target: float = 1.0, rounds: int = 9) -> float:
    """The coefficient's size at which the disturbance is `target` nats, by doubling and bisection; positive.

    Where even `STRONGEST` does not disturb so much, about that is returned.
    """
    low, high = 0.0, 1.0
    while high < STRONGEST and disturbance(lm, steerer, probe, sign * high) < target:
        low, high = high, high * 2
    for _ in range(rounds):
        middle = (low + high) / 2
        if disturbance(lm, steerer, probe, sign * middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
