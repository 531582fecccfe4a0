"""Recipes that earlier versions of pasto stored: run folders' recipe.yaml, pasto.json of format 1.

What a user writes must have today's keys, and is told of a renamed one; what pasto itself has
written before goes on to load. A key that is renamed gets one line in `RENAMED`, and nothing else.
"""

from collections.abc import Mapping
from typing import Any, cast

RENAMED = {"adapter.calibration_pairs": "activation_pairs"}
"""Section and key of old -> today's key in that section."""


def upgrade_recipe(stored: Any) -> Any:
    """A stored recipe with today's keys; what is no recipe is left for validation to refuse."""
    if not isinstance(stored, dict):
        return stored
    recipe = dict(cast("dict[str, Any]", stored))
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        keys = recipe.get(section)
        if isinstance(keys, dict):
            recipe[section] = _with_name(cast("dict[str, Any]", keys), key, new)
    return recipe


def _with_name(keys: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The keys in their order, with one of them renamed."""
    if new in keys:  # no version wrote both: the old one is a mistake, which validation names
        return dict(keys)
    return {new if key == old else key: value for key, value in keys.items()}
