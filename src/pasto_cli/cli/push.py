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
    base_model: Annotated[
        str | None,
        typer.Option(
            help="What the base is on the Hub, where it was trained on a folder or file.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; upload nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Upload adapter/ with a card made from the run's own facts.

    Examples:
      pasto push user/gemma-3-1b-honesty --dry-run

      pasto push user/gemma-3-1b-honesty --private

      pasto push user/dial -a runs/latest --base-model google/gemma-3-1b-it
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import publish as workflow

    pushed = workflow.push_adapter(
        adapter, repo, Screen(), private=private, dry_run=dry_run, base_model=base_model
    )
    if json:
        print_json(
            {
                "repo": repo,
                "files": pushed.files,
                "address": pushed.address,
                "card": pushed.card,
            }
        )
        return
    if dry_run:
        print_line(pushed.card)
        print_line(f"would upload to {repo}:")
    for name, size in pushed.files.items():
        print_line(f"  {name}  {size / 1e6:.2f} MB")
    if pushed.address:
        print_line(f"published: {pushed.address}")
