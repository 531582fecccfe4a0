"""What every kind of adapter keeps to: exact base at 0, per-row coefficients, no trace left."""

import math

import pytest
import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.core.steering.adapter import to_tensors
from pasto_cli.core.steering.kinds import KINDS, from_tensors, tensor_names
from tests.support import variants
from tests.support.variants import MODELS

IDS = torch.arange(40, 70)[None]


@pytest.fixture(params=variants.KINDS)
def kind(request):
    """Every kind of adapter."""
    return request.param


def test_every_kind_is_tested():
    assert set(variants.KINDS) == set(KINDS)


@pytest.mark.parametrize("name", MODELS)
def test_zero_is_the_base_bit_for_bit_and_leaving_restores_it(tiny, make_adapter, name, kind):
    lm = tiny(name)
    adapter = make_adapter(lm, kind=kind)
    with torch.no_grad():
        base = lm.model(input_ids=IDS).logits
        with adapter.at(lm.model, 0.0):
            assert torch.equal(lm.model(input_ids=IDS).logits, base)
        with pytest.raises(ZeroDivisionError), adapter.at(lm.model, 1.0):
            steered = lm.model(input_ids=IDS).logits
            raise ZeroDivisionError
        assert (steered - base).abs().max() > 1e-2
        assert torch.equal(lm.model(input_ids=IDS).logits, base)
        with adapter.at(lm.model, [0.0, 1.0]):
            both = lm.model(input_ids=IDS.repeat(2, 1)).logits
        if "bit" not in name:  # quantised kernels round by batch shape
            torch.testing.assert_close(both[0], base[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(both[1], steered[0], rtol=0, atol=1e-4)


def test_change_is_continuous_at_zero(tiny, make_adapter, kind):
    lm = tiny()
    adapter = make_adapter(lm, kind=kind)
    with torch.no_grad():
        base = lm.model(input_ids=IDS).logits
        sizes = []
        for a in (1e-1, 1e-2, 1e-3):
            with adapter.at(lm.model, a):
                sizes.append((lm.model(input_ids=IDS).logits - base).norm().item())
    assert sizes[0] / sizes[1] == pytest.approx(10, rel=0.2) and sizes[1] / sizes[
        2
    ] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, [1.0, math.nan], []])
def test_coefficients_must_be_finite(tiny, make_adapter, bad, kind):
    lm = tiny()
    with pytest.raises(PastoError, match="finite"), make_adapter(lm, kind=kind).at(lm.model, bad):
        pass


def test_wrong_number_of_coefficients(tiny, make_adapter, kind):
    lm = tiny()
    before = [len(m._forward_hooks) for m in lm.model.modules()]
    with (
        pytest.raises(PastoError, match="3 coefficients for a batch of 1"),
        make_adapter(lm, kind=kind).at(lm.model, [1.0, 0.0, -1.0]),
    ):
        lm.model(input_ids=IDS)
    assert [len(m._forward_hooks) for m in lm.model.modules()] == before


@pytest.mark.parametrize("name", [n for n in MODELS if "bit" not in n])
def test_baked_weights_do_what_the_hooks_do_and_leave_no_trace(tiny, make_adapter, name, kind):
    lm = tiny(name)
    adapter = make_adapter(lm, kind=kind)
    before = {path: lm.model.get_submodule(path).weight for path in adapter.paths}
    copies = {path: weight.clone() for path, weight in before.items()}
    with torch.no_grad():
        with adapter.at(lm.model, -0.7):
            expected = lm.model(input_ids=IDS).logits
        with pytest.raises(ZeroDivisionError), adapter.baked(lm.model, -0.7):
            got = lm.model(input_ids=IDS).logits
            assert not any(lm.model.get_submodule(p)._forward_hooks for p in adapter.paths)
            raise ZeroDivisionError
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    for path, weight in before.items():
        assert lm.model.get_submodule(path).weight is weight
        assert torch.equal(weight, copies[path])
    with adapter.baked(lm.model, 0.0):
        assert lm.model.get_submodule(adapter.paths[0]).weight is before[adapter.paths[0]]


def test_what_cannot_be_baked_is_refused(tiny, make_adapter, kind):
    lm = tiny("llama-4bit")
    adapter = make_adapter(lm, kind=kind)
    with pytest.raises(PastoError, match="quantised base"), adapter.baked(lm.model, 1.0):
        pass
    with pytest.raises(PastoError, match="one coefficient"), adapter.baked(lm.model, [1.0, -1.0]):
        pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_row_is_the_same_whatever_stands_beside_it(tiny, make_adapter, kind, name):
    lm = tiny(name)
    adapter = make_adapter(lm, kind=kind)
    coefficients = [0.6, -1.0, 0.0, 1.0]
    ids = torch.stack([IDS[0] + 3 * i for i in range(4)])
    with torch.no_grad():
        with adapter.at(lm.model, coefficients):
            together = lm.model(input_ids=ids).logits
        for row, a in enumerate(coefficients):
            with adapter.at(lm.model, a):
                alone = lm.model(input_ids=ids[row : row + 1]).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)


def test_the_base_stays_frozen_and_what_is_trained_gets_gradients(tiny, make_adapter, kind):
    lm = tiny()
    adapter = make_adapter(lm, kind=kind)
    assert not any(p.requires_grad for p in lm.model.parameters())
    with adapter.at(lm.model, [1.0, -1.0]):
        lm.model(input_ids=IDS.repeat(2, 1)).logits[0].square().sum().backward()
    # Behind the last adapted layer nothing is read: every module that is adapted matters.
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


def test_tensors_make_the_adapter_again(tiny, make_adapter, kind):
    adapter = make_adapter(tiny(), kind=kind)
    tensors = to_tensors(adapter)
    assert list(tensors) == tensor_names(kind, adapter.paths)

    class Said:
        """A recipe's word."""

        bound, max_angle = "spectral", 45.0

    Said.kind = kind
    again = from_tensors(adapter.paths, tensors | {"other": torch.zeros(1)}, Said())
    assert again.paths == adapter.paths and type(again) is type(adapter)
    for one, other in zip(adapter.mixing([0.3]), again.mixing([0.3]), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(x, tensors[name]) for name, x in to_tensors(again).items())
    for (_, own), shape in zip(adapter.items(), shapes_of(tiny(), adapter), strict=True):
        assert {part: tuple(getattr(own, part).shape) for part in own.PARTS} == shape
    del tensors[next(iter(tensors))]
    with pytest.raises(KeyError):
        from_tensors(adapter.paths, tensors, Said())


def shapes_of(lm, adapter):
    modules = [lm.model.get_submodule(path) for path in adapter.paths]
    return [adapter.MODULE.shapes(m.in_features, m.out_features, 12) for m in modules]
