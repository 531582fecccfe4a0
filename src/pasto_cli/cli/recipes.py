"""`pasto recipes`: recipes that ship with pasto, listed, shown and copied."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.base.shell import pasto
from pasto_cli.cli import options

app = typer.Typer(help="Recipes that ship with pasto.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="As pasto recipes ls says it.", show_default=False)]


@app.command("ls")
def ls(json: options.Json = False) -> None:
    """List the recipes that ship with pasto.

    Examples:
      pasto recipes ls

      pasto recipes ls --json
    """
    from pasto_cli.cli.console import out, print_json
    from pasto_cli.workflows.recipes import listing

    found = listing()
    if json:
        print_json([recipe._asdict() for recipe in found])
        return
    width = max((len(recipe.name) for recipe in found), default=0)
    for recipe in found:
        line = f"{recipe.name:<{width}}  {recipe.description}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("show")
def show(name: Name) -> None:
    """Print a recipe as it is written. With every default: pasto recipe NAME.

    Examples:
      pasto recipes show quickstart
    """
    from pasto_cli.base import bundled
    from pasto_cli.cli.console import print_text

    print_text(bundled.recipe_text(name))


@app.command("cp")
def cp(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder to write to. Default: here.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
) -> None:
    """Copy a recipe into a file of your own.

    Examples:
      pasto recipes cp quickstart

      pasto recipes cp honesty/gemma-3-1b-it --out honesty.yaml
    """
    from pasto_cli.cli import console
    from pasto_cli.workflows.recipes import copy

    path = copy(name, out, force)
    console.out.print(
        f"{path}; now: {pasto('train', path)}", highlight=False, markup=False, soft_wrap=True
    )
