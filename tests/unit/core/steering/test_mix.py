"""Several dials at once: changes add up, rows keep their own coefficients, baked equals hooked, the
sum is one LoRA."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.statistics import Estimate
from pasto_cli.core.artifact import export
from pasto_cli.core.models.linears import dense_weight
from pasto_cli.core.records.adapter import Calibration
from pasto_cli.core.steering.coefficients import change
from pasto_cli.core.steering.steerer import AdapterSteerer, Mix, Scaled
from tests.support.examples import examples

IDS = torch.arange(40, 70)[None]


def logits(lm, rows=1):
    with torch.no_grad():
        return lm.model(input_ids=IDS.expand(rows, -1)).logits


@pytest.fixture()
def two(tiny, make_adapter):
    lm = tiny()
    return (
        lm,
        AdapterSteerer(make_adapter(lm), lm),
        AdapterSteerer(make_adapter(lm, rank=7, seed=5), lm),
    )


def test_changes_of_a_weight_add_up(two):
    """Against weights changed by hand: W + dW_A(0.7) + dW_B(-0.4)."""
    lm, a, b = two
    one, other = export.low_rank(a.adapter, 0.7), export.low_rank(b.adapter, -0.4)
    with Mix([(a, 0.7), (b, -0.4)]).at(1.0):
        got = logits(lm)
    before = {path: dense_weight(lm.model.get_submodule(path)).clone() for path in one}
    try:
        for path in one:
            lm.model.get_submodule(path).weight.data += (
                one[path].b @ one[path].a + other[path].b @ other[path].a
            )
        expected = logits(lm)
    finally:
        for path, weight in before.items():
            lm.model.get_submodule(path).weight.data = weight
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_laws_of_a_mix(two):
    lm, a, b = two
    base = logits(lm)
    mix, swapped = Mix([(a, 1.0), (b, -0.5)]), Mix([(b, -0.5), (a, 1.0)])
    with mix.at(0.0):
        assert torch.equal(logits(lm), base)
    with mix.at(1.0):
        together = logits(lm)
    with swapped.at(1.0):
        torch.testing.assert_close(logits(lm), together, rtol=0, atol=2e-5)
    with mix.at([0.0, 1.0, -2.0]):
        rows = logits(lm, 3)
    with Mix([(a, -2.0), (b, 1.0)]).at(1.0):
        torch.testing.assert_close(rows[2:], logits(lm), rtol=0, atol=2e-5)
    torch.testing.assert_close(rows[:1], base, rtol=0, atol=2e-5)
    torch.testing.assert_close(rows[1:2], together, rtol=0, atol=2e-5)
    with mix.baked(1.0):
        torch.testing.assert_close(logits(lm), together, rtol=0, atol=2e-5)
    with pytest.raises(RuntimeError, match="on purpose"), mix.at(1.0):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(lm), base)


@examples(20)
@given(
    x=st.floats(-2, 2).filter(lambda v: abs(v) > 1e-2),
    y=st.floats(-2, 2).filter(lambda v: abs(v) > 1e-2),
)
def test_the_sum_is_one_lora(tiny, x, y):
    from pasto_cli.core.models.residual_writers import find_writers
    from pasto_cli.core.recipe.schema import AdapterSpec
    from pasto_cli.core.steering.factors import decompose, select_directions
    from pasto_cli.core.steering.kinds import create_adapter

    first, second, third = find_writers(tiny().model)[2:5]

    def make(writers, rank, seed):
        kept = {
            w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(rank))
            for w in writers
        }
        return create_adapter(kept, AdapterSpec(rank=rank, init_theta_std=0.3), seed)

    a, b = (
        export.low_rank(make([first, second], 4, 0), x),
        export.low_rank(make([second, third], 9, 1), y),
    )
    both = export.joined([a, b])
    assert {path: len(f.a) for path, f in both.items()} == {
        first.path: 4,
        second.path: 13,
        third.path: 9,
    }
    path = second.path
    torch.testing.assert_close(
        both[path].b @ both[path].a,
        a[path].b @ a[path].a + b[path].b @ b[path].a,
        rtol=1e-5,
        atol=1e-6,
    )


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4))
def test_change_keeps_the_form_of_coefficients(values):
    assert change(values, lambda a: 2 * a) == [2 * a for a in values]
    assert change(values[0], lambda a: 2 * a) == 2 * values[0]
    assert change(torch.tensor(values, dtype=torch.float64), lambda a: 2 * a) == [
        2 * a for a in values
    ]
    assert change(torch.tensor(values[0], dtype=torch.float64), lambda a: 2 * a) == 2 * values[0]


def test_scaled_takes_each_sign_by_its_own_factor(two):
    lm, a, _ = two
    with a.at([3.0, 0.0, -0.5]):
        expected = logits(lm, 3)
    with Scaled(a, 3.0, 0.5).at([1.0, 0.0, -1.0]):
        assert torch.equal(logits(lm, 3), expected)


def test_a_calibration_needs_both_signs():
    reached = {k: Estimate(value=1, low=0.9, high=1.1, n=24) for k in ("1", "-1")}
    Calibration(
        kl_p95=1.0, coefficients={"1": 0.5, "-1": -2.0}, reached=reached, quantization="none"
    )
    for wrong in ({"1": 0.5, "-1": 2.0}, {"1": 0.5}, {"1": -1.0, "-1": -1.0}):
        with pytest.raises(ValueError, match="positive and a negative"):
            Calibration(kl_p95=1.0, coefficients=wrong, reached=reached, quantization="none")
