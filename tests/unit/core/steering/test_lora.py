"""The linear kind: the dense formula, linear in the coefficient, its start, gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.models.linears import dense_weight, is_conv1d
from pasto_cli.core.recipe.losses_spec import LossesSpec, ProjectionSpec
from pasto_cli.core.recipe.schema import AdapterSpec, SubspaceSpec, TrainingSpec
from pasto_cli.core.steering.factors import decompose, select_directions
from pasto_cli.core.steering.lora import START_STD, LoraAdapter, LoraPair
from pasto_cli.core.training.losses import projection_loss
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import Recorder
from pasto_cli.core.training.subspaces import random_basis
from pasto_cli.core.training.trainer import TrainingSplit, train
from tests.support.examples import examples
from tests.support.variants import LOSSES

PROJECTION_ONLY = {"coherence": {"weight": 0}, "monotonicity": {"weight": 0}, "neutral": None}


def random_pair(seed, d_in=9, d_out=7, rank=4):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d_in, rank), (rank, d_out))
    return LoraPair(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


@examples(50)
@given(seed=st.integers(0, 999), a=st.floats(-3, 3))
def test_the_change_is_linear_in_the_coefficient(seed, a):
    pair = random_pair(seed)
    adapter = LoraAdapter({"0": pair})
    model = torch.nn.Sequential(torch.nn.Linear(9, 7).double().requires_grad_(False))
    x = torch.randn(2, 5, 9, dtype=torch.float64)
    with torch.no_grad():
        base = model(x)
        with adapter.at(model, a):
            got = model(x)
        with adapter.at(model, [a, -a]):
            both = model(torch.cat([x[:1], x[:1]]))
        dense = model[0].weight + a * (pair.a @ pair.b).T
        expected = x @ dense.T + model[0].bias
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # Both ends mirror one another.
    torch.testing.assert_close(both[0] + both[1], 2 * base[0], rtol=1e-9, atol=1e-9)
    one, whole, zero = adapter.mixing([1.0, a, 0.0])[0].unbind(0)
    assert torch.equal(whole, a * one) and not zero.any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equals_the_dense_formula(tiny, make_adapter, name):
    """y = x (W + a (A B)^T)^T + bias, for Linear and Conv1D, in float32 against float64."""
    lm = tiny(name)
    adapter = make_adapter(lm, kind="lora")
    for a in (-1.0, 0.5, 2.0):
        for path, pair in adapter.items():
            module = lm.model.get_submodule(path)
            assert is_conv1d(module) == (name == "gpt2")
            dense = dense_weight(module).double() + a * (pair.a.double() @ pair.b.double()).T
            x = torch.randn(2, 5, pair.a.shape[0], dtype=torch.float64)
            bias = module.bias.double() if module.bias is not None else 0.0
            with torch.no_grad(), adapter.at(lm.model, a):
                got = module(x.float())
            torch.testing.assert_close(got.double(), x @ dense.T + bias, rtol=1e-4, atol=1e-4)


def test_gradients_match_finite_differences():
    pair = random_pair(0)
    adapter = LoraAdapter({"0": pair})
    model = torch.nn.Sequential(torch.nn.Linear(9, 7).double().requires_grad_(False))
    x = torch.randn(2, 5, 9, dtype=torch.float64)

    def steered(a, b):
        values = {"pairs.0.a": a, "pairs.0.b": b}
        return torch.func.functional_call(Steered(adapter, model), with_prefix(values), (x,))

    torch.autograd.gradcheck(steered, (pair.a, pair.b))


class Steered(torch.nn.Module):
    """The model at +1 and -0.5, as a function of the adapter's tensors."""

    def __init__(self, adapter, model):
        super().__init__()
        self.adapter, self.model = adapter, model

    def forward(self, x):
        with self.adapter.at(self.model, [1.0, -0.5]):
            return self.model(x)


def with_prefix(values):
    return {f"adapter.{name}": x for name, x in values.items()}


def test_a_fresh_one_starts_in_the_chosen_directions_with_next_to_no_change():
    weight = torch.randn(8, 11, generator=torch.Generator().manual_seed(0))
    chosen = select_directions(decompose(weight), torch.tensor([1, 4, 5]))
    spec = AdapterSpec(kind="lora", rank=3)
    (one,), (same,), (other,) = (
        [pair for _, pair in LoraAdapter.create({"0": chosen}, spec, seed).items()]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.a, chosen.v) and one.b.shape == (3, 8)
    assert torch.equal(one.b, same.b) and not torch.equal(one.b, other.b)
    assert 0 < one.b.abs().max() < 5 * START_STD < 0.01 * weight.std()
    assert LoraAdapter({"0": one}).angle() is None


def test_both_ends_at_0_leave_the_projection_loss_without_a_slope():
    """Why B does not start at 0."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    basis = random_basis(12, 4, 0).columns.double()

    def slope(size):
        move = (torch.ones_like(reference) * size).requires_grad_()
        loss = projection_loss(
            d_ref=reference,
            d_pos=reference + move,
            d_neg=reference - move,
            basis=basis,
            spec=ProjectionSpec(),
        ).loss
        return torch.autograd.grad(loss.sum(), move)[0].norm()

    assert slope(0.0) == 0.0 and slope(1e-6) > 1.0


@pytest.mark.parametrize("name", [*LOSSES, "projection alone"])
def test_training_starts_under_every_set_of_losses(tiny, tiny_pairs, name):
    """Both matrices have a gradient at the first step, and the loss falls."""
    from pasto_cli.core.models.residual_writers import find_writers, place_writers

    lm = tiny()
    writers = place_writers(find_writers(lm.model), len(lm.layers), 0.1, 0.5, 4)
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(6))
        for w in writers
    }
    adapter = LoraAdapter.create(kept, AdapterSpec(kind="lora", rank=6), 0)
    spec = LossesSpec.model_validate(LOSSES.get(name, PROJECTION_ONLY))
    basis = random_basis(lm.hidden_size, 4, 0).columns
    objective = Objective(lm, basis, spec, SubspaceSpec(), budget=512, cache_mb=64)
    objective(adapter, tiny_pairs[:6], 0.0, neutral=False).total.backward()
    for _, pair in adapter.items():
        assert pair.a.grad.norm() > 1e-3 and pair.b.grad.norm() > 1e-3
    adapter.zero_grad()
    losses = []

    class Told(Recorder):
        def on_step(self, step):
            losses.extend([step.loss] if step.validation else [])

    split = TrainingSplit(tiny_pairs[:12], tiny_pairs[12:18])
    with torch.no_grad():
        before = objective(adapter, split.validation).total.item()
    settings = TrainingSpec(epochs=3, batch_size=4, lr=5e-3)
    result = train(objective, adapter, split, settings, Told())
    assert losses[-1] < before - 1 and result.angle is None


def test_an_untrained_one_has_the_same_directions_and_size(tiny, make_adapter):
    adapter = make_adapter(tiny(), kind="lora")
    random = adapter.untrained(0)
    for (path, one), (other_path, other) in zip(adapter.items(), random.items(), strict=True):
        assert path == other_path and torch.equal(one.a, other.a)
        sizes = [(pair.a @ pair.b).norm().item() for pair in (one, other)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)
        overlap = torch.cosine_similarity(one.b.flatten(), other.b.flatten(), dim=0)
        assert abs(overlap.item()) < 0.5
    assert not any(p.requires_grad for p in random.parameters())
