"""`pasto export`: a dial in the format of another engine."""

from pathlib import Path
from typing import Annotated

import typer

from pasto_cli.cli import options


def export(
    adapter: options.Adapters = None,
    coeff: Annotated[
        list[float] | None,
        typer.Option("--coeff", "-c", help="Coefficient; one export for each.", show_default=False),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="lora (PEFT), merged (whole model) or gguf-lora (llama.cpp)."
        ),
    ] = "lora",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the exports. Default: export/ in the run's folder.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace exports that are there.")] = False,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    raw: options.Raw = False,
    json: options.Json = False,
) -> None:
    """Write a dial for engines that know LoRA: exact, one export for each coefficient.

    Scaling the +1 export inside an engine is not the same as another coefficient (docs/serving.md).

    Examples:
      pasto export --coeff -1 --coeff 1

      pasto export --coeff -0.5 --format gguf-lora --out exports

      pasto export --coeff 1 --format merged

      pasto export -a runs/honest:+1 -a runs/cheerful:-0.5
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import export as workflow
    from pasto_cli.workflows.dials import open_dials

    workflow.check_export(format_, coeff or (), out)
    screen = Screen()
    dials = open_dials(
        adapter,
        screen,
        options.load_options(quantization, device, no_verify, raw),
        coefficients=coeff,
        default=(-1.0, 1.0),
    )
    found = workflow.export_dials(dials, format_, out, screen, force=force)
    if json:
        print_json([one._asdict() | {"path": str(one.path)} for one in found])
        return
    for one in found:
        line = f"{one.coefficient:+g}  {one.path}  {one.size / 1e6:.1f} MB"
        if one.difference is not None:
            line += f"  logits within {one.difference:.1e} of the dial's (largest {one.scale:.0f})"
        print_line(line)
