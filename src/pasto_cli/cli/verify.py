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
    """Compare an adapter and its base with what was stored when it was made; ends with 1 on any
    difference.

    Examples:
      pasto verify runs/latest

      pasto verify user/gemma-3-1b-honesty --json
    """
    from pasto_cli.cli.console import Screen, out, print_json
    from pasto_cli.workflows import verify as workflow

    found = workflow.verify(adapter, quantization, device, Screen())
    if json:
        print_json(found._asdict() | {"folder": str(found.folder)})
        return
    verdict = {True: "passed", False: "FAILED when it was made", None: "none"}[found.certified]
    each = ", ".join(
        f"{float(c):+g}: {d:.1e}" if float(c) else f"0: {d:.1e}"
        for c, d in found.differences.items()
    )
    for line in (
        f"adapter: {found.folder}",
        f"tensors: "
        f"{'the file that was written' if found.hashed else 'no hash was stored with them'}; "
        f"{found.modules} modules, "
        "finite, shapes and names as they should be",
        f"base: {found.base}, the {found.modules} adapted weights are those that it was made for "
        + (
            "byte for byte"
            if found.same_bytes
            else "by their directions only (another precision or quantisation)"
        ),
        f"reference logits: largest difference {each}",
        f"certificate: {verdict}",
    ):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
