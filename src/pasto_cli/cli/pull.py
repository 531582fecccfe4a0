"""`pasto pull`: an adapter from the Hub into a folder."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.base.shell import pasto
from pasto_cli.cli import options


def pull(
    repo: Annotated[
        str, typer.Argument(help="user/name on the Hugging Face Hub.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the adapter. Default: the repository's name, here.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False,
    json: options.Json = False,
) -> None:
    """Download an adapter; its base model is fetched when it is first used.

    Examples:
      pasto pull user/gemma-3-1b-honesty

      pasto pull user/gemma-3-1b-honesty --revision 0a1b2c3 --out adapters/honesty
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import publish as workflow

    folder, commit, meta = workflow.pull_adapter(repo, out, revision, Screen(), force=force)
    base = meta.base.spec.source
    if json:
        print_json({"repo": repo, "folder": str(folder), "commit": commit, "base": base})
        return
    print_line(f"adapter: {folder} (commit {commit[:12]}, for {base})")
    print_line(f"check it: {pasto('verify', folder)}")
