"""`pasto verify`: is this adapter whole, and is this its base?"""

from typing import Annotated

import typer

from pasto_cli.cli import options


def verify(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="Run folder, adapter folder or Hub id. Default: the latest run.",
            show_default=False,
        ),
    ] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Compare an adapter and its base with what was stored when it was made.

    Ends with exit code 1 on any difference.

    Examples:
      pasto verify runs/latest

      pasto verify user/gemma-3-1b-honesty --json
    """
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import verify as workflow

    found = workflow.verify(adapter, Screen(), options.load_options(quantization, device))
    if json:
        print_json(found._asdict() | {"folder": str(found.folder)})
        return
    tensors = "the file that was written" if found.hashed else "no hash was stored with them"
    same = (
        "byte for byte"
        if found.same_bytes
        else f"by {found.evidence} only (another precision or quantisation)"
    )
    differences = ", ".join(
        f"{float(c):+g}: {d:.1e}" if float(c) else f"0: {d:.1e}"
        for c, d in found.differences.items()
    )
    verdict = {True: "passed", False: "FAILED when it was made", None: "none"}[found.certified]
    print_line(f"adapter: {found.folder}")
    print_line(
        f"tensors: {tensors}; {found.modules} modules, finite, shapes and names as they should be"
    )
    print_line(
        f"base: {found.base}, the {found.modules} adapted weights are those that it was made for "
        f"{same}"
    )
    print_line(f"reference logits: largest difference {differences}")
    print_line(f"certificate: {verdict}")
