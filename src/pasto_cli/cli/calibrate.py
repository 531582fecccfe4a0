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
        float,
        typer.Option(help="Budget: KL to the base on neutral prompts, 95th percentile, nats."),
    ] = 1.0,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Find the coefficient of each sign at which the base model is disturbed by a stated amount,
    and store it.

    After that, --strength -100..100 % of `generate` and `export` means a share of that coefficient;
    --coeff stays raw.

    Examples:
      pasto calibrate

      pasto calibrate runs/latest --kl 0.5
    """
    from pasto_cli.base.format import format_estimate
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.cli.console import out as console
    from pasto_cli.workflows import calibrate

    folder, found = calibrate.calibrate(adapter, kl, quantization, device, not no_verify, Screen())
    if json:
        print_json({"adapter": str(folder), **found.model_dump(mode="json")})
        return
    for percent, key in (("+100 %", "1"), ("-100 %", "-1")):
        reached = found.reached[key]  # type: ignore[index]
        console.print(
            f"strength {percent}: coefficient {found.coefficients[key]:+.3g}, "  # type: ignore[index]
            f"KL p95 {format_estimate(reached, signed=False)} nats (n = {reached.n} "
            f"prompts)",
            highlight=False,
            markup=False,
        )
    console.print(f"stored in {folder}/pasto.json", highlight=False, markup=False, soft_wrap=True)
