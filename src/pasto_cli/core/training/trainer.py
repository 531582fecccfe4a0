"""Training: seeded order, best-by-validation weights kept; neither Ctrl-C nor a kill loses it.

AdamW on the adapter's parameters, a schedule of the learning rate (`schedule`), gradients clipped
and accumulated over batches as the mean over their pairs. The loss is `Objective`'s; constraints
and the focus exponent ramp up linearly from 0 (AntiPaSTO, arXiv 2601.07473). With several `members`
all this is done for each, and the mean of what they found is the adapter.

A snapshot holds all that a training is made of between two optimiser steps, so that one that goes
on from it does the same arithmetic on the same numbers as one that was never stopped.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models import distributed
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.recipe.schema import AdapterSpec, TrainingSpec
from pasto_cli.core.records.training import Step, TrainingState, TrainResult
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.training.checkpoint import Snapshot, optimizer_moments
from pasto_cli.core.training.members import Members
from pasto_cli.core.training.not_finite import NotFinite, not_finite
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import Recorder
from pasto_cli.core.training.reports import WeightedReport, summarise
from pasto_cli.core.training.schedule import lr_factor, make_batches, steps_per_epoch
from pasto_cli.core.training.sparing import sparing
from pasto_cli.core.training.terms import LossReport

T = TypeVar("T")
SNAPSHOT_SECONDS = 5.0
"""A snapshot is taken after a step when the last one is older than this, and after each epoch."""


class TrainingSplit(NamedTuple):
    """The pairs of a training."""

    train: Sequence[TokenPair]
    """To learn from."""
    validation: Sequence[TokenPair]
    """To choose the epoch by."""


def train(
    objective: Objective,
    adapter: Adapter,
    split: TrainingSplit,
    spec: TrainingSpec,
    recorder: Recorder | None = None,
    resume_from: Snapshot | None = None,
    start: AdapterSpec | None = None,
) -> TrainResult:
    """Train an adapter in place; on return it holds the weights of the best validation loss.

    Args:
        objective: The loss.
        adapter: Fresh, on the model's device.
        split: The pairs.
        spec: The recipe's training section.
        recorder: Told of each step, of better weights and of snapshots; None for nobody.
        resume_from: A snapshot that a recorder was given, to go on from there.
        start: What further members' initial weights are drawn from; None for the defaults.

    Raises:
        NotFinite: If the loss is not finite; the adapter then holds the best weights so far, or
            those of the last good step.
        PastoError: If the snapshot does not belong to this training.
    """
    members = Members(adapter, start or AdapterSpec(), spec)
    loop = _Loop(objective, adapter, split, spec, recorder or Recorder(), members)
    if resume_from:
        loop.restore(resume_from)
    interrupted = stopped = False
    try:
        loop.remember()
        stopped = loop.run_member()
        while not members.last:
            loop.next_member()
            stopped |= loop.run_member()
        if members.count > 1:
            loop.take_mean()
    except KeyboardInterrupt:
        interrupted = True
        if loop.best_state is None and loop.step and not members.ended:
            # No validation yet: what the last step left is the best there is.
            loop.take_best(0, math.nan)
    except NotFinite as error:
        kept = loop.fall_back()
        error.hint += f"; {kept}."
        raise
    loop.put(members.mean_with(loop.best_state))
    return TrainResult(
        steps=loop.step,
        best_epoch=loop.best_epoch,
        best_loss=loop.best_loss,
        interrupted=interrupted,
        stopped_early=stopped,
        angle=adapter.angle(),
    )


class _Loop:
    """State of a training in progress."""

    def __init__(
        self,
        objective: Objective,
        adapter: Adapter,
        split: TrainingSplit,
        spec: TrainingSpec,
        recorder: Recorder,
        members: Members,
    ) -> None:
        self.objective, self.adapter, self.spec, self.recorder = objective, adapter, spec, recorder
        self.split, self.members = split, members
        self.first_budget: int | None = None
        """Node budget that the base sides were cached with."""
        # Validation batches stay the same: losses of two epochs are of the same groups of pairs.
        self.validation = make_batches(split.validation, spec.batch_size, None)
        self.per_epoch = steps_per_epoch(len(split.train), spec)[1]
        self.length = self.per_epoch * spec.epochs
        """Optimiser steps of a member."""
        self.order = random.Random(spec.seed)
        self.step = 0
        """Optimiser steps done, of all members."""
        self.begin()
        self.good_state: dict[str, Tensor] | None = None
        """The last weights whose loss was finite."""
        self.started = self.last_snapshot = time.monotonic()

    # -- a member

    def begin(self) -> None:
        """Set all that is a member's own: its clock, its optimiser, its best weights."""
        self.begun, self.epoch = self.step, 0
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=self.spec.lr, weight_decay=self.spec.weight_decay
        )
        self.best_loss, self.best_epoch, self.epochs_without_gain = math.inf, 0, 0
        self.best_state: dict[str, Tensor] | None = None

    def run_member(self) -> bool:
        """Its epochs; whether patience ran out."""
        while self.epoch < self.spec.epochs:
            if self.epochs_without_gain >= self.spec.patience:
                return True
            self.run_epoch()
        return False

    def next_member(self) -> None:
        """Keep what the present member found, and begin with the next."""
        assert self.best_state is not None  # the last epoch is validated
        self.members.next(self.best_state)
        self.begin()

    def take_mean(self) -> None:
        """Validate the mean of all members, which is the result."""
        assert self.best_state is not None
        self.best_state = self.members.take_mean(self.best_state)
        self.put(self.best_state)
        self.best_loss = math.inf
        self.validate(self.epoch)

    @property
    def place(self) -> int:
        """Optimiser steps that the member has done."""
        return self.step - self.begun

    # -- an epoch

    def remember(self) -> None:
        """Cache the base side of all pairs.

        A resumed run cuts them into the trees of its first time, whatever its budget is by now:
        another cut rounds otherwise, and the run would not end with the same bits.
        """
        now = self.objective.budget
        self.objective.budget = self.first_budget or now
        pairs = [*self.split.train, *self.split.validation]
        self.sparing(lambda: self.objective.remember(pairs, self.recorder.on_base))
        if self.first_budget is None:
            self.first_budget = self.objective.budget
        else:
            self.objective.budget = now

    def ramp(self) -> float:
        """Weight of constraints and focus: linear from 0 over `constraint_ramp` of all steps.

        The adapter starts close to the base model: at full weight the constraints would hold it
        there before the projection has found its direction.
        """
        length = self.spec.constraint_ramp * self.length
        return min(1.0, self.place / length) if length else 1.0

    def run_epoch(self) -> None:
        """What is left of an epoch: a step per `accumulation` batches, then a validation."""
        order_before, epoch = self.order.getstate(), self.epoch + 1
        batches = make_batches(self.split.train, self.spec.batch_size, self.order)
        size = self.spec.accumulation
        done = self.place - self.epoch * self.per_epoch  # more than 0 in a resumed epoch
        for number in range(done, self.per_epoch):
            self._step(epoch, batches[number * size : (number + 1) * size])
            if time.monotonic() - self.last_snapshot > SNAPSHOT_SECONDS:
                # With the generator as it was before the shuffle, so that it can be done again.
                self._take_snapshot(order_before)
        if epoch % self.spec.validate_every == 0 or epoch == self.spec.epochs:
            self.validate(epoch)
        self.epoch = epoch
        self._take_snapshot(self.order.getstate())

    def _step(self, epoch: int, group: list[list[TokenPair]]) -> None:
        """One optimiser step on the batches of a group."""
        lr = self.spec.lr * lr_factor(self.place, self.length, self.spec)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        reports = self.sparing(lambda: self._gradients(epoch, group))
        distributed.sum_gradients(self.adapter.parameters())
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.spec.clip)
        # Only now is it known that the weights from before this step give a finite loss.
        self.good_state = self._weights()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._tell(epoch, reports, lr)

    def _gradients(self, epoch: int, group: list[list[TokenPair]]) -> list[WeightedReport]:
        """Backward passes of a step: the mean over all its pairs, however they were cut."""
        # Also where memory ran out half-way: gradients of the first attempt must not count.
        self.optimizer.zero_grad(set_to_none=True)
        pairs = sum(map(len, group))
        reports = []
        for batch in group:
            report = self.objective(self.adapter, batch, self.ramp(), neutral=False, step=self.step)
            if not math.isfinite(report.total.item()):
                where = f"at step {self.step + 1} (epoch {epoch})"
                raise not_finite(f"the loss is {report.total.item()} {where}", report, batch)
            if report.total.requires_grad:  # a process may have no pair of a small batch
                (report.total * (len(batch) / pairs)).backward()
            reports.append(WeightedReport(len(batch) / pairs, report))
        return reports

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Loss at full weights on validation pairs and held-out answers; the best weights stay."""
        pairs = sum(map(len, self.validation))
        reports = []
        for batch in self.validation:
            report = self.sparing(lambda batch=batch: self.objective(self.adapter, batch))
            reports.append(WeightedReport(len(batch) / pairs, report))
        held_out = self.sparing(lambda: self.objective.held_out(self.adapter))
        # The first process decides for all: a last bit of difference would part their ways.
        told = self._tell(epoch, reports, 0.0, held_out, validation=True)
        loss = distributed.all_gather_object(told)[0]
        if not math.isfinite(loss):
            finite = [math.isfinite(found.report.total.item()) for found in reports]
            worst = finite.index(False) if False in finite else 0
            # Where all batches are finite, the answers are not.
            found = held_out if held_out is not None and all(finite) else reports[worst].report
            problem = f"the validation loss is {loss} after step {self.step} (epoch {epoch})"
            raise not_finite(problem, found, self.validation[worst])
        if loss < self.best_loss:
            self.take_best(epoch, loss)
        else:
            self.epochs_without_gain += self.spec.validate_every

    # -- weights

    def take_best(self, epoch: int, loss: float) -> None:
        """Keep the present weights as the best."""
        self.best_loss, self.best_epoch, self.epochs_without_gain = loss, epoch, 0
        self.best_state = self._weights()
        if self.members.ended:  # what is saved is the mean so far, what is trained goes on
            self.put(self.members.mean_with(self.best_state))
            self.recorder.on_best()
            self.put(self.best_state)
        else:
            self.recorder.on_best()

    def fall_back(self) -> str:
        """Give the adapter the best weights there are, after a loss that is not finite.

        Returns:
            What a user is told of them.
        """
        if self.best_state is None and self.good_state is not None and not self.members.ended:
            self.put(self.good_state)
            self.take_best(0, math.nan)
        self.put(self.members.mean_with(self.best_state))
        if self.best_state is None and not self.members.ended:
            return "there is no adapter yet"
        return "the last good adapter was saved"

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.adapter.named_parameters()}

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor] | None) -> None:
        """Give the adapter these weights (None: leave it as it is)."""
        if weights is not None:
            for name, parameter in self.adapter.named_parameters():
                parameter.copy_(weights[name])

    # -- what is told

    def sparing(self, compute: Callable[[], T]) -> T:
        """See `sparing`."""
        return sparing(self.objective, self.recorder, self.step, compute)

    def _tell(
        self,
        epoch: int,
        reports: list[WeightedReport],
        lr: float,
        held_out: LossReport | None = None,
        validation: bool = False,
    ) -> float:
        """Tell the recorder; the loss, the mean over all pairs plus that of held-out answers."""
        found = summarise(reports, held_out)
        step = Step(
            epoch=self.members.present * self.spec.epochs + epoch,
            step=self.step,
            total_steps=self.length * self.members.count,
            loss=found.loss,
            parts=found.parts,
            diagnostics=found.diagnostics,
            lr=lr,
            seconds=time.monotonic() - self.started,
            validation=validation,
            member=self.members.name,
        )
        self.recorder.on_step(step)
        return found.loss

    # -- snapshots

    def _take_snapshot(self, order: Any) -> None:
        """Hand out a snapshot; `order` is the generator's state before the epoch in progress."""
        tensors = {f"now.{name}": p.detach() for name, p in self.adapter.named_parameters()}
        tensors |= {f"best.{name}": x for name, x in (self.best_state or {}).items()}
        tensors |= self.members.tensors()
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": x for name, x in moments.items()}
        state = TrainingState(
            epoch=self.epoch,
            step=self.step,
            total=self.length * self.members.count,
            member=self.members.present,
            begun=self.begun,
            best_loss=self.best_loss,
            best_epoch=self.best_epoch,
            epochs_without_gain=self.epochs_without_gain,
            order=order,
            budget=self.objective.budget,
            first_budget=self.first_budget,
            seconds=time.monotonic() - self.started,
        )
        self.recorder.on_snapshot(Snapshot(state, tensors))
        self.last_snapshot = time.monotonic()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot.

        Raises:
            PastoError: If it is another training's.
        """
        state, tensors = snapshot
        try:
            if state.total != (now := self.length * self.members.count):
                raise ValueError(f"{state.total} steps were planned, now {now}")
            self._restore_tensors(tensors)
            self.members.restore(state.member, tensors)
            self.order.setstate(state.order)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PastoError(
                f"the checkpoint does not fit this training ({error})",
                "Train again from the recipe.",
            ) from None
        self.epoch, self.step, self.begun = state.epoch, state.step, state.begun
        self.objective.budget, self.first_budget = state.budget, state.first_budget
        self.best_loss, self.best_epoch = state.best_loss, state.best_epoch
        self.epochs_without_gain = state.epochs_without_gain
        self.started = time.monotonic() - state.seconds

    def _restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Weights, best weights and the optimiser's moments of a snapshot."""
        parameters = dict(self.adapter.named_parameters())
        self.put({name: tensors[f"now.{name}"] for name in parameters})
        if any(key.startswith("best.") for key in tensors):
            self.best_state = {
                name: tensors[f"best.{name}"].to(p.device) for name, p in parameters.items()
            }
        moments = optimizer_moments(tensors)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
