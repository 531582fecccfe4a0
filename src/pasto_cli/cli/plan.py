"""`pasto plan`: what a recipe will need."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options


def plan(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML recipe, or the name of one that ships with pasto.", callback=options.expand
        ),
    ],
    set_: options.Set = None,
    device_memory: Annotated[
        list[float] | None,
        typer.Option(
            "--device-memory",
            help="GiB of a device that is not here (a GPU, or the machine if model.device is cpu). "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what a recipe will need, before anything large is downloaded.

    Memory by phase here and on devices that you name, time, disk, download, and what would make it
    fit. Only the configuration, the tokenizer and the headers of the weights are read.

    Examples:
      pasto plan quickstart

      pasto plan honesty/gemma-3-12b-it --device-memory 24 --device-memory 80

      pasto plan recipe.yaml --set model.quantization=4bit --json
    """
    from pasto_cli.core.recipe.load import load_recipe, recipe_file

    resolved = load_recipe(recipe, set_ or [])
    if any(not 0 < gib < 1e5 for gib in device_memory or ()):
        raise PastoError("--device-memory is a number of GiB", "For instance: --device-memory 24")
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.workflows.plan import plan_recipe

    found = plan_recipe(resolved, Screen(), file=recipe_file(recipe), memories=device_memory or ())
    if json:
        print_json(found.model_dump(mode="json"))
        return
    from pasto_cli.cli.tables.plan import show_plan

    show_plan(found)
