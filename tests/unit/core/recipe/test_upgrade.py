"""Recipes that earlier versions stored, and a user's with a key that is called otherwise now."""

from pathlib import Path

import pytest

from pasto_cli.core.recipe.load import RecipeError, load_recipe, load_stored_recipe
from pasto_cli.core.recipe.upgrade import upgrade_recipe

STORED = Path(__file__).parents[3] / "data" / "format1" / "recipe.yaml"
OLD, NEW = "calibration_pairs", "activation_pairs"


def test_a_stored_recipe_loads_and_a_users_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = STORED.read_text()
    path.write_text(text.replace(f"{OLD}: 64", f"{OLD}: 7"))
    assert load_stored_recipe(path).adapter.activation_pairs == 7
    line = 1 + text.splitlines().index(f"  {OLD}: 64")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"adapter.{OLD}=3"])
    hint = f"adapter.{OLD}: unknown key; it is called '{NEW}' now"
    assert caught.value.problems == [f"--set adapter.{OLD}=3: {hint}"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.problems == [f"{path}:{line}: {hint}"]


def test_only_what_was_renamed_is_upgraded(tmp_path):
    today = {"name": "x", "adapter": {"rank": 3, NEW: 4}}
    assert upgrade_recipe(today) == today
    old = {"adapter": {"rank": 3, OLD: 4, "bound": "spectral"}}
    assert list(upgrade_recipe(old)["adapter"]) == ["rank", NEW, "bound"]
    assert OLD in old["adapter"]  # what was given is not changed
    both = {"adapter": {OLD: 3, NEW: 4}}
    assert upgrade_recipe(both) == both  # nothing wrote this: validation names the mistake
    for odd in (None, [], {"adapter": None}, {"adapter": "x"}):
        assert upgrade_recipe(odd) == odd
    path = tmp_path / "recipe.yaml"
    path.write_text(STORED.read_text() + "nonsense: 1\n")
    with pytest.raises(RecipeError, match="nonsense: unknown key"):
        load_stored_recipe(path)
