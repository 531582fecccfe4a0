"""What an adapter is compared with, as steerers on the same items in the same table.

prompt              the persona sentence before each user message
engineered-prompt   a careful paragraph around it
control-vector      first principal component of chosen - rejected states per layer, added from
                    the middle layer on (representation engineering, arXiv 2310.01405, as the
                    package repeng does it)
mean-diff           mean of chosen - rejected states, added at one layer (Contrastive Activation
                    Addition, arXiv 2312.06681)
random-rotation     the adapter's own modules, directions and angles with a random rotation (of the
                    kind lora a random change of the same size): what is left when training is
                    taken away
"""

from typing import NamedTuple

from pasto_cli.core.models.activations import Activations
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.adapter import Adapter
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
    return AdapterSteerer(inputs.adapter.untrained(inputs.seed), lm)
