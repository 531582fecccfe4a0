"""Training: one clock, no lost batch, determinism, best weights, Ctrl-C, non-finite losses."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.losses_spec import LossesSpec
from pasto_cli.core.recipe.schema import SubspaceSpec, TrainingSpec
from pasto_cli.core.training import checkpoint, trainer
from pasto_cli.core.training.not_finite import NotFinite
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import Recorder
from pasto_cli.core.training.schedule import lr_factor, make_batches, steps_per_epoch
from pasto_cli.core.training.subspaces import random_basis
from pasto_cli.core.training.terms import LossReport
from pasto_cli.core.training.trainer import TrainingSplit, train


@given(st.integers(2, 60), st.integers(2, 12), st.integers(1, 5))
def test_planned_steps_are_the_steps_taken(pairs, size, accumulation):
    """The original's schedule was one step short whenever sizes were awkward."""
    spec = TrainingSpec(batch_size=size, accumulation=accumulation)
    batches = make_batches(list(range(pairs)), size, None)
    planned, steps = steps_per_epoch(pairs, spec)
    assert len(batches) == planned and steps == math.ceil(len(batches) / accumulation)
    assert sorted(x for b in batches for x in b) == list(range(pairs))
    assert all(len(b) > 1 for b in batches)


@given(st.integers(1, 200), st.sampled_from(["onecycle", "cosine"]), st.floats(0, 1))
def test_learning_rate_stays_between_nothing_and_its_peak(total, schedule, warmup):
    spec = TrainingSpec(schedule=schedule, warmup=warmup)
    factors = [lr_factor(step, total, spec) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) == pytest.approx(1.0, abs=1e-9)


@pytest.fixture()
def setting(tiny, tiny_pairs, make_adapter):
    lm = tiny()
    basis = random_basis(lm.hidden_size, 4, 0).columns

    def make():
        objective = Objective(lm, basis, LossesSpec(), SubspaceSpec(), budget=512, cache_mb=64)
        return objective, make_adapter(lm, scale=0.003, rank=6)

    return make, TrainingSplit(tiny_pairs[:9], tiny_pairs[9:13])


class Told(Recorder):
    """Hands what a recorder is told to functions."""

    def __init__(self, **functions):
        for name, function in functions.items():
            setattr(self, name, function)


def run(setting, resume_from=None, told=None, **spec):
    make, split = setting
    objective, adapter = make()
    settings = TrainingSpec(**{"epochs": 2, "batch_size": 4, "lr": 5e-3, **spec})
    return train(objective, adapter, split, settings, Told(**(told or {})), resume_from), adapter


def state(adapter):
    return torch.cat([p.detach().flatten() for p in adapter.parameters()])


def test_training_lowers_the_validation_loss_and_is_deterministic(setting):
    steps = []
    result, adapter = run(setting, told={"on_step": steps.append}, epochs=4)
    losses = [s.loss for s in steps if s.validation]
    assert losses[-1] < losses[0] - 1
    assert result.best_loss == min(losses) and result.steps == 4 * 2
    _, again = run(setting, epochs=4)
    assert torch.equal(state(adapter), state(again))
    _, other = run(setting, epochs=4, seed=1)
    assert not torch.equal(state(adapter), state(other))
    json.dumps([s.record() for s in steps])


def test_accumulation_equals_one_larger_step(tiny, tiny_pairs, make_adapter, monkeypatch):
    """Two batches of 4 accumulated give the mean gradient over 8 pairs, not the sum of two
    means."""
    lm = tiny()
    seen = []
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: seen.append([p.grad.clone() for p in self.param_groups[0]["params"]]),
    )
    objective = Objective(
        lm,
        random_basis(lm.hidden_size, 4, 0).columns,
        LossesSpec(),
        SubspaceSpec(),
        budget=512,
        cache_mb=64,
    )
    pairs = tiny_pairs[:7]
    adapter = make_adapter(lm, scale=0.05)
    train(
        objective,
        adapter,
        TrainingSplit(pairs, tiny_pairs[7:9]),
        TrainingSpec(epochs=1, batch_size=4, accumulation=2, clip=1e9),
    )
    monkeypatch.undo()
    import random

    batches = make_batches(pairs, 4, random.Random(0))
    adapter = make_adapter(lm, scale=0.05)
    total = sum(objective(adapter, b, ramp=0.0).total * len(b) / 7 for b in batches)
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    got = torch.cat([g.flatten() for g in seen[0]])
    assert len(seen) == 1
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_best_weights_are_kept_not_the_last(setting, monkeypatch):
    make, split = setting
    objective, adapter = make()
    snapshots, kept = [], []
    fake = iter([3.0, 1.0, 2.0, 4.0])
    real = objective.__class__.__call__

    def call(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        if torch.is_grad_enabled():
            return report
        snapshots.append(state(adapter))
        return LossReport(torch.tensor(next(fake)), report.parts, report.diagnostics)

    monkeypatch.setattr(Objective, "__call__", call)
    result = train(
        objective,
        adapter,
        split,
        TrainingSpec(epochs=4, batch_size=4, lr=1e-2),
        Told(on_best=lambda: kept.append(1)),
    )
    assert (result.best_epoch, result.best_loss, len(kept)) == (2, 1.0, 2)
    assert torch.equal(state(adapter), snapshots[1])


def test_patience_stops_early(setting, monkeypatch):
    make, split = setting
    objective, adapter = make()
    real = Objective.__call__

    def never_better(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        return report if torch.is_grad_enabled() else report._replace(total=torch.tensor(5.0))

    monkeypatch.setattr(Objective, "__call__", never_better)
    result = train(objective, adapter, split, TrainingSpec(epochs=9, batch_size=4, patience=2))
    assert result.stopped_early and result.steps == 3 * 2


@pytest.mark.parametrize("after", [1, 5])
def test_interruption_keeps_the_best_so_far(setting, after):
    kept = []

    def report(step):
        if step.step == after:
            raise KeyboardInterrupt

    told = {"on_step": report, "on_best": lambda: kept.append(1)}
    result, adapter = run(setting, told=told, epochs=3)
    assert result.interrupted and kept and torch.isfinite(state(adapter)).all()


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_best(setting, monkeypatch):
    make, split = setting
    objective, adapter = make()
    real = Objective.__call__
    calls = []

    def break_later(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        calls.append(1)
        return report._replace(total=report.total * math.nan) if len(calls) > 4 else report

    monkeypatch.setattr(Objective, "__call__", break_later)
    with pytest.raises(PastoError, match="loss is nan"):
        train(objective, adapter, split, TrainingSpec(epochs=5, batch_size=4))
    assert torch.isfinite(state(adapter)).all()


def through_disk(snapshot, folder):
    """A snapshot as it comes back from a file."""
    checkpoint.folder_of(folder).mkdir(exist_ok=True)
    checkpoint.save_state(folder, snapshot)
    return checkpoint.load_state(folder)


@pytest.mark.parametrize(
    "settings", [{"epochs": 3}, {"epochs": 3, "accumulation": 2, "validate_every": 2}]
)
def test_going_on_from_any_snapshot_ends_with_the_same_bits(
    setting, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(trainer, "SNAPSHOT_SECONDS", 0.0)
    kept = []
    result, adapter = run(
        setting,
        told={"on_snapshot": lambda s: kept.append(through_disk(s, tmp_path))},
        **settings,
    )
    assert len(kept) == result.steps + 3  # after each step and each epoch
    for snapshot in kept[::2]:
        steps = []
        again, other = run(setting, snapshot, {"on_step": steps.append}, **settings)
        assert torch.equal(state(adapter), state(other)) and again == result
        assert [s.step for s in steps if not s.validation] == list(
            range(snapshot.state.step + 1, result.steps + 1)
        )


def test_a_training_that_had_stopped_early_stays_stopped(setting, monkeypatch):
    """It may be killed while its certificate is made."""
    real, kept = Objective.__call__, []

    def never_better(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        return report if torch.is_grad_enabled() else report._replace(total=torch.tensor(5.0))

    monkeypatch.setattr(Objective, "__call__", never_better)
    settings = {"epochs": 9, "patience": 2}
    result, adapter = run(setting, told={"on_snapshot": kept.append}, **settings)
    again, other = run(setting, resume_from=kept[-1], **settings)
    assert result.stopped_early and again == result and torch.equal(state(adapter), state(other))


def test_a_snapshot_of_another_training_is_refused(setting):
    kept = []
    run(setting, told={"on_snapshot": kept.append})
    with pytest.raises(PastoError, match="8 steps were planned|planned, now"):
        run(setting, resume_from=kept[-1], epochs=5)
    del kept[-1].tensors["optimizer.0.exp_avg"]
    kept[-1].tensors.pop(
        "now." + next(k.removeprefix("now.") for k in kept[-1].tensors if k.startswith("now."))
    )
    with pytest.raises(PastoError, match="does not fit"):
        run(setting, resume_from=kept[-1])


def test_before_the_first_validation_the_last_good_weights_are_kept(setting, monkeypatch):
    """The step that led to a loss that is not finite is taken back."""
    real, calls, weights, kept = Objective.__call__, [], [], []

    def break_third(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        weights.append(state(adapter))
        calls.append(batch)
        return report._replace(total=report.total * math.nan) if len(calls) == 2 else report

    monkeypatch.setattr(Objective, "__call__", break_third)
    make, split = setting
    objective, adapter = make()
    with pytest.raises(NotFinite, match="step 2") as caught:
        train(
            objective,
            adapter,
            split,
            TrainingSpec(batch_size=4),
            Told(on_best=lambda: kept.append(state(adapter))),
        )
    assert caught.value.batch is calls[1] and "last good adapter" in caught.value.hint
    assert torch.equal(kept[0], weights[0]) and torch.equal(state(adapter), weights[0])


def test_out_of_memory_halves_the_node_budget_and_goes_on(setting, monkeypatch):
    real, told, budgets = Objective.__call__, [], []

    def short(self, adapter, batch, ramp=1.0, neutral=True, step=None):
        report = real(self, adapter, batch, ramp, neutral)
        budgets.append(self.budget)
        if self.budget > 128:
            report.total.backward()  # gradients of a half-finished attempt must not count
            raise torch.OutOfMemoryError("CUDA out of memory")
        return report

    monkeypatch.setattr(Objective, "__call__", short)
    result, adapter = run(setting, told={"warn": told.append})
    assert budgets[:3] == [512, 256, 128] and set(budgets[3:]) == {128}
    assert len(told) == 2 and "node budget of 128" in told[-1] and result.steps == 4
    monkeypatch.undo()
    make, split = setting
    objective, other = make()
    objective.budget = 128
    train(objective, other, split, TrainingSpec(epochs=2, batch_size=4, lr=5e-3))
    torch.testing.assert_close(state(adapter), state(other), rtol=0, atol=1e-4)


def test_memory_that_is_never_enough_is_an_error(setting, monkeypatch):
    def never(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Objective, "__call__", never)
    with pytest.raises(MemoryError):
        run(setting)
