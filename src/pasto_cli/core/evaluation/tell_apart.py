"""Which prompts show a dial: those where its two ends say the most different things.

    J = mean over the tokens of the base's greedy answer of (KL(p_- || p_+) + KL(p_+ || p_-)) / 2

(Jeffreys' divergence, halved; nats per token). The prompts where it is largest are the clearest
examples that there are, and so say nothing of how often a dial is that clear: whoever shows them
says that they were chosen, and shows one beside them where a dial should do nothing.
"""

from collections.abc import Sequence

import torch

from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.kept_answers import kept_greedy_answers
from pasto_cli.core.steering.overflow import require_true_logits
from pasto_cli.core.steering.steerer import Steerer

ENDS = (-1.0, 1.0)


@torch.no_grad()
def ends_apart(
    lm: LoadedModel,
    steerer: Steerer,
    prompts: Sequence[str],
    *,
    tokens: int = 8,
    budget: int = 512,
) -> list[float]:
    """J of every prompt, nats per token; 0 where the base answers nothing.

    Args:
        lm: The base model.
        steerer: The dial; works by the model's states, not by words.
        prompts: Without a persona, and not trained on.
        tokens: Length of the longest answer.
        budget: Nodes of one token tree.

    Raises:
        PastoError: If the dial overflows the model at an end.
    """
    ids = [lm.chat.prompt(prompt) for prompt in prompts]
    answers = kept_greedy_answers(lm, ids, tokens)
    rows = [row + answer for row, answer in zip(ids, answers, strict=True)]
    apart = [0.0] * len(rows)
    for index, states in hidden_states(lm, rows, budget, steer=steerer.at, coefficients=ENDS):
        if not answers[index]:
            continue
        # A token is predicted one position before it stands.
        last = states.last(slice(-(len(answers[index]) + 1), -1))  # (2, t, d_model)
        logits = lm.head(last)  # (2, t, v)
        require_true_logits(logits[:, -1], ENDS)
        down, up = logits.log_softmax(-1)  # (t, v) each
        each = ((up.exp() - down.exp()) * (up - down)).sum(-1) / 2  # (t,)
        apart[index] = float(each.mean())
    return apart
