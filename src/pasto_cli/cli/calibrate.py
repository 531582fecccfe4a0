"""`pasto calibrate`: how far the dial may be turned."""

from typing import Annotated

import typer

from pasto_cli.cli import options


def calibrate(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="Run folder or adapter folder. Default: the latest run.", show_default=False
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            help="Budget: KL to the base on neutral prompts, 95th percentile, nats. "
            "Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Find what +1 and -1 stand for, and store it with the adapter.

    Each end is the coefficient at a KL budget, lowered until greedy text still reads. Training does
    this at its end; here for another budget, another base quantisation or an older adapter. The
    certificate is measured again at the new ends.

    Examples:
      pasto calibrate

      pasto calibrate runs/latest --kl 0.5
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.core.report.card import ends_line
    from pasto_cli.workflows import calibrate as workflow

    folder, found = workflow.calibrate(
        adapter, kl, Screen(), options.load_options(quantization, device, no_verify)
    )
    if json:
        print_json({"adapter": str(folder), **found.model_dump(mode="json")})
        return
    print_line(ends_line(found))
    print_line(f"stored in {folder}/pasto.json")
