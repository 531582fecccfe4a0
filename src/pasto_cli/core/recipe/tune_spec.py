"""The recipe's `tune` section: which keys a search may turn, and how far."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pasto_cli.base.limits import MOST
from pasto_cli.core.recipe.section import Count, Integer, Section, Seed, Signed

Choice = bool | int | float | str


class Range(Section):
    """Numbers from `low` to `high`; whole ones where both are written without a point."""

    low: Integer | Signed
    """Smallest value."""
    high: Integer | Signed
    """Largest value."""
    log: bool = False
    """Search on the scale of the logarithm: for what is multiplied rather than added."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must lie below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs a low above 0, not {self.low:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class TuneSpec(Section):
    """A search over keys of the recipe (`pasto tune`)."""

    keys: dict[str, Range | list[Choice]] = {}
    """Key of the recipe, such as training.lr -> a range (low, high, log), or a list of choices.
    Left out: learning rate, rank, and the weight of the anchors where there are any."""
    trials: Count = 20
    """Trainings of the search."""
    sampler: Literal["tpe", "nsga2"] = "tpe"
    """How Optuna chooses the next values: tree-structured Parzen estimator, or NSGA-II."""
    prune: bool = True
    """End a training whose strength on validation pairs lies below the median of the others' at the
    same point."""
    finalists: Integer = Field(default=3, ge=0, le=MOST)
    """Trials of the Pareto front that are trained again; 0 ends with the search."""
    seeds: Count = 3
    """Other seeds that each finalist is trained on."""
    seed: Seed = 0
    """Seed of the sampler."""

    @field_validator("keys")
    @classmethod
    def _choices(cls, keys: dict[str, Range | list[Choice]]) -> dict[str, Range | list[Choice]]:
        for key, values in keys.items():
            if key.split(".")[0] in ("tune", "name"):
                raise ValueError(f"{key} is nothing to search over; name a key such as training.lr")
            if isinstance(values, list) and len(set(map(repr, values))) < max(2, len(values)):
                raise ValueError(f"{key} needs at least two different choices")
        return keys
