"""Several trainings of one adapter, and the dial that is their mean.

    Theta = mean over members of Theta_m        delta = mean over members of delta_m

What a dial does beside its axis (how far it moves answers to questions of fact, whether it leans to
Yes) is to a good part a matter of its initial weights and of the order of its pairs: members
differ in it, and their mean has less of it. What they share, the axis, stays. A mean of weights is
one adapter of the same size (model soups, arXiv 2203.05482); members share directions, split and
loss subspace, and Theta - Theta^T is skew-symmetric for a mean as for each, so that every law of a
rotation holds.
"""

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from pasto_cli.core.recipe.schema import AdapterSpec, TrainingSpec
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.core.steering.cayley import CayleyAdapter

Weights = dict[str, Tensor]
"""Trained tensors of an adapter by name."""


class Members:
    """The members that have ended, and the start of the next one.

    Args:
        adapter: What is trained, with the first member's initial weights.
        start: What initial weights are drawn from.
        spec: How many members, and the seed.
    """

    def __init__(self, adapter: Adapter, start: AdapterSpec, spec: TrainingSpec) -> None:
        self.adapter, self.start = adapter, start
        self.count, self.seed = spec.members, spec.seed
        self.present = 0
        """Number of the member that is being trained, from 0."""
        self.ended: list[Weights] = []
        self.averaged = False
        """Whether the adapter holds the mean of all."""

    @property
    def name(self) -> str:
        """What the adapter holds, for who watches; empty where there is one member."""
        if self.count == 1:
            return ""
        if self.averaged:
            return f"mean of {self.count} members"
        return f"member {self.present + 1} of {self.count}"

    @property
    def last(self) -> bool:
        """Whether the present member has none after it."""
        return self.present + 1 == self.count

    @torch.no_grad()
    def next(self, found: Weights) -> None:
        """Keep what the present member found, and give the adapter the next one's start."""
        assert isinstance(self.adapter, CayleyAdapter)  # a recipe with another kind is refused
        self.ended.append(found)
        self.present += 1
        draw = random.Random(f"{self.seed}/member/{self.present}").getrandbits(62)
        fresh = dict(self.adapter.fresh(self.start, draw).named_parameters())
        for name, parameter in self.adapter.named_parameters():
            parameter.copy_(fresh[name])

    def mean_with(self, best: Weights | None) -> Weights | None:
        """Mean of the ended members and the present one's best; None where there is none."""
        each = [*self.ended, *([best] if best is not None else [])]
        if len(each) < 2:
            return each[0] if each else None
        return {name: torch.stack([x[name] for x in each]).mean(0) for name in each[0]}

    def take_mean(self, best: Weights) -> Weights | None:
        """The mean of all, which is what training is about from now on."""
        mean = self.mean_with(best)
        self.ended.clear()  # it is in the mean now
        self.averaged = True
        return mean

    # -- in a checkpoint

    def tensors(self) -> Weights:
        """What ended members leave in a snapshot: `ended.<member>.<name>`."""
        return {
            f"ended.{number}.{name}": x
            for number, weights in enumerate(self.ended)
            for name, x in weights.items()
        }

    def restore(self, present: int, tensors: Mapping[str, Tensor]) -> None:
        """Take up the present member's number and the ended members of a snapshot.

        Raises:
            KeyError: If a tensor is missing.
        """
        parameters = dict(self.adapter.named_parameters())
        self.present = present
        self.ended = [
            {name: tensors[f"ended.{m}.{name}"].to(p.device) for name, p in parameters.items()}
            for m in range(present)
        ]
