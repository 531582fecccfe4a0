"""Activations that are computed again: the same gradients bit for bit, fewer bytes kept."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pasto_cli.core.models.recompute import WIDE, recomputed_activations
from pasto_cli.core.planning.meter import Meter

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,  # not among them: kept as it is
}


def gated(act, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (act(x @ gate) * (x @ up)) @ down


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_gradients_are_the_same_bit_for_bit(name, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    weights = [torch.randn(shape, dtype=dtype) for shape in ((8, 12), (8, 12), (12, 8))]
    plain = gated(ACTIVATIONS[name], x, *weights)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    with recomputed_activations(WIDE):
        again = gated(ACTIVATIONS[name], x, *weights)
    (found,) = torch.autograd.grad(again.square().sum(), x)
    assert torch.equal(again, plain) and torch.equal(found, wanted)
    assert wanted.abs().sum() > 0


@pytest.mark.parametrize("name", ["silu", "gelu", "tanh"])
def test_a_third_of_what_the_product_keeps_is_gone(name):
    def kept(context) -> int:
        x = torch.empty(5, 8, device="meta", requires_grad=True)
        weights = [torch.empty(s, device="meta") for s in ((8, 12), (8, 12), (12, 8))]
        with Meter() as meter:
            before = meter.now
            with context:
                out = gated(ACTIVATIONS[name], x, *weights)
            found = meter.now - before - out.untyped_storage().nbytes()
            out.sum().backward()  # frees what was kept
        return found

    wide = 5 * 12 * 4
    assert kept(nullcontext()) == 3 * wide
    assert kept(recomputed_activations(WIDE)) == 2 * wide
    assert kept(recomputed_activations(WIDE - 1)) == 3 * wide
