"""The next token of a row.

    greedy     argmax of the logits
    sampled    from softmax(logits / temperature), cut to the nucleus: the fewest likeliest tokens
               whose mass reaches top_p (Holtzman et al., arXiv 1904.09751, section 3.1)

A sampled row draws from a generator of its own, so that its text does not depend on its neighbours.

Legend: v vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from pasto_cli.core.serving.engine import Sampling, TokenLogprob


class Sampler:
    """Draws the tokens of one row.

    Args:
        sampling: Temperature, nucleus and seed.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            # A client may send any integer; a generator takes 64 bits.
            self.generator.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: Tensor) -> int:
        """The next token at a temperature above 0, from logits (v,) in float32 or float64."""
        logits = nucleus(logits.cpu() / self.temperature, self.top_p)
        # On the cpu: generators of other devices draw other numbers from one seed.
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits (v,) with those outside the nucleus at minus infinity; the likeliest always stays."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    # A token is outside where those before it have the mass already.
    outside = mass - ordered.softmax(-1) >= top_p
    outside[0] = False
    return logits.masked_fill(outside.scatter(0, order, outside), float("-inf"))


def logprob_of(tokenizer: Any, logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """What is told about a chosen token, from logits (v,)."""
    logp = logits.log_softmax(-1)
    best = logp.topk(min(alternatives, len(logp)))
    top = [
        (tokenizer.decode([index]), value)
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return TokenLogprob(tokenizer.decode([token]), float(logp[token]), top)
