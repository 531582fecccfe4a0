"""`pasto recipe`: check a recipe, show it resolved, print the schema."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options
from pasto_cli.errors import PastoError


def recipe(
    file: Annotated[Path | None, typer.Argument(help="YAML recipe.", show_default=False)] = None,
    set_: options.Set = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes.")] = False,
) -> None:
    """Check a recipe and print it with every default written out.

    Examples:
      pasto recipe recipes/quickstart.yaml --set adapter.rank=32

      pasto recipe --schema
    """
    from pasto_cli.recipe import Recipe
    from pasto_cli.recipe_file import dump_recipe, load_recipe

    if schema:
        from pasto_cli.cli.output import print_json

        print_json(Recipe.model_json_schema())
        return
    if file is None:
        raise PastoError("no recipe given", "pasto recipe recipes/quickstart.yaml, or pasto recipe --schema")
    typer.echo(dump_recipe(load_recipe(file, set_ or [])), nl=False)
