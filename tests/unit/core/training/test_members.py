"""Several members, one dial: their mean, in any order of kills, and nothing else of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.schema import AdapterSpec, Recipe, TrainingSpec
from pasto_cli.core.steering.cayley import bounded_skew, cayley, largest_angle
from pasto_cli.core.training import trainer
from pasto_cli.core.training.objective import Objective
from tests.unit.core.training.test_trainer import run, setting, state, through_disk

__all__ = ["setting"]


def snapshots_of(setting, **settings):
    """Result, adapter and every snapshot of a training."""
    kept = []

    def keep(snapshot):
        copied = {name: x.detach().clone() for name, x in snapshot.tensors.items()}
        kept.append(snapshot._replace(tensors=copied))

    result, adapter = run(setting, told={"on_snapshot": keep}, **settings)
    return result, adapter, kept


def part(tensors, prefix):
    return torch.cat([x.flatten() for name, x in tensors.items() if name.startswith(prefix)])


def test_the_dial_is_the_mean_of_what_each_member_found(setting):
    result, adapter, kept = snapshots_of(setting, members=3)
    last = kept[-1]
    assert (last.state.member, last.state.begun, result.steps) == (2, 8, 12)
    members = [part(last.tensors, p) for p in ("ended.0.", "ended.1.", "best.")]
    expected = torch.stack(members).double().mean(0)
    torch.testing.assert_close(state(adapter).double(), expected, rtol=1e-6, atol=1e-9)
    assert not any(torch.allclose(a, b) for a, b in zip(members, members[1:], strict=False))
    assert result.angle == pytest.approx(adapter.angle())


def test_the_first_member_is_the_training_without_members(setting):
    _, alone = run(setting)
    _, _, kept = snapshots_of(setting, members=2)
    assert torch.equal(part(kept[-1].tensors, "ended.0."), state(alone))


def test_each_member_has_a_start_and_a_clock_of_its_own(setting, monkeypatch):
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
    steps, starts = [], []
    real = trainer.Members.next

    def next_member(self, found):
        real(self, found)
        starts.append(state(self.adapter))

    monkeypatch.setattr(trainer.Members, "next", next_member)
    run(setting, told={"on_step": steps.append}, members=3, epochs=2)
    rates = [s.lr for s in steps if not s.validation]
    assert rates[:4] == rates[4:8] == rates[8:] and len(set(rates[:4])) > 1
    assert [s.step for s in steps if not s.validation] == list(range(1, 13))
    assert {s.total_steps for s in steps} == {12}
    assert [s.epoch for s in steps if s.validation] == [1, 2, 3, 4, 5, 6, 6]
    assert not torch.equal(*starts)


def test_the_mean_is_validated(setting):
    steps = []
    result, _ = run(setting, told={"on_step": steps.append}, members=2)
    assert steps[-1].validation and steps[-1].loss == result.best_loss


def test_who_watches_is_told_whose_step_it_is(setting):
    steps = []
    run(setting, told={"on_step": steps.append}, members=2)
    said = list(dict.fromkeys(step.member for step in steps))
    assert said == ["member 1 of 2", "member 2 of 2", "mean of 2 members"]
    assert steps[-1].record()["member"] == "mean of 2 members"
    alone = []
    run(setting, told={"on_step": alone.append}, members=1)
    assert {step.member for step in alone} == {""} and "member" not in alone[0].record()


@pytest.mark.parametrize("settings", [{"epochs": 2}, {"epochs": 3, "validate_every": 2}])
def test_going_on_from_any_snapshot_ends_with_the_same_bits(
    setting, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
    kept = []
    told = {"on_snapshot": lambda s: kept.append(through_disk(s, tmp_path))}
    result, adapter = run(setting, told=told, members=3, **settings)
    assert {s.state.member for s in kept} == {0, 1, 2}
    for snapshot in kept[::2]:
        again, other = run(setting, snapshot, members=3, **settings)
        assert torch.equal(state(adapter), state(other)) and again == result


@pytest.mark.parametrize(("after", "whole"), [(5, 1), (9, 2)])
def test_an_interruption_keeps_the_mean_of_what_has_ended(setting, after, whole):
    """Before a member's first validation it has nothing to give."""

    def report(step):
        if step.step == after:
            raise KeyboardInterrupt

    result, adapter = run(setting, told={"on_step": report}, members=3)
    _, _, kept = snapshots_of(setting, members=3)
    ended = [part(kept[-1].tensors, f"ended.{m}.") for m in range(whole)]
    assert result.interrupted
    assert torch.equal(state(adapter), torch.stack(ended).mean(0))


def test_what_is_saved_on_the_way_is_the_mean_so_far(setting):
    make, split = setting
    objective, adapter = make()
    saved, kept = [], []
    told = {
        "on_best": lambda: saved.append(state(adapter)),
        "on_snapshot": lambda s: kept.append({k: x.clone() for k, x in s.tensors.items()}),
    }
    from tests.unit.core.training.test_trainer import Told

    spec = TrainingSpec(epochs=1, batch_size=4, lr=5e-3, members=2)
    trainer.train(objective, adapter, split, spec, Told(**told))
    first, second = part(kept[-1], "ended.0."), part(kept[-1], "best.")
    assert torch.equal(saved[0], first)
    assert torch.equal(saved[1], torch.stack([first, second]).mean(0))
    assert torch.equal(saved[-1], state(adapter))


def test_a_loss_that_is_not_finite_leaves_what_has_ended(setting, monkeypatch):
    real, calls = Objective.__call__, []

    def break_later(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        calls.append(torch.is_grad_enabled())
        return report._replace(total=report.total * float("nan")) if sum(calls) > 4 else report

    make, split = setting
    _, alone = run(setting)
    monkeypatch.setattr(Objective, "__call__", break_later)
    objective, adapter = make()
    spec = TrainingSpec(epochs=2, batch_size=4, lr=5e-3, members=2)
    with pytest.raises(PastoError, match="last good adapter"):
        trainer.train(objective, adapter, split, spec)
    assert torch.equal(state(adapter), state(alone))


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 5),
    bound=st.sampled_from(["spectral", "entrywise"]),
)
def test_a_mean_of_thetas_is_a_rotation_within_the_bound(seed, count, bound):
    generator = torch.Generator().manual_seed(seed)
    thetas = torch.randn((count, 6, 6), generator=generator, dtype=torch.float64)
    skew = bounded_skew(thetas.mean(0), bound, 0.7)
    turned = cayley(skew, 1.0)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(turned @ turned.mT, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(cayley(skew, -1.0), turned.mT, rtol=0, atol=1e-12)
    assert bound == "entrywise" or largest_angle(skew) <= torch.rad2deg(torch.tensor(0.7)) + 1e-6


def test_members_of_a_kind_without_rotations_are_refused():
    facts = {"name": "x", "model": {"source": "random:llama"}, "pairs": {"words": ["a", "b"]}}
    with pytest.raises(ValueError, match=r"members: 2 takes the mean of rotations.*kind: cayley"):
        Recipe.model_validate(
            facts | {"adapter": AdapterSpec(kind="lora"), "training": {"members": 2}}
        )
