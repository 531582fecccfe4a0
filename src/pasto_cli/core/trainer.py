"""Training: one clock in optimiser steps, seeded order, best-by-validation weights kept, and Ctrl-C loses nothing."""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pasto_cli.core import parallel
from pasto_cli.core.adapter import Adapter
from pasto_cli.core.chat import TokenPair
from pasto_cli.core.objective import LossReport, Objective
from pasto_cli.errors import PastoError
from pasto_cli.recipe import TrainingSpec


class Step(NamedTuple):
    """What happened in one optimiser step, or (`validation`) after an epoch."""

    epoch: int
    step: int
    """Optimiser steps done."""
    total_steps: int
    loss: float
    parts: dict[str, float]
    diagnostics: dict[str, float]
    lr: float
    seconds: float
    """Since training began."""
    validation: bool = False

    def record(self) -> dict[str, object]:
        """One line of history.jsonl."""
        return {k: (round(v, 6) if isinstance(v, float) else v) for k, v in self._asdict().items()}


class TrainResult(NamedTuple):
    """How training ended; the adapter holds the best weights."""

    steps: int
    best_epoch: int
    best_loss: float
    interrupted: bool
    stopped_early: bool
    angle: float
    """True largest rotation angle at coefficient 1, degrees."""


def steps_per_epoch(num_pairs: int, spec: TrainingSpec) -> tuple[int, int]:
    """(batches, optimiser steps) of an epoch. Everything that counts steps asks here."""
    batches = (
        max(1, num_pairs // spec.batch_size) if num_pairs % spec.batch_size == 1 else math.ceil(num_pairs / spec.batch_size)
    )
    return batches, math.ceil(batches / spec.accumulation)


def make_batches(pairs: Sequence[TokenPair], batch_size: int, rng: random.Random | None) -> list[list[TokenPair]]:
    """Batches in a seeded order (None: as they stand); a last batch of one pair joins the one before it.

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

    Warm-up rises linearly (cosine) or by a half cosine from 1/25 (onecycle, arXiv 1708.07120); both fall by a half cosine.
    """
    warm = max(1, round(spec.warmup * total))
    start, end = (0.04, 1e-4) if spec.schedule == "onecycle" else (0.0, 0.0)
    if step < warm:
        share = (step + 1) / warm
        return start + (1 - start) * (0.5 - 0.5 * math.cos(math.pi * share)) if spec.schedule == "onecycle" else share
    share = (step + 1 - warm) / max(1, total - warm)
    return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * share))


def train(
    objective: Objective,
    adapter: Adapter,
    train_pairs: Sequence[TokenPair],
    validation_pairs: Sequence[TokenPair],
    spec: TrainingSpec,
    report: Callable[[Step], None] = lambda _: None,
    keep_best: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train an adapter in place; on return it holds the weights of the best validation loss.

    Args:
        objective: The loss.
        adapter: Fresh, on the model's device.
        train_pairs: Pairs to learn from.
        validation_pairs: Pairs that choose the epoch.
        spec: The recipe's training section.
        report: Called after each optimiser step and each validation.
        keep_best: Called when the adapter holds the best weights so far (to save them).

    Raises:
        PastoError: If the loss is not finite; the adapter then holds the best weights so far.
    """
    loop = _Loop(objective, adapter, validation_pairs, spec, report, keep_best, steps_per_epoch(len(train_pairs), spec))
    rng = random.Random(spec.seed)
    interrupted = stopped = False
    try:
        objective.remember([*train_pairs, *validation_pairs])
        for epoch in range(1, spec.epochs + 1):
            loop.epoch(epoch, make_batches(train_pairs, spec.batch_size, rng))
            last = epoch == spec.epochs
            if epoch % spec.validate_every == 0 or last:
                loop.validate(epoch)
            if loop.epochs_without_gain >= spec.patience:
                stopped = not last
                break
    except KeyboardInterrupt:
        interrupted = True
        if loop.best_state is None and loop.step:
            # No validation yet: what the last step left is the best there is.
            loop.take_best(0, math.nan)
    except _NotFinite as error:
        loop.restore_best()
        kept = f"the adapter of epoch {loop.best_epoch} was kept" if loop.best_state else "there is no adapter yet"
        raise PastoError(str(error), f"Lower training.lr or raise training.constraint_ramp; {kept}.") from None
    loop.restore_best()
    return TrainResult(loop.step, loop.best_epoch, loop.best_loss, interrupted, stopped, adapter.angle())


class _NotFinite(Exception):
    pass


class _Loop:
    """State of a training in progress."""

    def __init__(
        self,
        objective: Objective,
        adapter: Adapter,
        validation_pairs: Sequence[TokenPair],
        spec: TrainingSpec,
        report: Callable[[Step], None],
        keep_best: Callable[[], None],
        per_epoch: tuple[int, int],
    ) -> None:
        self.objective, self.adapter, self.spec, self.report, self.keep_best = objective, adapter, spec, report, keep_best
        self.validation = make_batches(validation_pairs, spec.batch_size, None)
        self.total = per_epoch[1] * spec.epochs
        self.optimizer = torch.optim.AdamW(adapter.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
        self.step = 0
        self.best_loss, self.best_epoch, self.epochs_without_gain = math.inf, 0, 0
        self.best_state: dict[str, Tensor] | None = None
        self.started = time.monotonic()

    def ramp(self) -> float:
        """Weight of constraints and focus: linear from 0 over `constraint_ramp` of the optimiser steps."""
        length = self.spec.constraint_ramp * self.total
        return min(1.0, self.step / length) if length else 1.0

    def epoch(self, epoch: int, batches: list[list[TokenPair]]) -> None:
        """One pass: an optimiser step after every `accumulation` batches and after the last."""
        for start in range(0, len(batches), self.spec.accumulation):
            group = batches[start : start + self.spec.accumulation]
            factor = lr_factor(self.step, self.total, self.spec)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = self.spec.lr * factor
            pairs = sum(map(len, group))
            reports = []
            for batch in group:
                result = self.objective(self.adapter, batch, self.ramp(), neutral=False)
                if not math.isfinite(result.total.item()):
                    raise _NotFinite(
                        f"the loss is {result.total.item()} at step {self.step + 1} (epoch {epoch}): {result.parts}"
                    )
                # The mean over all pairs of the group, however it was cut.
                if result.total.requires_grad:  # a process may have no pair of a small batch
                    (result.total * (len(batch) / pairs)).backward()
                reports.append((len(batch) / pairs, result))
            parallel.sum_gradients(self.adapter.parameters())
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.spec.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._tell(epoch, reports, self.spec.lr * factor)

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        """Loss at full weights on the validation pairs; the best weights are kept."""
        pairs = sum(map(len, self.validation))
        reports = [(len(batch) / pairs, self.objective(self.adapter, batch)) for batch in self.validation]
        loss = parallel.gather(self._tell(epoch, reports, 0.0, validation=True))[0]
        if not math.isfinite(loss):
            raise _NotFinite(f"the validation loss is {loss} after epoch {epoch}")
        if loss < self.best_loss:
            self.take_best(epoch, loss)
        else:
            self.epochs_without_gain += self.spec.validate_every

    def take_best(self, epoch: int, loss: float) -> None:
        """Keep the present weights as the best."""
        self.best_loss, self.best_epoch, self.epochs_without_gain = loss, epoch, 0
        self.best_state = {k: v.detach().clone() for k, v in self.adapter.named_parameters()}
        self.keep_best()

    def restore_best(self) -> None:
        """Put the best weights back."""
        if self.best_state is not None:
            with torch.no_grad():
                for name, parameter in self.adapter.named_parameters():
                    parameter.copy_(self.best_state[name])

    def _tell(self, epoch: int, reports: list[tuple[float, LossReport]], lr: float, validation: bool = False) -> float:
        def mean(pick: Callable[[LossReport], dict[str, float]]) -> dict[str, float]:
            return {key: sum(share * pick(r).get(key, math.nan) for share, r in reports) for key in pick(reports[0][1])}

        loss = sum(share * r.total.item() for share, r in reports)
        elapsed = time.monotonic() - self.started
        self.report(
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
