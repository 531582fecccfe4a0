"""The rotation: its laws, the dense formula, gradients, digits at small coefficients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.core.steering.cayley import (
    CayleyAdapter,
    Rotation,
    bounded_skew,
    cayley,
    largest_angle,
)
from pasto_cli.core.steering.factors import Factors, decompose
from tests.support.examples import examples
from tests.support.variants import BOUNDS


def random_skew(seed, r=10, std=1.0):
    return (
        torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * std
    )


@examples(50)
@given(seed=st.integers(0, 999), std=st.floats(0.001, 5), a=st.floats(-2, 2))
@pytest.mark.parametrize("bound", BOUNDS)
def test_rotation_laws(bound, seed, std, a):
    skew = bounded_skew(random_skew(seed, std=std), bound, math.radians(45))
    torch.testing.assert_close(skew, -skew.mT)
    r = cayley(skew, a)
    eye = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(r @ r.mT, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(cayley(skew, -a), r.mT, rtol=0, atol=1e-9)
    assert torch.equal(cayley(skew, 0.0), eye)
    # The stated angle is the true one: cos of the angles are the real parts of the eigenvalues.
    assert math.degrees(torch.linalg.eigvals(r).angle().abs().max()) == pytest.approx(
        largest_angle(skew, a), abs=1e-5
    )


@given(seed=st.integers(0, 999), std=st.floats(0.01, 5), degrees=st.floats(5, 170))
@examples(50)
def test_the_spectral_bound_bounds_every_angle(seed, std, degrees):
    skew = bounded_skew(random_skew(seed, r=32, std=std), "spectral", math.radians(degrees))
    assert largest_angle(skew) <= degrees + 1e-4


def test_the_entrywise_bound_does_not():
    """What the original calls 45 degrees reaches far more at rank 64."""
    skew = bounded_skew(random_skew(0, r=64, std=1.0), "entrywise", math.radians(45))
    assert largest_angle(skew) > 120


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equals_the_dense_formula(tiny, make_adapter, name, bound):
    """y = x (W + dW)^T with W + dW = U diag(S + a delta) R^T V^T + W_res, the original's form, for
    Linear and Conv1D."""
    lm = tiny(name)
    adapter = make_adapter(lm, bound)
    for a in (-1.0, 0.5, 2.0):
        for path, rotation, mix in zip(
            adapter.paths, adapter.rotations, adapter.mixing([a]), strict=True
        ):
            module = lm.model.get_submodule(path)
            transposed = type(module).__name__ == "Conv1D"
            weight = (module.weight.T if transposed else module.weight).double()
            u, s, v = (getattr(rotation, k).double() for k in "usv")
            r = cayley(bounded_skew(rotation.theta.double(), bound, adapter.max_angle), a)
            dense = u @ torch.diag(s + a * rotation.delta.double()) @ r.mT @ v.T + (
                weight - u @ torch.diag(s) @ v.T
            )
            x = torch.randn(2, 5, v.shape[0], dtype=torch.float64)
            bias = module.bias.double() if module.bias is not None else 0.0
            with torch.no_grad(), adapter.at(lm.model, a):
                got = module(x.float())
            torch.testing.assert_close(got.double(), x @ dense.T + bias, rtol=1e-4, atol=1e-4)
            assert mix.shape[1:] == rotation.theta.shape


def test_one_solve_serves_both_signs(tiny, make_adapter, monkeypatch):
    adapter = make_adapter(tiny())
    calls = []
    real = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda *a, **k: calls.append(1) or real(*a, **k))
    mixing = adapter.mixing([1.0, -1.0, 0.0])
    assert len(calls) == 1  # all modules have one rank: one batched solve
    assert all(torch.equal(m[2], torch.zeros_like(m[2])) for m in mixing)


def test_gradients_match_finite_differences():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 7, generator=generator)
    full = decompose(w)
    rotation = Rotation(
        Factors(full.u[:, :4], full.s[:4], full.v[:, :4]),
        torch.randn(4, 4) * 0.3,
        torch.randn(4) * 0.1,
    ).double()
    adapter = CayleyAdapter({"0": rotation}, "spectral", 0.8)

    def total(theta, delta):
        with torch.no_grad():
            rotation.theta.copy_(theta)
            rotation.delta.copy_(delta)
        return (
            adapter.mixing([1.0, -1.0])[0] ** 2 * torch.arange(32.0).reshape(2, 4, 4).double()
        ).sum()

    theta, delta = rotation.theta.detach().clone(), rotation.delta.detach().clone()
    total(theta, delta).backward()
    for parameter, start, move in ((rotation.theta, theta, 0), (rotation.delta, delta, 1)):
        analytic = parameter.grad.clone()
        for index in range(min(6, start.numel())):
            step = torch.zeros_like(start).flatten()
            step[index] = 1e-6
            step = step.reshape(start.shape)
            arguments = (
                [(theta + step, delta), (theta - step, delta)]
                if move == 0
                else [(theta, delta + step), (theta, delta - step)]
            )
            slope = (total(*arguments[0]) - total(*arguments[1])) / 2e-6
            assert analytic.flatten()[index].item() == pytest.approx(
                slope.item(), rel=1e-4, abs=1e-5
            )


def test_parameters_stay_few(tiny, make_adapter):
    lm = tiny()
    adapter = make_adapter(lm, rank=8)
    assert adapter.num_parameters() == len(adapter.paths) * (64 + 8)


@pytest.mark.parametrize("a", [1e-4, -1e-3, 0.01, -1.0, 3.0])
def test_small_coefficients_are_not_rounded_away(tiny, make_adapter, a):
    """M(a) in float32 against float64: relative to itself, although it is a difference of numbers
    of the size of S."""
    adapter = make_adapter(tiny())
    found = adapter.mixing([a])
    exact = adapter.double().mixing([a])
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).abs().max() <= 2e-6 * other.abs().max()
