"""Anchors in the loss: against plain forwards, nothing at the base, whatever the grouping."""

import pytest
import torch

from pasto_cli.core.evaluation.disturbance import measure_specificity
from pasto_cli.core.pairs.anchors import Anchor
from pasto_cli.core.recipe.losses_spec import AnchorSpec, LossesSpec
from pasto_cli.core.recipe.schema import SubspaceSpec
from pasto_cli.core.steering.steerer import AdapterSteerer
from pasto_cli.core.training.anchors import (
    AnchorRead,
    AnchorRow,
    Anchors,
    anchor_loss,
    read_anchors,
)
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.subspaces import random_basis

ASKED = [Anchor(f"What is {n} plus {n}?", "own") for n in range(2, 9)]


BOTH_WAYS = [
    Anchor(f"I have {n} coins. Should I keep them?", "own", "So:", f"I have {n} coins. Give them?")
    for n in range(4)
]


def objective_of(lm, spec, budget=512, seed=0, asked=ASKED):
    anchors = Anchors(lm, asked, spec, seed)
    basis = random_basis(lm.hidden_size, 4, 0).columns
    losses = LossesSpec(anchor=spec)
    found = Objective(
        lm, basis, losses, SubspaceSpec(), budget=budget, cache_mb=64, anchors=anchors
    )
    found.remember([])
    return found


def plain_kl(lm, adapter, anchor, reach=1.0):
    """KL(p_0 || p_a) at +-reach at every answer token, one unpadded forward each: (2, t)."""
    row = torch.tensor([anchor.row])
    with torch.no_grad():
        log_p0 = lm.model(input_ids=row).logits[0, anchor.window].log_softmax(-1)
    each = []
    for coefficient in (reach, -reach):
        with adapter.at(lm.model, coefficient):
            log_p = lm.model(input_ids=row).logits[0, anchor.window].log_softmax(-1)
        each.append((log_p0.exp() * (log_p0 - log_p)).sum(-1))
    return torch.stack(each)


def plain_choice(lm, adapter, anchor):
    """Change of the log-odds of the base's two likeliest tokens where nearest, at +1, -1: (2,)."""
    row = torch.tensor([anchor.row])
    with torch.no_grad():
        base = lm.model(input_ids=row).logits[0, anchor.window].float()
    sorted_logits, tokens = base.sort(descending=True)
    margins = sorted_logits[:, 0] - sorted_logits[:, 1]
    place = min(range(len(margins)), key=lambda t: margins[t].item())
    each = []
    for coefficient in (1.0, -1.0):
        with adapter.at(lm.model, coefficient):
            logits = lm.model(input_ids=row).logits[0, anchor.window].float()[place]
        first, second = tokens[place, :2].tolist()
        each.append(logits[first] - logits[second] - margins[place])
    return torch.stack(each)


def kl_only(kl):
    """A read whose nearest choice has not moved."""
    return AnchorRead(kl, torch.zeros(2))


@pytest.mark.parametrize("aggregate", ["mean", "root", "rms", "p95"])
def test_the_term_and_its_gradient_are_those_of_plain_forwards(
    tiny, tiny_pairs, make_adapter, aggregate
):
    lm, adapter = tiny(), make_adapter(tiny())
    spec = AnchorSpec(weight=3.0, count=3, tokens=4, aggregate=aggregate)
    objective = objective_of(lm, spec)
    batch = tiny_pairs[:4]
    with_anchors = objective(adapter, batch, step=5)
    drawn = objective.anchors.drawn(5)
    assert len(drawn) == 3

    objective.anchors = None
    without = objective(adapter, batch)
    values = torch.cat([plain_kl(lm, adapter, anchor).flatten() for anchor in drawn])
    by_hand = {
        "mean": values.mean(),
        "root": (values + 1e-4).sqrt().mean() - 1e-2,
        "rms": values.square().mean().sqrt(),
        "p95": torch.quantile(values, 0.95),
    }[aggregate]
    assert with_anchors.parts["anchor"] == pytest.approx(3.0 * by_hand.item(), rel=1e-3)
    assert by_hand > 1e-3  # there was something to compare
    assert with_anchors.total.item() == pytest.approx(
        without.total.item() + with_anchors.parts["anchor"], rel=1e-4
    )

    parameters = list(adapter.parameters())
    own = torch.autograd.grad(with_anchors.total - without.total, parameters)
    plain = torch.autograd.grad(3.0 * by_hand, parameters)
    for x, y in zip(own, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-3 * float(y.abs().max()) + 1e-7)


def test_the_choice_and_its_gradient_are_those_of_plain_forwards(tiny, tiny_pairs, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    objective = objective_of(lm, AnchorSpec(weight=0.0, count=5, tokens=4, choice=2.0))
    report = objective(adapter, tiny_pairs[:4], step=5)
    drawn = objective.anchors.drawn(5)
    objective.anchors = None
    without = objective(adapter, tiny_pairs[:4])

    moved = torch.stack([plain_choice(lm, adapter, anchor) for anchor in drawn])
    by_hand = 2.0 * moved.square().mean()
    assert report.parts["anchor"] == pytest.approx(by_hand.item(), rel=1e-3)
    assert by_hand > 1e-3  # there was something to compare
    pos, neg = moved.abs().mean(0).tolist()
    assert report.diagnostics["anchor_choice_pos"] == pytest.approx(pos, rel=1e-3)
    assert report.diagnostics["anchor_choice_neg"] == pytest.approx(neg, rel=1e-3)
    parameters = list(adapter.parameters())
    own = torch.autograd.grad(report.total - without.total, parameters)
    plain = torch.autograd.grad(by_hand, parameters)
    for x, y in zip(own, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-3 * float(y.abs().max()) + 1e-7)


def likeliest_of_both(lm, rows):
    """The two tokens likeliest by the base's mean distribution at the end of some prompts."""
    with torch.no_grad():
        each = [lm.model(input_ids=torch.tensor([row])).logits[0, -1].softmax(-1) for row in rows]
    return torch.stack(each).double().mean(0).topk(2).indices.tolist()


def plain_odds(lm, row, tokens):
    """Log-odds of the first of two tokens after a row."""
    logits = lm.model(input_ids=torch.tensor([row])).logits[0, -1].float()
    return logits[tokens[0]] - logits[tokens[1]]


def test_of_a_question_asked_both_ways_what_the_answers_share_is_held(
    tiny, tiny_pairs, make_adapter
):
    lm, adapter = tiny(), make_adapter(tiny())
    spec = AnchorSpec(weight=0.0, count=3, tokens=4, opposites=2.0, opposites_count=2)
    # Asked both ways first: the order in a file does not matter.
    objective = objective_of(lm, spec, asked=[*BOTH_WAYS, *ASKED])
    report = objective(adapter, tiny_pairs[:4], step=5)
    drawn = objective.anchors.drawn(5)
    assert [x.choice is not None for x in drawn] == [False] * 3 + [True] * 4
    objective.anchors = None
    without = objective(adapter, tiny_pairs[:4])

    shared = []
    for one, other in zip(drawn[3::2], drawn[4::2], strict=True):
        rows = [one.row[: -one.length], other.row[: -other.length]]
        found = [a for a in BOTH_WAYS if tuple(lm.chat.continued(a.prompt, a.opening)) == rows[0]]
        assert rows[1] == tuple(lm.chat.continued(found[0].opposite, "So:"))
        tokens = likeliest_of_both(lm, rows)
        assert list(one.choice) == list(other.choice) == tokens
        with torch.no_grad():
            before = [plain_odds(lm, row, tokens) for row in rows]
        for coefficient in (1.0, -1.0):
            with adapter.at(lm.model, coefficient):
                now = [plain_odds(lm, row, tokens) for row in rows]
            shared.append((now[0] - before[0] + now[1] - before[1]) / 2)
    by_hand = 2.0 * torch.stack(shared).square().mean()
    assert by_hand > 1e-4  # there was something to compare
    assert report.parts["anchor"] == pytest.approx(by_hand.item(), rel=1e-3)
    for name, some in (("pos", shared[::2]), ("neg", shared[1::2])):
        size = torch.stack(some).abs().mean().item()
        assert report.diagnostics[f"anchor_opposites_{name}"] == pytest.approx(size, rel=1e-3)
    parameters = list(adapter.parameters())
    own = torch.autograd.grad(report.total - without.total, parameters)
    plain = torch.autograd.grad(by_hand, parameters)
    for x, y in zip(own, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-3 * float(y.abs().max()) + 1e-7)


def test_what_parts_a_question_from_its_opposite_is_free():
    def read(*choice, opposed=True):
        return AnchorRead(torch.zeros(2, 1), torch.tensor(choice), opposed)

    spec = AnchorSpec(weight=30.0, choice=5.0, opposites=20.0)
    still = AnchorRead(torch.zeros(2, 3), torch.zeros(2))
    assert anchor_loss([still, read(0.5, -0.3), read(-0.5, 0.3)], spec) == 0
    both = anchor_loss([still, read(0.5, -0.3), read(0.5, -0.3)], spec)
    assert both.item() == pytest.approx(20.0 * (0.25 + 0.09) / 2)


def test_anchors_are_held_at_the_coefficient_drawn_for_the_step(tiny, tiny_pairs, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    objective = objective_of(lm, AnchorSpec(weight=3.0, count=3, tokens=4, reach=2.5))
    batch = tiny_pairs[:4]
    report = objective(adapter, batch, step=3)
    drawn, reach = objective.anchors.drawn(3), objective.anchors.coefficient(3)
    assert 1.2 < reach < 2.5
    by_hand = 3.0 * torch.cat([plain_kl(lm, adapter, x, reach).flatten() for x in drawn]).mean()
    assert report.parts["anchor"] == pytest.approx(by_hand.item(), rel=1e-3)
    assert objective.anchors.coefficient(None) == 1.75

    # The pairs are read at +-1 as before, and the gradient is that of both.
    objective.anchors = None
    without = objective(adapter, batch)
    assert report.total.item() == pytest.approx(without.total.item() + by_hand.item(), rel=1e-4)
    parameters = list(adapter.parameters())
    own = torch.autograd.grad(report.total - without.total, parameters)
    plain = torch.autograd.grad(by_hand, parameters)
    for x, y in zip(own, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-3 * float(y.abs().max()) + 1e-7)


def test_the_base_pays_nothing(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    adapter = make_adapter(lm)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    report = objective_of(lm, AnchorSpec(weight=30.0, choice=5.0))(adapter, tiny_pairs[:2], step=0)
    assert report.parts["anchor"] == pytest.approx(0.0, abs=1e-5)
    assert report.diagnostics["anchor_kl_pos"] == pytest.approx(0.0, abs=1e-6)


def test_the_term_does_not_depend_on_how_rows_are_grouped(tiny, tiny_pairs, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    each = [
        objective_of(lm, AnchorSpec(choice=5.0), budget)(adapter, tiny_pairs[:4], step=1).parts[
            "anchor"
        ]
        for budget in (64, 4096)
    ]
    assert each[0] == pytest.approx(each[1], rel=1e-4)


def test_draws_depend_on_seed_and_step_only(tiny):
    lm, spec = tiny(), AnchorSpec(count=3)
    first, second = objective_of(lm, spec).anchors, objective_of(lm, spec).anchors
    second.drawn(0), second.drawn(1)  # what was drawn before does not matter
    rows = [[anchor.row for anchor in x.drawn(7)] for x in (first, second)]
    assert rows[0] == rows[1] and len(set(rows[0])) == 3
    steps = {tuple(anchor.row for anchor in first.drawn(step)) for step in range(8)}
    assert len(steps) > 1
    other = objective_of(lm, spec, seed=1).anchors
    assert [x.row for x in other.drawn(7)] != rows[0]
    seen = [anchor.row for anchor in first.drawn(None)]
    assert len(seen) == 6 and seen == [anchor.row for anchor in second.drawn(None)]


def test_after_an_opening_the_token_that_follows_is_held(tiny, tiny_pairs, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    begun = [anchor._replace(opening="Verdict:") for anchor in ASKED]
    anchors = Anchors(lm, begun, AnchorSpec(weight=3.0, count=3, tokens=4), 0)
    anchors.remember(512)
    for row, anchor in zip(anchors.rows, begun, strict=True):
        head = lm.chat.continued(anchor.prompt, "Verdict:")
        assert head != lm.chat.prompt(anchor.prompt)
        assert row.row[:-1] == tuple(head) and row.length == 1 and row.base.shape[0] == 1
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([head])).logits[0, -1]
        # Held is what the base says after the opening.
        torch.testing.assert_close(lm.head(row.base)[0], logits, rtol=1e-4, atol=1e-4)

    objective = objective_of(lm, anchors.spec)
    objective.anchors = anchors
    report = objective(adapter, tiny_pairs[:4], step=5)
    by_hand = torch.cat([plain_kl(lm, adapter, x).flatten() for x in anchors.drawn(5)])
    assert by_hand.shape == (6,)
    assert report.parts["anchor"] == pytest.approx(3.0 * by_hand.mean().item(), rel=1e-3)


def test_specificity_is_read_after_the_opening(tiny, make_adapter):
    lm, adapter = tiny(), make_adapter(tiny())
    begun = [anchor._replace(opening="Verdict:") for anchor in ASKED]
    found = measure_specificity(
        lm, AdapterSteerer(adapter, lm), begun, tokens=1, budget=512, seed=0
    )
    anchors = Anchors(lm, begun, AnchorSpec(tokens=1), 0)
    anchors.remember(512)
    by_hand = torch.cat([plain_kl(lm, adapter, row) for row in anchors.rows], dim=1).mean(1)
    for name, kl in zip(("1", "-1"), by_hand.tolist(), strict=True):
        assert found[name].kl_mean.value == pytest.approx(kl, rel=1e-3)


def test_specificity_on_a_single_anchor(tiny, make_adapter):
    """Whose prompt is what all prompts end with."""
    lm, adapter = tiny(), make_adapter(tiny())
    found = measure_specificity(
        lm, AdapterSteerer(adapter, lm), ASKED[:1], tokens=3, budget=512, seed=0
    )
    anchors = Anchors(lm, ASKED[:1], AnchorSpec(tokens=3), 0)
    anchors.remember(512)
    by_hand = plain_kl(lm, adapter, anchors.rows[0]).mean(1).tolist()
    assert [found[name].kl_mean.value for name in ("1", "-1")] == pytest.approx(by_hand, rel=1e-3)


def test_the_coefficient_depends_on_seed_and_step_only(tiny):
    spec = AnchorSpec(reach=2.0)
    one, same = (Anchors(tiny(), ASKED, spec, 3) for _ in range(2))
    found = [one.coefficient(step) for step in range(40)]
    assert found == [same.coefficient(step) for step in range(40)]
    assert found != [Anchors(tiny(), ASKED, spec, 4).coefficient(step) for step in range(40)]
    assert 1.0 <= min(found) < 1.2 and 1.8 < max(found) <= 2.0
    assert Anchors(tiny(), ASKED, AnchorSpec(), 3).coefficient(7) == 1.0


def test_a_loop_in_one_token_shows_in_rms_and_p95_more_than_in_the_mean():
    once = torch.zeros(2, 10)
    once[:, 0] = 1.0
    even, loop = [kl_only(torch.full((2, 10), 0.1))], [kl_only(once)]
    each = {a: AnchorSpec(weight=1.0, aggregate=a) for a in ("mean", "rms", "p95")}
    assert anchor_loss(loop, each["mean"]) == pytest.approx(anchor_loss(even, each["mean"]))
    for name in ("rms", "p95"):
        assert anchor_loss(loop, each[name]) > 2 * anchor_loss(even, each[name])


def test_root_is_felt_where_a_mean_is_not():
    """A shift of Yes against No by 0.5 and by 0.05 nats, the base at even odds."""

    def kl(shift: float) -> torch.Tensor:
        even, moved = torch.tensor([0.5, 0.5]), torch.tensor([shift, 0.0]).softmax(0)
        return (even * (even / moved).log()).sum().expand(2, 1)

    mean, root = (AnchorSpec(weight=1.0, aggregate=a) for a in ("mean", "root"))
    large, small = [kl_only(kl(0.5))], [kl_only(kl(0.05))]
    assert anchor_loss(large, mean) == pytest.approx(0.031, abs=1e-3)
    assert anchor_loss(small, mean) < anchor_loss(large, mean) / 90
    assert anchor_loss(small, root) > anchor_loss(large, root) / 20
    assert anchor_loss([kl_only(torch.zeros(2, 5))], root) == pytest.approx(0.0, abs=1e-7)


def test_a_choice_is_felt_where_the_base_is_sure_and_no_kl_is():
    """A Yes of 99.9 % moved by one nat, through a head that is the identity over three tokens."""

    class Head:
        head = staticmethod(lambda states: states)

    sure = AnchorRow((0, 1), 1, torch.tensor([[7.0, 0.0, -20.0]]))
    moved = torch.tensor([[[6.0, 0.0, -20.0]], [[7.0, 0.0, -20.0]]])  # at +1 by -1, at -1 not
    (read,) = read_anchors(Head, [sure], [moved])
    assert read.kl[0].item() < 1e-3
    torch.testing.assert_close(read.choice, torch.tensor([-1.0, 0.0]), atol=1e-5, rtol=0)
    spec = AnchorSpec(weight=0.0, choice=4.0)
    assert anchor_loss([read], spec) == pytest.approx(2.0)
