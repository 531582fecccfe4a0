"""What an adapter is compared with, as steerers on the same items in the same table.

prompt              the persona sentence before each user message
engineered-prompt   a careful paragraph around it
control-vector      first principal component of chosen - rejected states per layer, added from
                    the middle layer on (representation engineering, arXiv 2310.01405, as the
                    package repeng does it)
mean-diff           mean of chosen - rejected states, added at one layer (Contrastive Activation
                    Addition, arXiv 2312.06681)
random-rotation     the adapter's own modules, directions and angles with a random rotation: what
                    is left when training is taken away
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from pasto_cli.core.models.activations import Activations
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.adapter import Adapter, Factors, Rotation, bounded_skew, largest_angle
from pasto_cli.core.steering.steerer import AdapterSteerer, PromptSteerer, Steerer, VectorSteerer
from pasto_cli.core.steering.vectors import mean_directions, pca_directions

BASELINES = ("prompt", "engineered-prompt", "control-vector", "mean-diff", "random-rotation")

ENGINEERED = (
    "{persona} This matters in every answer that you give here, also where nobody asks about it "
    "and where it costs something. "
    "Before you answer, think about what such a person would do and say, and about what they would "
    "never do. Then answer as "
    "they would, in your own words, without mentioning this instruction."
)
LARGEST_ANGLE = 179.0
"""Degrees that a random rotation is asked for at most: the Cayley transform only approaches 180."""


class BaselineInputs(NamedTuple):
    """What the baselines are made from: the same personas and pairs that the adapter had."""

    personas: tuple[str, str]
    """One filled template of each persona: positive, negative."""
    states: Activations
    """States of the clean model at the last token of pairs."""
    adapter: Adapter
    """The trained one, for random-rotation."""
    depth: int
    """Layers before the loss depth, where mean-diff is added."""
    seed: int
    """Seed of the adapter's training, for random-rotation."""


def build_baseline(name: str, lm: LoadedModel, inputs: BaselineInputs) -> Steerer:
    """A baseline by name.

    Args:
        name: One of `BASELINES`.
        lm: The base model.
        inputs: What it is made from.
    """
    if name == "prompt":
        return PromptSteerer(*inputs.personas)
    if name == "engineered-prompt":
        return PromptSteerer(*(ENGINEERED.format(persona=p) for p in inputs.personas))
    if name == "control-vector":
        half = len(lm.layers) // 2
        directions = pca_directions(inputs.states.as_reported())  # what repeng reads
        return VectorSteerer(lm, {i: directions[i] for i in range(half, len(lm.layers))})
    if name == "mean-diff":
        # Added to the output of the last layer before the loss depth: what training looks at.
        layer = inputs.depth - 1
        return VectorSteerer(lm, {layer: mean_directions(inputs.states.hidden)[layer]})
    assert name == "random-rotation", name
    return AdapterSteerer(random_rotation(inputs.adapter, inputs.seed), lm)


def random_rotation(adapter: Adapter, seed: int) -> Adapter:
    """The same modules and directions, each turned at random by its own largest angle; delta 0."""
    # Not the seed itself: the adapter was drawn from it, and the first module would start from the
    # very same numbers.
    generator = torch.Generator().manual_seed(seed + 1_000_003)

    def angle(theta: torch.Tensor) -> float:
        return largest_angle(bounded_skew(theta, adapter.bound, adapter.max_angle))

    rotations: dict[str, Rotation] = {}
    for path, trained in adapter.items():
        theta = trained.theta.detach()  # (rank, rank)
        noise = torch.randn(theta.shape, generator=generator).to(theta)

        wanted = min(angle(theta), LARGEST_ANGLE)
        size = _bisect(lambda s, noise=noise: angle(noise * s), wanted)
        factors = Factors(trained.u, trained.s, trained.v)
        rotations[path] = Rotation(factors, noise * size, torch.zeros_like(trained.delta))
    return Adapter(rotations, adapter.bound, adapter.max_angle).requires_grad_(False)


def _bisect(increasing: Callable[[float], float], wanted: float) -> float:
    """The smallest size at which an increasing function reaches a value, to 40 halvings."""
    low, high = 0.0, 1e-3
    # The bound saturates: past a size of 1000 no more angle is to be had.
    while increasing(high) < wanted and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < wanted else (low, middle)
    return high
