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
    certificate is measured again at the new ends; where it fails, the exit code is 1.

    Examples:
      pasto calibrate

      pasto calibrate runs/latest --kl 0.5
    """
    from pasto_cli.base.errors import PastoError
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.cli.tables import show_certificate
    from pasto_cli.core.report.card import ends_line
    from pasto_cli.workflows import calibrate as workflow

    folder, found, certificate = workflow.calibrate(
        adapter, kl, Screen(), options.load_options(quantization, device, no_verify)
    )
    if json:
        verdict = certificate.model_dump(mode="json") if certificate else None
        record = {"adapter": str(folder), **found.model_dump(mode="json"), "certificate": verdict}
        print_json(record)
    else:
        print_line(ends_line(found))
        if certificate is not None:
            show_certificate(certificate)
        print_line(f"stored in {folder}/pasto.json")
    if certificate is not None and not certificate.passed:
        raise PastoError(
            f"the certificate failed at these ends: {certificate.reason}",
            "They are stored, and the adapter says so. Give another budget, such as --kl 1.",
        )
