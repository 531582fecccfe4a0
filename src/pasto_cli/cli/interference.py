"""`pasto interference`: what dials that are turned together do to each other."""

from typing import Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options


def interference(
    adapters: Annotated[
        list[str], typer.Argument(help="Two or more: NAME:COEFFICIENT (1 where none is given).")
    ],
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Measure how much dials move each other's certificates.

    The strength of each is read on its own held-out pairs: alone, of the others, and together.

    Examples:
      pasto interference runs/honest:+1 runs/cheerful:-0.5
    """
    if len(adapters) < 2:
        raise PastoError(
            "interference needs two adapters or more",
            "For instance: pasto interference runs/a:+1 runs/b:-0.5",
        )
    from rich.table import Table

    from pasto_cli.base.format import format_estimate
    from pasto_cli.cli.console import Screen, out, print_json
    from pasto_cli.workflows import interference as workflow
    from pasto_cli.workflows.dials import open_set

    screen = Screen()
    load_options = options.load_options(quantization, device, no_verify)
    found = workflow.interference(open_set(adapters, screen, load_options), screen)
    if json:
        kinds = ("alone", "others", "together")
        print_json(
            [
                row._asdict() | {kind: getattr(row, kind).model_dump() for kind in kinds}
                for row in found
            ]
        )
        return
    table = Table(
        title="strength on each dial's own held-out pairs, its prompt-equivalents [95 %]",
        title_justify="left",
    )
    for column in ("dial", "coefficient", "alone", "the others alone", "together", "n"):
        table.add_column(column, justify="left" if column == "dial" else "right", overflow="fold")
    for row in found:
        each = [format_estimate(e) for e in (row.alone, row.others, row.together)]
        table.add_row(row.name, f"{row.coefficient:+g}", *each, str(row.alone.n))
    out.print(table)
