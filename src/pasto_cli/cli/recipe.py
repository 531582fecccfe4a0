"""`pasto recipe`: check a recipe, show it resolved, print the schema."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options


def recipe(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="YAML recipe, or the name of one that ships with pasto.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    set_: options.Set = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes.")
    ] = False,
) -> None:
    """Check a recipe and print it with every default written out.

    Examples:
      pasto recipe quickstart --set adapter.rank=32

      pasto recipe --schema
    """
    from pasto_cli.cli.console import print_json, print_text
    from pasto_cli.cli.streams import fits_output
    from pasto_cli.core.evaluation.benchmarks import check_benchmark
    from pasto_cli.core.recipe.load import dump_recipe, load_recipe
    from pasto_cli.core.recipe.schema import Recipe

    if schema:
        print_json(Recipe.model_json_schema())
        return
    if file is None:
        raise PastoError("no recipe given", "pasto recipe quickstart, or pasto recipe --schema")
    resolved = load_recipe(file, set_ or [])
    check_benchmark(resolved.evaluation.benchmark)
    text = dump_recipe(resolved)
    print_text(text if fits_output(text) else dump_recipe(resolved, ascii_only=True))
