"""Training: one clock in optimiser steps, seeded order, best-by-validation weights kept; neither
Ctrl-C nor a kill loses it.

A snapshot holds all that a training is made of between two optimiser steps, so that one that goes
on from it does the same arithmetic on the same numbers as one that was never stopped."""

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
from pasto_cli.core.records.training import Step, TrainResult
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.training.checkpoint import Snapshot
from pasto_cli.core.training.objective import LossReport, Objective

T = TypeVar("T")
SNAPSHOT_SECONDS = 5.0
"""A snapshot is taken after a step when the last one is older than this, and after each epoch."""


def steps_per_epoch(num_pairs: int, spec: TrainingSpec) -> tuple[int, int]:
    """(batches, optimiser steps) of an epoch. Everything that counts steps asks here."""
    batches = (
        max(1, num_pairs // spec.batch_size)
        if num_pairs % spec.batch_size == 1
        else math.ceil(num_pairs / spec.batch_size)
    )
    return batches, math.ceil(batches / spec.accumulation)


def make_batches(
    pairs: Sequence[TokenPair], batch_size: int, rng: random.Random | None
) -> list[list[TokenPair]]:
    """Batches in a seeded order (None: as they stand); a last batch of one pair joins the one
    before it.

    One pair has no spread to scale its direction by.
    """
    order = list(pairs)
    if rng is not None:
        rng.shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        lonely = batches.pop()
        batches[-1] += lonely
    return batches


def lr_factor(step: int, total: int, spec: TrainingSpec) -> float:
    """Learning rate at an optimiser step as a share of the peak.

    Warm-up rises linearly (cosine) or by a half cosine from 1/25 (onecycle, arXiv 1708.07120); both
    fall by a half cosine."""
    warm = max(1, round(spec.warmup * total))
    start, end = (0.04, 1e-4) if spec.schedule == "onecycle" else (0.0, 0.0)
    if step < warm:
        share = (step + 1) / warm
        return (
            start + (1 - start) * (0.5 - 0.5 * math.cos(math.pi * share))
            if spec.schedule == "onecycle"
            else share
        )
    share = (step + 1 - warm) / max(1, total - warm)
    return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * share))


class NotFinite(PastoError):
    """The loss is not a number any more; the adapter holds the last weights that gave one."""

    def __init__(self, problem: str, remedy: str, batch: Sequence[TokenPair]) -> None:
        super().__init__(problem, remedy)
        self.batch = batch
        """The pairs that it was computed on."""


class Hooks(NamedTuple):
    """Who is told of what while a training runs; each may be left out."""

    report: Callable[[Step], None] = lambda _: None
    """Each optimiser step and each validation."""
    keep_best: Callable[[], None] = lambda: None
    """The adapter holds the best weights so far: save them."""
    keep: Callable[[Snapshot], None] = lambda _: None
    """Something to go on from: save it."""
    warn: Callable[[str], None] = lambda _: None
    """Something that may matter to the result."""


def train(
    objective: Objective,
    adapter: Adapter,
    train_pairs: Sequence[TokenPair],
    validation_pairs: Sequence[TokenPair],
    spec: TrainingSpec,
    hooks: Hooks = Hooks(),  # noqa: B008  (immutable)
    resumed: Snapshot | None = None,
) -> TrainResult:
    """Train an adapter in place; on return it holds the weights of the best validation loss.

    Args:
        objective: The loss.
        adapter: Fresh, on the model's device.
        train_pairs: Pairs to learn from.
        validation_pairs: Pairs that choose the epoch.
        spec: The recipe's training section.
        hooks: Who is told of what.
        resumed: What `hooks.keep` received last, to go on from there.

    Raises:
        NotFinite: If the loss is not finite; the adapter then holds the best weights so far, or
        those of the last good step. PastoError: If the snapshot does not belong to this training.
    """
    loop = _Loop(objective, adapter, train_pairs, validation_pairs, spec, hooks)
    if resumed:
        loop.restore(resumed)
    interrupted = stopped = False
    try:
        loop.remember()
        while loop.epoch < spec.epochs and not (
            stopped := loop.epochs_without_gain >= spec.patience
        ):
            loop.run_epoch()
    except KeyboardInterrupt:
        interrupted = True
        if loop.best_state is None and loop.step:
            # No validation yet: what the last step left is the best there is.
            loop.take_best(0, math.nan)
    except NotFinite as error:
        if loop.best_state is None and loop.good_state is not None:
            loop.put(loop.good_state)
            loop.take_best(0, math.nan)
        loop.put(loop.best_state)
        kept = (
            "there is no adapter yet"
            if loop.best_state is None
            else "the last good adapter was saved"
        )
        error.hint += f"; {kept}."
        raise
    loop.put(loop.best_state)
    return TrainResult(
        loop.step, loop.best_epoch, loop.best_loss, interrupted, stopped, adapter.angle()
    )


class _Loop:
    """State of a training in progress."""

    def __init__(
        self,
        objective: Objective,
        adapter: Adapter,
        train_pairs: Sequence[TokenPair],
        validation_pairs: Sequence[TokenPair],
        spec: TrainingSpec,
        hooks: Hooks,
    ) -> None:
        self.objective, self.adapter, self.spec, self.hooks = objective, adapter, spec, hooks
        self.pairs, self.every = train_pairs, [*train_pairs, *validation_pairs]
        self.first_budget: int | None = None
        """Node budget that the base sides were cached with."""
        self.validation = make_batches(validation_pairs, spec.batch_size, None)
        self.per_epoch = steps_per_epoch(len(train_pairs), spec)[1]
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
        self.started = self.kept = time.monotonic()

    def remember(self) -> None:
        """Cache the base side of all pairs, cut into trees by the budget that a resumed run cached
        them with."""
        now = self.objective.budget
        self.objective.budget = self.first_budget or now
        self.sparing(lambda: self.objective.remember(self.every))
        if self.first_budget is None:
            self.first_budget = self.objective.budget
        else:
            self.objective.budget = now

    def ramp(self) -> float:
        """Weight of constraints and focus: linear from 0 over `constraint_ramp` of the optimiser
        steps."""
        length = self.spec.constraint_ramp * self.total
        return min(1.0, self.step / length) if length else 1.0

    def run_epoch(self) -> None:
        """What is left of an epoch: an optimiser step after every `accumulation` batches and after
        the last; validation."""
        order, epoch = self.order.getstate(), self.epoch + 1
        batches = make_batches(self.pairs, self.spec.batch_size, self.order)
        size = self.spec.accumulation
        for number in range(self.step - self.epoch * self.per_epoch, self.per_epoch):
            self._step(epoch, batches[number * size : (number + 1) * size])
            if time.monotonic() - self.kept > SNAPSHOT_SECONDS:
                self._keep(order)
        if epoch % self.spec.validate_every == 0 or epoch == self.spec.epochs:
            self.validate(epoch)
        self.epoch = epoch
        self._keep(self.order.getstate())

    def _step(self, epoch: int, group: list[list[TokenPair]]) -> None:
        lr = self.spec.lr * lr_factor(self.step, self.total, self.spec)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        reports = self.sparing(lambda: self._gradients(epoch, group))
        distributed.sum_gradients(self.adapter.parameters())
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.spec.clip)
        self.good_state = self._weights()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._tell(epoch, reports, lr)

    def _gradients(
        self, epoch: int, group: list[list[TokenPair]]
    ) -> list[tuple[float, LossReport]]:
        """Backward passes of the batches of a step: the mean over all their pairs, however they
        were cut."""
        self.optimizer.zero_grad(set_to_none=True)
        pairs = sum(map(len, group))
        reports = []
        for batch in group:
            result = self.objective(self.adapter, batch, self.ramp(), neutral=False)
            if not math.isfinite(result.total.item()):
                raise _not_finite(
                    f"the loss is {result.total.item()} at step {self.step + 1} (epoch {epoch})",
                    result,
                    batch,
                )
            if result.total.requires_grad:  # a process may have no pair of a small batch
                (result.total * (len(batch) / pairs)).backward()
            reports.append((len(batch) / pairs, result))
        return reports

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Loss at full weights on the validation pairs; the best weights are kept."""
        pairs = sum(map(len, self.validation))
        reports = [
            (len(batch) / pairs, self.sparing(lambda b=batch: self.objective(self.adapter, b)))
            for batch in self.validation
        ]
        loss = distributed.all_gather_object(self._tell(epoch, reports, 0.0, validation=True))[0]
        if not math.isfinite(loss):
            worst = next(
                (i for i, (_, r) in enumerate(reports) if not math.isfinite(r.total.item())), 0
            )
            raise _not_finite(
                f"the validation loss is {loss} after step {self.step} (epoch {epoch})",
                reports[worst][1],
                self.validation[worst],
            )
        if loss < self.best_loss:
            self.take_best(epoch, loss)
        else:
            self.epochs_without_gain += self.spec.validate_every

    def take_best(self, epoch: int, loss: float) -> None:
        """Keep the present weights as the best."""
        self.best_loss, self.best_epoch, self.epochs_without_gain = loss, epoch, 0
        self.best_state = self._weights()
        self.hooks.keep_best()

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.adapter.named_parameters()}

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor] | None) -> None:
        """Give the adapter these weights."""
        if weights is not None:
            for name, parameter in self.adapter.named_parameters():
                parameter.copy_(weights[name])

    def sparing(self, compute: Callable[[], T]) -> T:
        """Where memory runs out, halve the node budget and compute again.

        Several processes would wait for one another in other places: there the error stands.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if (
                    not is_shortage(error)
                    or distributed.size() > 1
                    or self.objective.budget <= SMALLEST_BUDGET
                ):
                    raise
            self.objective.budget = max(SMALLEST_BUDGET, self.objective.budget // 2)
            self.hooks.warn(
                f"out of memory at step {self.step + 1}: going on with a node budget of "
                f"{self.objective.budget} "
                "(training.node_budget sets it)"
            )

    # -- snapshots
    # ----------------------------------------------------------------------------------------------------------

    def _keep(self, order: Any) -> None:
        """Hand out a snapshot; `order` is the generator's state before the epoch in progress."""
        tensors = {f"now.{name}": p.detach() for name, p in self.adapter.named_parameters()}
        tensors |= {f"best.{name}": x for name, x in (self.best_state or {}).items()}
        for index, kept in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": x for name, x in kept.items()}
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "total": self.total,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "epochs_without_gain": self.epochs_without_gain,
            "order": order,
            "budget": self.objective.budget,
            "first_budget": self.first_budget,
            "seconds": time.monotonic() - self.started,
        }
        self.hooks.keep(Snapshot(facts, tensors))
        self.kept = time.monotonic()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot.

        Raises:
            PastoError: If it is another training's.
        """
        facts, tensors = snapshot
        try:
            if facts["total"] != self.total:
                raise ValueError(f"{facts['total']} steps were planned, now {self.total}")
            self.put({name: tensors[f"now.{name}"] for name, _ in self.adapter.named_parameters()})
            if any(key.startswith("best.") for key in tensors):
                self.best_state = {
                    name: tensors[f"best.{name}"].to(p.device)
                    for name, p in self.adapter.named_parameters()
                }
            state: dict[int, dict[str, Tensor]] = {}
            for key, x in tensors.items():
                if key.startswith("optimizer."):
                    _, index, name = key.split(".")
                    state.setdefault(int(index), {})[name] = x
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
            version, inner, gauss = facts["order"]
            self.order.setstate((version, tuple(inner), gauss))
            self.epoch, self.step, self.objective.budget = (
                facts["epoch"],
                facts["step"],
                facts["budget"],
            )
            self.first_budget = facts["first_budget"]
            self.best_loss, self.best_epoch = facts["best_loss"], facts["best_epoch"]
            self.epochs_without_gain = facts["epochs_without_gain"]
            self.started = time.monotonic() - facts["seconds"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PastoError(
                f"the checkpoint does not fit this training ({error})",
                "Train again from the recipe.",
            ) from None

    def _tell(
        self,
        epoch: int,
        reports: list[tuple[float, LossReport]],
        lr: float,
        validation: bool = False,
    ) -> float:
        def mean(pick: Callable[[LossReport], dict[str, float]]) -> dict[str, float]:
            return {
                key: sum(share * pick(r).get(key, math.nan) for share, r in reports)
                for key in pick(reports[0][1])
            }

        loss = sum(share * r.total.item() for share, r in reports)
        elapsed = time.monotonic() - self.started
        self.hooks.report(
            Step(
                epoch,
                self.step,
                self.total,
                loss,
                mean(lambda r: r.parts),
                mean(lambda r: r.diagnostics),
                lr,
                elapsed,
                validation,
            )
        )
        return loss


def _not_finite(problem: str, found: LossReport, batch: Sequence[TokenPair]) -> NotFinite:
    return NotFinite(
        f"{problem}: {found.parts}", "Lower training.lr or raise training.constraint_ramp", batch
    )
