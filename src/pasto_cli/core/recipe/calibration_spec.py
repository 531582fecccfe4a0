"""The `calibration` section of a recipe: what +1 and -1 of a finished dial stand for. No torch."""

from typing import Annotated

from pydantic import Field

from pasto_cli.core.recipe.section import Count, Fraction, Real, Section


class CalibrationSpec(Section):
    """The ends of the dial: as far as a budget of disturbance and readable text allow."""

    kl: Annotated[Real, Field(gt=0.0, lt=50.0)] = 1.0
    """Budget: KL to the base on neutral prompts, 95th percentile over tokens, nats."""
    prompts: Count = 12
    """Open prompts whose greedy answers at both ends are read; see the next keys."""
    tokens: Count = 64
    """Longest of those answers."""
    distinct: Fraction = 0.9
    """Their share of distinct words must be at least this part of the base's."""
    ended: Fraction = 0.5
    """As many of them must end by themselves as this part of the base's that do."""
    alike: Fraction = 0.5
    """The share of them that begin with the same words may exceed the base's by this much."""
    shrink: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    """Factor on an end whose text fails, until it does not."""
    step_limit: Count = 10
    """Times that an end is shrunk before pasto gives up on it."""
