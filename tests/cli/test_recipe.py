"""`pasto recipe`."""

from pasto_cli.core.recipe.load import load_recipe
from pasto_cli.core.recipe.schema import Recipe
from tests.support.terminal import ROOT, strict


def test_recipe_schema(pasto):
    schema = strict(pasto("recipe", "--schema").out)
    assert set(schema["properties"]) == set(Recipe.model_fields)


def test_recipe_prints_yaml_that_loads_again(pasto, tmp_path):
    said = pasto(
        "recipe",
        ROOT / "recipes" / "honesty" / "smollm2-135m.yaml",
        "--set",
        "adapter.rank=32",
        "--set",
        "losses=original",
    )
    assert said.code == 0 and said.err == ""
    (tmp_path / "whole.yaml").write_text(said.out)
    again = load_recipe(tmp_path / "whole.yaml")
    assert again == load_recipe(
        ROOT / "recipes" / "honesty" / "smollm2-135m.yaml", ["adapter.rank=32", "losses=original"]
    )
    assert again.adapter.rank == 32 and again.losses.neutral is None
    assert pasto("recipe", "whole.yaml").out == said.out
