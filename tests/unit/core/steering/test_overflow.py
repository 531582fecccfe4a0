"""Logits that say nothing are named with their coefficient, and never taken for a text."""

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import require_coefficients, require_seed, require_temperature
from pasto_cli.core.evaluation.questions import TokenisedQuestion, score_answers
from pasto_cli.core.steering.generation import generate
from pasto_cli.core.steering.overflow import require_true_logits
from pasto_cli.core.steering.steerer import NoOpSteerer


@pytest.mark.parametrize("bad", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_logits_that_say_nothing(bad):
    good = [1.0, float("-inf")]
    require_true_logits(torch.tensor([good]), [1.0])
    with pytest.raises(PastoError, match="at coefficient 30 the states"):
        require_true_logits(torch.tensor([good, bad]), [1.0, 30.0])


def test_no_text_is_made_of_them(tiny):
    lm = tiny()
    head = lm.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, out: out * 0)
    try:
        with pytest.raises(PastoError, match="overflow"):
            generate(lm, NoOpSteerer(), "Hello.", [0.0], 2)
    finally:
        handle.remove()


def test_no_score_is_made_of_them(tiny):
    lm = tiny()
    head = lm.model.get_output_embeddings()
    question = TokenisedQuestion(lm.chat.prompt("Yes or no?"), [[(40,)], [(41,)]])
    handle = head.register_forward_hook(lambda _m, _i, out: out * 0)
    try:
        with pytest.raises(PastoError, match="at coefficient 0.5 the states"):
            score_answers(lm, NoOpSteerer(), [question], [0.5], 512)
    finally:
        handle.remove()


@pytest.mark.parametrize("value", [1e30, -1001.0, float("nan"), float("inf")])
def test_coefficients_have_a_range(value):
    with pytest.raises(PastoError, match="range is -1000 to 1000"):
        require_coefficients([1.0, value], "--coeff")
    require_coefficients([-1000.0, 0.0, 0.5], "--coeff")


@pytest.mark.parametrize("value", [-1.0, 1e-40, 1e9, float("nan")])
def test_temperatures_have_a_range(value):
    with pytest.raises(PastoError, match="0.01 to 100"):
        require_temperature(value)


@pytest.mark.parametrize("value", [-1, 2**63])
def test_seeds_have_a_range(value):
    with pytest.raises(PastoError, match="from 0 to 9223372036854775807"):
        require_seed(value)
    require_seed(2**63 - 1)
