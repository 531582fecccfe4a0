"""`pasto report`: one page with plots of what a run left."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options


def report(
    run: Annotated[
        str | None,
        typer.Argument(help="Folder of a run. Default: the latest run.", show_default=False),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=54, help="Prompts whose answers are shown; 0 loads no model.")
    ] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: report.html in the run's folder.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a self-contained HTML report of what `pasto eval` has measured so far.

    It shows dose-response, flips, values, side effects, training, texts, recipe and hashes.

    Examples:
      pasto report

      pasto report runs/latest --samples 0 --out report.html
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import report as workflow

    path = workflow.write_report(run, samples, out, Screen())
    size = path.stat().st_size
    if json:
        print_json({"report": str(path), "bytes": size})
        return
    print_line(f"report: {path} ({size / 1e3:.0f} kB)")
