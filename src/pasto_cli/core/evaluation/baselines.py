"""What an adapter is compared with, as steerers on the same items in the same table."""

from collections.abc import Callable

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


def random_rotation(adapter: Adapter, seed: int) -> Adapter:
    """The same modules and directions, each turned by a random rotation of its own largest angle;
    delta 0."""
    # Not the seed itself: the adapter was drawn from it, and the first module would start from the
    # very same numbers.
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    rotations = {}
    for path, trained in adapter.items():
        theta = trained.theta.detach()
        wanted = largest_angle(bounded_skew(theta, adapter.bound, adapter.max_angle))
        noise = torch.randn(theta.shape, generator=generator).to(theta)
        scale = _bisect(
            lambda s, n=noise: largest_angle(bounded_skew(n * s, adapter.bound, adapter.max_angle)),
            min(wanted, 179.0),
        )
        factors = Factors(trained.u, trained.s, trained.v)
        rotations[path] = Rotation(factors, noise * scale, torch.zeros_like(trained.delta))
    return Adapter(rotations, adapter.bound, adapter.max_angle).requires_grad_(False)


def _bisect(increasing: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, 1e-3
    while increasing(high) < wanted and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < wanted else (low, middle)
    return high


def build_baseline(
    name: str,
    lm: LoadedModel,
    personas: tuple[str, str],
    states: Activations,
    adapter: Adapter,
    depth: int,
    seed: int,
) -> Steerer:
    """A baseline by name.

    Args:
        name: One of `BASELINES`.
        lm: The base model.
        personas: One filled template of each persona.
        states: Of the clean model at the last token of pairs.
        adapter: The trained one, for random-rotation.
        depth: Layers before the loss depth, where mean-diff is added.
        seed: For random-rotation.
    """
    if name == "prompt":
        return PromptSteerer(*personas)
    if name == "engineered-prompt":
        return PromptSteerer(*(ENGINEERED.format(persona=p) for p in personas))
    if name == "control-vector":
        half = len(lm.layers) // 2
        directions = pca_directions(states.as_reported())  # what repeng reads
        return VectorSteerer(lm, {i: directions[i] for i in range(half, len(lm.layers))})
    if name == "mean-diff":
        return VectorSteerer(lm, {depth - 1: mean_directions(states.hidden)[depth - 1]})
    assert name == "random-rotation", name
    return AdapterSteerer(random_rotation(adapter, seed), lm)
