"""From keys with ranges to the recipe of a trial."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.load import RecipeError, with_settings
from pasto_cli.core.recipe.schema import Recipe
from pasto_cli.core.recipe.tune_spec import Choice, Range, TuneSpec
from pasto_cli.core.records.study import Setting

if TYPE_CHECKING:
    import optuna

Space = Mapping[str, Range | list[Choice]]

DEFAULT: Space = {
    "training.lr": Range(low=1e-3, high=3e-2, log=True),
    "adapter.rank": [8, 16, 32, 64],
}
ANCHORS: Space = {"losses.anchor.weight": Range(low=3.0, high=300.0, log=True)}


def spec_of(recipe: Recipe) -> TuneSpec:
    """What a recipe searches over; a sensible space where it does not say."""
    spec = recipe.tune or TuneSpec()
    if spec.keys:
        return spec
    keys = dict(DEFAULT) | (dict(ANCHORS) if recipe.losses.anchor is not None else {})
    return spec.model_copy(update={"keys": keys})


def require_valid(recipe: Recipe, space: Space) -> None:
    """See that every end of every range makes a recipe.

    Raises:
        PastoError: With the first key whose values do not.
    """
    for key, values in space.items():
        ends = values if isinstance(values, list) else [values.low, values.high]
        for value in ends:
            try:
                trial_recipe(recipe, {key: value})
            except RecipeError as error:
                what = error.problems[0].partition(": ")[2]
                raise PastoError(
                    f"tune.keys: {key} = {value} makes no valid recipe: {what}",
                    "Narrow the range, or correct the key. Keys: pasto recipe --schema",
                ) from None


def trial_recipe(
    recipe: Recipe, settings: Mapping[str, Setting], name: str | None = None
) -> Recipe:
    """The recipe of one training.

    Raises:
        RecipeError: If the settings are not allowed together.
    """
    found = with_settings(recipe, settings)
    return found.model_copy(update={"tune": None, "name": name or recipe.name})


def own_values(recipe: Recipe, space: Space) -> dict[str, Setting]:
    """What the recipe itself says, where that lies in the space: the first trial is the recipe."""
    found: dict[str, Setting] = {}
    for key, values in space.items():
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if isinstance(values, list):
            inside = any(type(value) is type(v) and value == v for v in values)
        else:
            inside = isinstance(value, int | float) and values.low <= value <= values.high
        if inside:
            found[key] = value
    return found


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Setting]:
    """The values of a trial, as its study's sampler draws them."""
    found: dict[str, Setting] = {}
    for key, values in space.items():
        if isinstance(values, list):
            chosen: Any = trial.suggest_categorical(key, values)
            found[key] = chosen
        elif values.whole:
            found[key] = trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
        else:
            found[key] = trial.suggest_float(key, values.low, values.high, log=values.log)
    return found
