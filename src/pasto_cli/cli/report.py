"""`pasto report`: one page with figures of what a run left."""

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
            help="File to write. Default: report.html in the run's folder.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a self-contained HTML report: dose-response, flips, values, side effects, training,
    texts, recipe and hashes.

    It shows what `pasto eval` has measured so far.

    Examples:
      pasto report

      pasto report runs/latest --samples 0 --out report.html
    """
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.cli.console import out as stdout
    from pasto_cli.workflows import report

    path = report.write_report(run, samples, out, Screen())
    if json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
        return
    stdout.print(
        f"report: {path} ({path.stat().st_size / 1e3:.0f} kB)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
