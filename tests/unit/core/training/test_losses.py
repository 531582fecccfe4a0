"""Loss terms: hand-worked cases, laws, and the objective against a plain slow reference."""

import math
from types import SimpleNamespace

import pytest
import torch

from pasto_cli.core.recipe.losses_spec import (
    CoherenceSpec,
    LossesSpec,
    MonotonicitySpec,
    NeutralSpec,
    ProjectionSpec,
)
from pasto_cli.core.recipe.schema import SubspaceSpec
from pasto_cli.core.training import losses
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis


def test_projection_of_a_perfect_dial_by_hand():
    """d_ref = e1 for both pairs, +1 moves by +e1, -1 by -e1, all inside P: cos+ = 1, cos- = -1,
    focus = 1, a = -1.

    scaled: s = 30 * -1 = -30, relu(s) = 0, loss -30. symlog: sign(-1) log(1 + 1) = -0.693.
    """
    d_ref = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    basis = torch.eye(3)[:, :1]
    result = losses.projection_loss(
        d_ref=d_ref, d_pos=2 * d_ref, d_neg=0 * d_ref, basis=basis, spec=ProjectionSpec()
    )
    torch.testing.assert_close(result.loss, torch.tensor([-30.0, -30.0]))
    symlog = losses.projection_loss(
        d_ref=d_ref,
        d_pos=2 * d_ref,
        d_neg=0 * d_ref,
        basis=basis,
        spec=ProjectionSpec(kind="symlog"),
    )
    torch.testing.assert_close(symlog.loss, torch.tensor([-math.log(2)] * 2))


def test_projection_of_a_parallel_dial_is_punished_by_the_square():
    d_ref = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    result = losses.projection_loss(
        d_ref=d_ref,
        d_pos=2 * d_ref,
        d_neg=3 * d_ref,
        basis=torch.eye(3)[:, :1],
        spec=ProjectionSpec(),
    )
    torch.testing.assert_close(result.loss, torch.tensor([30.0 + 900.0] * 2))


def test_focus_counts_what_lies_outside_the_subspace():
    """A change of (1, 1): half of its square inside, so focus = (1/sqrt 2)^(1 - softness); softness
    1 switches it off."""
    d_ref = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    up, down = d_ref + torch.tensor([1.0, 1.0]), d_ref - torch.tensor([1.0, 1.0])
    a = {
        s: losses.projection_loss(
            d_ref=d_ref,
            d_pos=up,
            d_neg=down,
            basis=torch.eye(2)[:, :1],
            spec=ProjectionSpec(softness=s),
        )
        .antiparallelism[0]
        .item()
        for s in (0, 0.5, 1)
    }
    assert (
        a[0] == pytest.approx(-0.5)
        and a[0.5] == pytest.approx(-(0.5**0.5))
        and a[1] == pytest.approx(-1.0)
    )


def test_projection_has_finite_gradients_at_no_change():
    d_ref = torch.randn(4, 6)
    change = torch.zeros(4, 6, requires_grad=True)
    losses.projection_loss(
        d_ref=d_ref,
        d_pos=d_ref + change,
        d_neg=d_ref - change,
        basis=random_basis(6, 2, 0).columns,
        spec=ProjectionSpec(),
    ).loss.sum().backward()
    assert torch.isfinite(change.grad).all()


def test_swapping_the_signs_leaves_the_projection_and_turns_the_rest():
    """The projection loss is symmetric in +1 and -1; orientation and monotonicity are what fix the
    sign."""
    torch.manual_seed(0)
    d_ref, up, down = torch.randn(3, 5, 8)
    basis = random_basis(8, 3, 0).columns
    one, two = (
        losses.projection_loss(
            d_ref=d_ref, d_pos=pos, d_neg=neg, basis=basis, spec=ProjectionSpec()
        ).loss
        for pos, neg in ((up, down), (down, up))
    )
    torch.testing.assert_close(one, two)
    o, swapped = (
        losses.orientation(shift_pos=pos, shift_neg=neg, d_ref=d_ref, basis=basis, softness=0.25)
        for pos, neg in ((up, down), (down, up))
    )
    torch.testing.assert_close(o.pos, swapped.neg)


def coherence(tv, h, **spec):
    return losses.coherence_penalty(
        torch.tensor([tv]),
        base_entropy=torch.tensor([h]),
        mask=torch.ones(1, len(tv), dtype=torch.bool),
        spec=CoherenceSpec(**spec),
    )


def test_coherence_by_hand():
    """kappa 0.3, beta 0: budget 0.3 at H = 1. TV 0.5 -> v 0.2; log1p(10 * 0.2)^2 + 0.2 = 1.4069. TV
    0.3 -> 0."""
    assert coherence([0.5], [1.0], beta=0.0).item() == pytest.approx(math.log(3) ** 2 + 0.2)
    assert coherence([0.3], [1.0], beta=0.0).item() == pytest.approx(0.0, abs=1e-6)
    assert coherence([0.5], [1.0], beta=0.0, barrier="log").item() == pytest.approx(
        -10 * math.log(1 - 0.2 / 0.7)
    )


def test_coherence_at_weight_zero_is_zero_and_cannot_bind_at_high_kappa():
    assert coherence([1.0], [0.0], weight=0.0).item() == 0.0
    assert (
        coherence([1.0], [1.3], kappa=0.9).item() == 0.0
    )  # the published code's budget exceeds 1 above 1.2 nats
    assert coherence([1.0], [1.3], kappa=0.3).item() > 1.0


@pytest.mark.parametrize("aggregate", ["mean", "lse", "max"])
def test_coherence_ignores_masked_tokens(aggregate):
    tv, h = torch.tensor([[0.9, 0.5, 0.6]]), torch.ones(1, 3)
    spec = CoherenceSpec(aggregate=aggregate)
    masked = losses.coherence_penalty(
        tv, base_entropy=h, mask=torch.tensor([[False, True, True]]), spec=spec
    )
    torch.testing.assert_close(
        masked,
        losses.coherence_penalty(
            tv[:, 1:], base_entropy=h[:, 1:], mask=torch.ones(1, 2, dtype=torch.bool), spec=spec
        ),
    )


def test_monotonicity_by_hand():
    """frac 0.5, floor 0.04, H = 1: t = 0.54. G+ = 1, G- = -1 costs nothing; G+ = G- = 0 costs 30 *
    1.08."""
    h = torch.ones(2)

    def loss(gap_pos, gap_neg, **spec):
        return losses.monotonicity_loss(
            gap_pos=gap_pos, gap_neg=gap_neg, base_entropy=h, spec=MonotonicitySpec(**spec)
        )

    assert loss(h, -h).sum() == 0
    torch.testing.assert_close(loss(0 * h, 0 * h), torch.full((2,), 30 * 1.08))
    wrong_way = loss(-h, h)
    mirrored = loss(-h, h, variant="batch")
    assert wrong_way.min() > 30 and mirrored.sum() == 0  # the original accepts the wrong direction


def test_strength_is_one_for_a_dial_that_equals_the_persona_prompt():
    cho, rej, zero = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -3.0]), torch.zeros(2)
    llr = losses.PersonaLLR(pos=cho, neg=rej, zero=zero, chosen=cho, rejected=rej)
    s = losses.strength(llr)
    assert s.pos.mean().item() == pytest.approx(1.0) and s.neg.mean().item() == pytest.approx(-1.0)
    assert (
        losses.likeness_loss(
            losses.Strength(torch.tensor([1.0]), torch.tensor([-1.0])), NeutralSpec()
        ).item()
        == 0
    )
    far = losses.Strength(torch.tensor([3.0]), torch.tensor([-2.5]))
    assert losses.likeness_loss(far, NeutralSpec()).item() == 0
    held = NeutralSpec(margin=1.0, ceiling=2.0, likeness_weight=4.0)
    assert losses.likeness_loss(far, held).item() == pytest.approx(4 * (1.0 + 0.5))
    assert losses.likeness_loss(
        losses.Strength(torch.tensor([0.0]), torch.tensor([0.5])), NeutralSpec()
    ).item() == pytest.approx(75)


# -- the objective; its equality with the textbook way is in test_plain.py
# --------------------------------------------------


def test_cache_and_grouping_do_not_change_the_loss(tiny, tiny_pairs, make_adapter):
    lm, spec = tiny(), LossesSpec()
    adapter, basis = make_adapter(lm, scale=0.05), random_basis(lm.hidden_size, 4, 0).columns
    totals = []
    for budget, cache in ((64, 0.0), (4096, 64.0), (512, 0.02)):
        objective = Objective(lm, basis, spec, SubspaceSpec(), budget=budget, cache_mb=cache)
        objective.remember(tiny_pairs[:6])
        assert (len(objective._cache) == 6) == (cache == 64.0)
        with torch.no_grad():
            totals.append(objective(adapter, tiny_pairs[:6]).total.item())
    assert max(totals) - min(totals) < 2e-3


def test_ramp_zero_leaves_constraints_out(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    objective = Objective(
        lm,
        random_basis(lm.hidden_size, 4, 0).columns,
        LossesSpec(),
        SubspaceSpec(),
        budget=512,
        cache_mb=64,
    )
    with torch.no_grad():
        report = objective(make_adapter(lm, scale=1.0), tiny_pairs[:3], ramp=0.0)
    assert report.parts["coherence"] == 0.0 and report.parts["monotonicity"] == 0.0


def test_a_short_row_still_has_a_window():
    objective = SimpleNamespace(whole_rows=False)
    assert Objective._window(objective, [1, 2], SimpleNamespace(suffix_len=5)) == 2
