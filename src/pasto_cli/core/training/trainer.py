"""Training: seeded order, best-by-validation weights kept; neither Ctrl-C nor a kill loses it.

AdamW on the adapter's parameters, a schedule of the learning rate (`schedule`), gradients clipped
and accumulated over batches as the mean over their pairs. The loss is `Objective`'s; constraints
and the focus exponent ramp up linearly from 0 (AntiPaSTO, arXiv 2601.07473).

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
from pasto_cli.core.models.memory import SMALLEST_BUDGET, is_shortage
from pasto_cli.core.recipe.schema import TrainingSpec
from pasto_cli.core.records.training import Step, TrainingState, TrainResult
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.training.checkpoint import Snapshot
from pasto_cli.core.training.objective import Objective
from pasto_cli.core.training.recorder import Recorder
from pasto_cli.core.training.schedule import lr_factor, make_batches, steps_per_epoch
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


class WeightedReport(NamedTuple):
    """Loss of one batch among those of an optimiser step or of a validation."""

    share: float
    """The batch's share of all their pairs."""
    report: LossReport


class NotFinite(PastoError):
    """The loss is not a number any more; the adapter holds the last weights that gave one."""

    def __init__(self, problem: str, remedy: str, batch: Sequence[TokenPair]) -> None:
        super().__init__(problem, remedy)
        self.batch = batch
        """The pairs that it was computed on."""


def train(
    objective: Objective,
    adapter: Adapter,
    split: TrainingSplit,
    spec: TrainingSpec,
    recorder: Recorder | None = None,
    resume_from: Snapshot | None = None,
) -> TrainResult:
    """Train an adapter in place; on return it holds the weights of the best validation loss.

    Args:
        objective: The loss.
        adapter: Fresh, on the model's device.
        split: The pairs.
        spec: The recipe's training section.
        recorder: Told of each step, of better weights and of snapshots; None for nobody.
        resume_from: A snapshot that a recorder was given, to go on from there.

    Raises:
        NotFinite: If the loss is not finite; the adapter then holds the best weights so far, or
            those of the last good step.
        PastoError: If the snapshot does not belong to this training.
    """
    loop = _Loop(objective, adapter, split, spec, recorder or Recorder())
    if resume_from:
        loop.restore(resume_from)
    interrupted = stopped = False
    try:
        loop.remember()
        while loop.epoch < spec.epochs:
            stopped = loop.epochs_without_gain >= spec.patience
            if stopped:
                break
            loop.run_epoch()
    except KeyboardInterrupt:
        interrupted = True
        if loop.best_state is None and loop.step:
            # No validation yet: what the last step left is the best there is.
            loop.take_best(0, math.nan)
    except NotFinite as error:
        kept = loop.fall_back()
        error.hint += f"; {kept}."
        raise
    loop.put(loop.best_state)
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
    ) -> None:
        self.objective, self.adapter, self.spec, self.recorder = objective, adapter, spec, recorder
        self.split = split
        self.first_budget: int | None = None
        """Node budget that the base sides were cached with."""
        # Validation batches stay the same: losses of two epochs are of the same groups of pairs.
        self.validation = make_batches(split.validation, spec.batch_size, None)
        self.per_epoch = steps_per_epoch(len(split.train), spec)[1]
        self.total = self.per_epoch * spec.epochs
        self.optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=spec.lr, weight_decay=spec.weight_decay
        )
        self.order = random.Random(spec.seed)
        self.epoch = self.step = 0
        """Epochs and optimiser steps done."""
        self.best_loss, self.best_epoch, self.epochs_without_gain = math.inf, 0, 0
        self.best_state: dict[str, Tensor] | None = None
        self.good_state: dict[str, Tensor] | None = None
        """The last weights whose loss was finite."""
        self.started = self.last_snapshot = time.monotonic()

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
        length = self.spec.constraint_ramp * self.total
        return min(1.0, self.step / length) if length else 1.0

    def run_epoch(self) -> None:
        """What is left of an epoch: a step per `accumulation` batches, then a validation."""
        order_before, epoch = self.order.getstate(), self.epoch + 1
        batches = make_batches(self.split.train, self.spec.batch_size, self.order)
        size = self.spec.accumulation
        done = self.step - self.epoch * self.per_epoch  # more than 0 in a resumed epoch
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
        lr = self.spec.lr * lr_factor(self.step, self.total, self.spec)
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
                raise _not_finite(f"the loss is {report.total.item()} {where}", report, batch)
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
            raise _not_finite(problem, found, self.validation[worst])
        if loss < self.best_loss:
            self.take_best(epoch, loss)
        else:
            self.epochs_without_gain += self.spec.validate_every

    # -- weights

    def take_best(self, epoch: int, loss: float) -> None:
        """Keep the present weights as the best."""
        self.best_loss, self.best_epoch, self.epochs_without_gain = loss, epoch, 0
        self.best_state = self._weights()
        self.recorder.on_best()

    def fall_back(self) -> str:
        """Give the adapter the best weights there are, after a loss that is not finite.

        Returns:
            What a user is told of them.
        """
        if self.best_state is None and self.good_state is not None:
            self.put(self.good_state)
            self.take_best(0, math.nan)
        self.put(self.best_state)
        if self.best_state is None:
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

    # -- memory, and what is told

    def sparing(self, compute: Callable[[], T]) -> T:
        """Where memory runs out, halve the node budget and compute again.

        Several processes would wait for one another in other places: there the error stands.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                hopeless = self.objective.budget <= SMALLEST_BUDGET or distributed.size() > 1
                if hopeless or not is_shortage(error):
                    raise
            # Outside the handler: the error's traceback holds the tensors that took the memory.
            self.objective.budget = max(SMALLEST_BUDGET, self.objective.budget // 2)
            self.recorder.warn(
                f"out of memory at step {self.step + 1}: going on with a node budget of "
                f"{self.objective.budget} (training.node_budget sets it)"
            )

    def _tell(
        self,
        epoch: int,
        reports: list[WeightedReport],
        lr: float,
        held_out: LossReport | None = None,
        validation: bool = False,
    ) -> float:
        """Tell the recorder; the loss, the mean over all pairs plus that of held-out answers."""
        loss = sum(share * report.total.item() for share, report in reports)
        parts = _weighted_mean([(share, report.parts) for share, report in reports])
        diagnostics = _weighted_mean([(share, report.diagnostics) for share, report in reports])
        if held_out is not None:
            loss += held_out.total.item()
            parts |= held_out.parts
            diagnostics |= held_out.diagnostics
        step = Step(
            epoch=epoch,
            step=self.step,
            total_steps=self.total,
            loss=loss,
            parts=parts,
            diagnostics=diagnostics,
            lr=lr,
            seconds=time.monotonic() - self.started,
            validation=validation,
        )
        self.recorder.on_step(step)
        return loss

    # -- snapshots

    def _take_snapshot(self, order: Any) -> None:
        """Hand out a snapshot; `order` is the generator's state before the epoch in progress."""
        tensors = {f"now.{name}": p.detach() for name, p in self.adapter.named_parameters()}
        tensors |= {f"best.{name}": x for name, x in (self.best_state or {}).items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": x for name, x in moments.items()}
        state = TrainingState(
            epoch=self.epoch,
            step=self.step,
            total=self.total,
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
            if state.total != self.total:
                raise ValueError(f"{state.total} steps were planned, now {self.total}")
            self._restore_tensors(tensors)
            self.order.setstate(state.order)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PastoError(
                f"the checkpoint does not fit this training ({error})",
                "Train again from the recipe.",
            ) from None
        self.epoch, self.step = state.epoch, state.step
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
        moments: dict[int, dict[str, Tensor]] = {}  # index of the parameter -> name -> tensor
        for key, x in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = x
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})


def _weighted_mean(each: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Mean of dictionaries with shares, for the keys of the first."""
    keys = each[0][1]
    return {key: sum(share * values.get(key, math.nan) for share, values in each) for key in keys}


def _not_finite(problem: str, found: LossReport, batch: Sequence[TokenPair]) -> NotFinite:
    return NotFinite(
        f"{problem}: {found.parts}", "Lower training.lr or raise training.constraint_ramp", batch
    )
