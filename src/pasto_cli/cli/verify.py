"""`pasto verify`: is this adapter whole, and is this its base?"""

from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.workflows.verify_endpoint import Position


def verify(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="Run folder, adapter folder or Hub id. Default: the latest run.",
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of a server: are the positions that it serves those of this adapter?",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=COEFFICIENT of a model there, where its name does not say it; repeatable.",
            show_default=False,
        ),
    ] = None,
    coeff: Annotated[
        list[float] | None,
        typer.Option(
            "--coeff",
            "-c",
            help="Position to ask a pasto server for; repeatable. Default: -1, -0.5, 0.5 and 1.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=54, help="Prompts to ask it.")] = 20,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="PASTO_API_KEY", help="The key that it wants.", show_default=False),
    ] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Compare an adapter and its base with what was stored when it was made, or with a server.

    Ends with exit code 1 on any difference.

    Examples:
      pasto verify runs/latest

      pasto verify user/gemma-3-1b-honesty --json

      pasto verify runs/latest --endpoint http://localhost:8000
    """
    if model and coeff:
        raise PastoError("--model says its coefficient itself", "Leave --coeff out.")
    if endpoint is not None:
        _endpoint(endpoint, adapter, model, coeff, prompts, api_key, (quantization, device), json)
        return
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
    verdict = {True: "passed", False: "FAILED", None: "none"}[found.certified]
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


def _endpoint(
    url: str,
    adapter: str | None,
    models: list[str] | None,
    coefficients: list[float] | None,
    prompts: int,
    key: str | None,
    loading: tuple[str | None, str | None],
    json: bool,
) -> None:
    """Print what a server serves; end with an error where it is not this adapter."""
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.workflows import verify_endpoint as workflow
    from pasto_cli.workflows.serve import require_server

    require_server()
    found = workflow.verify_endpoint(
        url,
        adapter,
        Screen(),
        options.load_options(*loading),
        key=key,
        prompts=prompts,
        coefficients=coefficients or workflow.POSITIONS,
        named=workflow.named(models or ()),
    )
    complaint = found.complaint()
    each = [found.base, *found.positions]
    if json:
        positions = [one._asdict() for one in each]
        print_json({"url": found.url, "passed": complaint is None, "positions": positions})
    else:
        for one in each:
            print_line(_line(one))
    if complaint is not None:
        raise complaint


def _line(found: "Position") -> str:
    """One position: how many first tokens are pasto's, and by how much the others miss."""
    line = f"{found.coefficient:+g}  {found.name}: {found.equal} of {found.n} first tokens are "
    line += "pasto's"
    if found.margins:
        line += f" (the others {', '.join(f'{m:.3f}' for m in sorted(found.margins))} nats behind)"
    if found.logprob_difference is not None:
        line += f", log-probabilities within {found.logprob_difference:.1e}"
    if found.coefficient:
        line += f"; {found.moved_there} of {found.moved} moved from the base"
    return line
