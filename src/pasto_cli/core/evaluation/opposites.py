"""Questions asked both ways: whether a dial says Yes to a thing and to its opposite.

    s = ((m_a - m_0)(x) + (m_a - m_0)(x')) / 2

is what the answers to x and to its opposite x' share, m being the log-odds of Yes against No: the
two likeliest tokens of the base's mean distribution over both. A value that a dial moves shows in
what parts the two; what they share is acquiescence, whichever of them is right.

Legend: n questions, c coefficients, d d_model, v vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pasto_cli.base.statistics import Estimate, Indices, cluster_bootstrap
from pasto_cli.core.models import distributed
from pasto_cli.core.models.choice import choice_tokens
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.steering.steerer import Steerer

ENDS = (0.0, 1.0, -1.0)


@torch.no_grad()
def measure_opposites(
    lm: LoadedModel, steerer: Steerer, asked: Sequence[Anchor], *, budget: int, seed: int
) -> dict[str, Estimate]:
    """Mean of |s| at +1 and -1, nats, by coefficient; questions are resampled.

    Args:
        lm: The base model.
        steerer: What is measured.
        asked: At least one question with its opposite; none that was trained on.
        budget: Nodes of one token tree.
        seed: Seed of the bootstrap.
    """
    rows = [
        lm.chat.continued(prompt, anchor.opening)
        for anchor in asked
        for prompt in (anchor.prompt, anchor.opposite)
    ]
    mine = distributed.shard(range(len(asked)))
    own = [rows[i] for index in mine for i in (2 * index, 2 * index + 1)]
    states: dict[int, Tensor] = {}
    passes = hidden_states(lm, own, budget, steer=steerer.at, coefficients=list(ENDS))
    for place, found in passes:
        states[place] = found.last(slice(-1, None))[:, 0].clone()  # (c, d)
    shared = {
        index: _shared(lm, states[2 * place], states[2 * place + 1])
        for place, index in enumerate(mine)
    }
    sizes = np.abs([s for _, s in sorted(distributed.merge(shared).items())])  # (n, 2)
    names = [str(i) for i in range(len(asked))]

    def estimate(column: int) -> Estimate:
        def mean(index: Indices) -> float:
            return float(sizes[index, column].mean())

        return cluster_bootstrap(mean, names, seed)

    return {"1": estimate(0), "-1": estimate(1)}


def _shared(lm: LoadedModel, one: Tensor, other: Tensor) -> tuple[float, float]:
    """What the answers to a question and to its opposite share at +1 and -1, from (c, d) each."""
    log_p = lm.head(torch.stack([one, other])).cpu().double().log_softmax(-1)  # (2, c, v)
    first, second = choice_tokens(log_p[:, 0])
    odds = log_p[..., first] - log_p[..., second]  # (2, c)
    pos, neg = (odds[:, 1:] - odds[:, :1]).mean(0).tolist()
    return pos, neg
