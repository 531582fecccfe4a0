"""Layers in bfloat16: the copies change no bit, stand in only while a pass runs, and go."""

import pytest
import torch

from pasto_cli.core.models.devices import layer_precision
from pasto_cli.core.models.forward import hidden_states
from pasto_cli.core.models.linears import is_linear
from pasto_cli.core.models.low_layers import low_layers
from tests.support.families import build, loaded

ROWS = [[256, 1, 2, 3], [256, 1, 2, 4, 5], [256, 9]]
NONE_OF_THEM = {torch.nn.Parameter(torch.zeros(1)): torch.nn.Parameter(torch.zeros(1))}
"""In place of copies: autocast rounds every weight itself."""


def states(lm):
    found = dict(hidden_states(lm, ROWS, 512))
    return torch.cat([found[i].last()[0] for i in range(len(ROWS))])


def linear(lm):
    return [m for m in lm.layers.modules() if is_linear(m)]


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "deepseek_v3"])  # gpt2: Conv1D with a bias
def test_products_are_those_of_autocast_alone(name):
    lm = loaded(build(name))
    with layer_precision(lm, "bfloat16"), torch.no_grad():
        own = states(lm)
        assert len(lm.low_weights) == len(linear(lm)) > 4
        lm.low_weights = NONE_OF_THEM
        assert torch.equal(own, states(lm))
        lm.autocast = False
        assert not torch.equal(own, states(lm))  # float32: there was something to round
    assert lm.low_weights == {}


def test_gradients_are_those_of_autocast_alone(tiny, make_adapter):
    lm = tiny("qwen3")
    adapter = make_adapter(lm)

    def gradients():
        with adapter.at(lm.model, [1.0]):
            loss = states(lm).square().sum()
        return torch.autograd.grad(loss, list(adapter.parameters()))

    with layer_precision(lm, "bfloat16"):
        own = gradients()
        lm.low_weights = NONE_OF_THEM
        plain = gradients()
    assert all(torch.equal(x, y) for x, y in zip(own, plain, strict=True))
    assert any(x.abs().max() > 0 for x in own)


def test_weights_are_put_back_also_after_an_error(tiny):
    lm = tiny("gemma3")
    before = [m.weight for m in linear(lm)]
    with layer_precision(lm, "bfloat16"):
        with pytest.raises(ValueError), low_layers(lm):
            assert {m.weight.dtype for m in linear(lm)} == {torch.bfloat16}
            raise ValueError
        assert all(m.weight is x for m, x in zip(linear(lm), before, strict=True))
        first = lm.low_weights
        states(lm)
        assert lm.low_weights is first  # rounded once


def test_a_weight_that_stands_in_for_another_is_rounded_itself(tiny, make_adapter):
    """A dial that is baked into the weights."""
    lm = tiny("llama")
    adapter = make_adapter(lm)
    with layer_precision(lm, "bfloat16"), torch.no_grad():
        base = states(lm)
        with adapter.baked(lm.model, [1.0]):
            baked = states(lm)
        with adapter.at(lm.model, [1.0]):
            hooked = states(lm)
    assert (baked - hooked).abs().max() < 0.3 * (baked - base).abs().max()


def test_in_float32_nothing_is_copied(tiny):
    lm = tiny("llama")
    with layer_precision(lm, "float32"), torch.no_grad():
        states(lm)
        assert lm.low_weights == {}
