"""`pasto import`: an adapter of the published AntiPaSTO code."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options


def import_(
    source: Annotated[
        str,
        typer.Argument(help="Folder with adapter_config.json, or a Hub id.", show_default=False),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: folder, Hub id. Default: what the adapter names.", show_default=False
        ),
    ] = None,
    words: Annotated[
        tuple[str, str],
        typer.Option(
            help="Positive and negative word that it was trained on (the format does not say)."
        ),
    ] = ("honest", "dishonest"),
    quantization: options.Quantization = None,
    device: options.Device = None,
    out: Annotated[
        Path, typer.Option(help="Folder that holds the runs.", callback=options.expand)
    ] = Path("runs"),
    json: options.Json = False,
) -> None:
    """Make a run of an adapter that the published code saved.

    After that, eval, generate, export and push work on it.

    Examples:
      pasto import user/antipasto-honesty --base Qwen/Qwen3-0.6B

      pasto import ./adapter --base ./base --words calm anxious
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import import_ as workflow

    load_options = options.load_options(quantization, device)
    run = workflow.import_adapter(source, base, words, out, Screen(), load_options)
    if json:
        print_json({"run": str(run)})
        return
    print_line(f"adapter: {run}/adapter (no certificate: the format carries none)")
