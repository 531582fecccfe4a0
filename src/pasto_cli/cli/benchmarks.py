"""`pasto benchmarks`: what can be measured."""

from typing import Annotated

import typer

from pasto_cli.cli import options


def benchmarks(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Local folder with the DailyDilemmas files: counts them too.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the benchmarks with n, licence and source.

    A .yaml or .jsonl file of your own runs by its path.

    Examples:
      pasto benchmarks

      pasto benchmarks --json
    """
    from pasto_cli.cli.console import out, print_json, print_line
    from pasto_cli.core.evaluation.benchmarks import listing

    found = listing(data)
    if json:
        print_json([entry._asdict() for entry in found])
        return
    for entry in found:
        out.print(entry.name, style="bold", highlight=False, markup=False)
        for key in ("title", "n", "licence", "source"):
            print_line(f"  {key}: {getattr(entry, key)}")
    print_line(
        "or a file: pasto eval --benchmark FILE.yaml (or .jsonl); the format is in "
        "docs/benchmarks.md"
    )
