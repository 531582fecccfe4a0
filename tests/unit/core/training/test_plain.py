"""The fast path against the textbook one of `tests/reference/plain.py`: losses and gradients."""

import pytest
import torch

from pasto_cli.core.models.forward import settle_packing
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.models.loading import load_model
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import ModelSpec, SubspaceSpec
from pasto_cli.core.steering.cayley import CayleyAdapter
from pasto_cli.core.steering.lora import LoraAdapter
from pasto_cli.core.training import objective
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis
from tests.reference import plain
from tests.support.variants import BOUNDS, KINDS, LOSSES, MODELS

DEPTH = 4
TOLERANCE = {"gpt2": 1e-9, "llama": 1e-6, "gemma3": 1e-6}
"""Of a gradient in float64; transformers' RMS norms go through float32 whatever the model's
dtype."""


@pytest.fixture(scope="module")
def double():
    """Tiny models in float64, where only the formulas can differ."""
    made = {}

    def make(name):
        if name not in made:
            lm = load_model(ModelSpec(device="cpu", **MODELS[name]))
            lm.model.double()
            settle_packing(lm)
            made[name] = lm
        return made[name]

    return make


def writers_of(lm, adapter):
    """The adapter as plain writers."""
    found = {}
    for path, own in adapter.items():
        module = lm.model.get_submodule(path)
        weight = dense_weight(module).to(own.down)
        bias = None if module.bias is None else module.bias.detach()
        found[path] = PLAIN[type(adapter)](weight, bias, adapter, own)
    return found


def plain_rotation(weight, bias, adapter, rotation):
    return plain.PlainWriter(
        weight,
        bias,
        (rotation.u, rotation.s, rotation.v),
        rotation.theta.detach(),
        rotation.delta.detach(),
        adapter.bound,
        adapter.max_angle,
    )


def plain_lora(weight, bias, adapter, pair):
    return plain.PlainLora(weight, bias, pair.a.detach(), pair.b.detach())


PLAIN = {CayleyAdapter: plain_rotation, LoraAdapter: plain_lora}


def both(lm, adapter, pairs, spec, ramp=1.0):
    """(loss, gradient) of the fast path and of the plain one."""
    basis = random_basis(lm.hidden_size, 4, 0).columns.to(lm.dtype)
    fast = Objective(lm, basis, spec, SubspaceSpec(), budget=512, cache_mb=64)(
        adapter, pairs, ramp, neutral=False
    ).total
    fast.backward()
    writers = writers_of(lm, adapter)
    slow = plain.loss(lm.model, lm.layers[DEPTH - 1], writers, pairs, basis, spec, 3, ramp)
    slow.backward()
    one, other = (
        torch.cat([p.grad.flatten() for module in each for p in module.parameters()])
        for each in ((own for _, own in adapter.items()), writers.values())
    )
    return (fast.detach(), one), (slow.detach(), other)


@pytest.mark.parametrize("model", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", [*KINDS, "chunked"])
def test_equal_in_float64(double, tiny_pairs, make_adapter, model, name, way, monkeypatch):
    """Chunked: a part of the head for every pair, computed again in the backward pass."""
    if way == "chunked":
        monkeypatch.setattr(objective, "head_bytes", lambda *_: 0)
    lm, spec = double(model), LossesSpec.model_validate(LOSSES[name])
    kind = "cayley" if way == "chunked" else way
    adapter = make_adapter(lm, scale=0.05, kind=kind).double()
    (fast, one), (slow, other) = both(lm, adapter, tiny_pairs[:3], spec)
    assert abs(fast - slow) <= TOLERANCE[model] * abs(slow)
    assert (one - other).norm() <= TOLERANCE[model] * other.norm()


@pytest.mark.parametrize("bound", BOUNDS)
def test_equal_in_float32(tiny, tiny_pairs, make_adapter, bound):
    lm = tiny()
    (fast, one), (slow, other) = both(
        lm, make_adapter(lm, bound=bound, scale=0.05), tiny_pairs[:3], LossesSpec(), 0.7
    )
    assert abs(fast - slow) <= 1e-4 * abs(slow)
    assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_writer_is_the_base_at_0(tiny, make_adapter, kind):
    lm = tiny()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        base = lm.model(input_ids=ids).logits
        with plain.adapted(lm.model, writers_of(lm, make_adapter(lm, kind=kind))):
            torch.testing.assert_close(lm.model(input_ids=ids).logits, base, rtol=0, atol=1e-4)
        assert torch.equal(lm.model(input_ids=ids).logits, base)
