"""`pasto push`: publish an adapter."""

from typing import Annotated

import typer

from pasto_cli.cli import options


def push(
    repo: Annotated[
        str, typer.Argument(help="user/name on the Hugging Face Hub.", show_default=False)
    ],
    adapter: options.Adapter = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; upload nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Upload adapter/ with a card made from the run's own facts.

    Examples:
      pasto push user/gemma-3-1b-honesty --dry-run

      pasto push user/gemma-3-1b-honesty --private
    """
    from pasto_cli.cli.console import Screen, out, print_json
    from pasto_cli.workflows import publish

    card, files, address = publish.push_adapter(adapter, repo, private, dry_run, Screen())
    if json:
        print_json({"repo": repo, "files": dict(files), "address": address, "card": card})
        return
    if dry_run:
        out.print(card, markup=False, highlight=False, soft_wrap=True)
        out.print(f"would upload to {repo}:", markup=False, highlight=False)
    for name, size in files:
        out.print(f"  {name}  {size / 1e6:.2f} MB", markup=False, highlight=False)
    if address:
        out.print(f"published: {address}", markup=False, highlight=False)
