"""Which prompts show a dial, against one forward pass per prompt and end."""

import pytest
import torch

from pasto_cli.core.evaluation.tell_apart import ends_apart
from pasto_cli.core.steering.generation import greedy_answers
from pasto_cli.core.steering.steerer import AdapterSteerer, NoOpSteerer
from tests.support.variants import FLOAT_MODELS

PROMPTS = ["Hi", "Describe a street in a small town, please.", "Why?", "x" * 41]


@torch.no_grad()
def plainly(lm, steerer, prompt, tokens):
    """By whole passes, token by token."""
    ids = lm.chat.prompt(prompt)
    (answer,) = greedy_answers(lm, [ids], tokens)
    total = 0.0
    for n in range(len(answer)):
        both = []
        for end in (-1.0, 1.0):
            with steerer.at(end):
                logits = lm.model(torch.tensor([ids + answer[:n]])).logits[0, -1]
            both.append(logits.double().softmax(-1))
        p, q = both
        total += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    return total / len(answer)


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_equals_the_formula_and_does_not_depend_on_the_batch(tiny, make_adapter, name):
    lm = tiny(name)
    steerer = AdapterSteerer(make_adapter(lm), lm)
    found = ends_apart(lm, steerer, PROMPTS, tokens=5)
    assert found == pytest.approx([plainly(lm, steerer, p, 5) for p in PROMPTS], rel=1e-3)
    assert found == pytest.approx(
        [ends_apart(lm, steerer, [p], tokens=5)[0] for p in PROMPTS], rel=1e-4
    )
    assert min(found) > 0


def test_ends_that_are_the_same_are_not_apart(tiny):
    assert ends_apart(tiny(), NoOpSteerer(), PROMPTS, tokens=5) == [0.0] * len(PROMPTS)
