"""`pasto pull`: an adapter from the Hub into a folder."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options


def pull(
    repo: Annotated[
        str, typer.Argument(help="user/name on the Hugging Face Hub.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the adapter. Default: the repository's name, here.", show_default=False
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
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.cli.console import out as console
    from pasto_cli.workflows import publish

    folder, commit, meta = publish.pull_adapter(repo, out, revision, force, Screen())
    if json:
        print_json(
            {"repo": repo, "folder": str(folder), "commit": commit, "base": meta.base.spec.source}
        )
        return
    console.print(
        f"adapter: {folder} (commit {commit[:12]}, for {meta.base.spec.source})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print(f"check it: pasto verify {folder}", highlight=False, markup=False, soft_wrap=True)
