"""The `pairs.answers` section of a recipe: pairs from what the model itself says. No torch."""

from typing import Annotated

from pydantic import Field

from pasto_cli.base.limits import LOWEST_TEMPERATURE
from pasto_cli.core.recipe.section import Count, Real, Section, Seed


class AnswersSpec(Section):
    """Preference pairs from what the model itself answers under each persona."""

    questions: str = "bundled"
    """`bundled`, or a text file with one question per line."""
    count: Count = 120
    """Questions asked, at most as many as there are."""
    samples: Count = 1
    """Answers to each question under each persona, each under a template drawn for it."""
    tokens: Count = 32
    """Longest answer, tokens."""
    temperature: Annotated[Real, Field(ge=LOWEST_TEMPERATURE, le=2.0)] = 0.8
    """Temperature of sampling; 0.7 to 1.0 is usual."""
    seed: Seed = 0
    """Seed of the choice of questions and templates, and of sampling."""
    held_out: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the questions that is validated on instead of trained on."""
