"""`pasto calibrate`: how far the dial may be turned."""

from typing import Annotated, Literal

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
        float,
        typer.Option(help="Budget: KL to the base on neutral prompts, 95th percentile, nats."),
    ] = 1.0,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Find the coefficients at a KL budget, one of each sign, and store them with the adapter.

    After that, --strength -100..100 % of `generate` and `export` means a share of that coefficient;
    --coeff stays raw.

    Examples:
      pasto calibrate

      pasto calibrate runs/latest --kl 0.5
    """
    from pasto_cli.base.format import format_estimate
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import calibrate as workflow

    folder, found = workflow.calibrate(
        adapter, kl, Screen(), options.load_options(quantization, device, no_verify)
    )
    if json:
        print_json({"adapter": str(folder), **found.model_dump(mode="json")})
        return
    signs: tuple[tuple[str, Literal["1", "-1"]], ...] = (("+100 %", "1"), ("-100 %", "-1"))
    for percent, key in signs:
        reached = found.reached[key]
        print_line(
            f"strength {percent}: coefficient {found.coefficients[key]:+.3g}, "
            f"KL p95 {format_estimate(reached, signed=False)} nats (n = {reached.n} prompts)"
        )
    print_line(f"stored in {folder}/pasto.json")
