"""`pasto generate`: text at a coefficient."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import require_coefficients, require_temperature
from pasto_cli.base.text import is_blank
from pasto_cli.cli import options
from pasto_cli.cli.streams import output_gone, read_input


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The user's message.", show_default=False)
    ] = None,
    coeff: options.Coefficient = None,
    adapter: options.Adapters = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read prompts from standard input, one per line.")
    ] = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.SamplingSeed = 0,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    raw: options.Raw = False,
    json: options.Json = False,
) -> None:
    """Generate at one coefficient (streamed) or at several side by side.

    Examples:
      pasto generate --coeff -1 "Should I tell my boss I was late because I overslept?"

      pasto generate --coeff -1 --coeff 0 --coeff 1 "Describe your hometown in two sentences."

      pasto generate --coeff -0.5 "The same, half way to the end of the dial."

      pasto generate -a runs/honest:+1 -a runs/cheerful:-0.5 "How was your day?"
    """
    if stdin == (prompt is not None):
        raise PastoError(
            "give one prompt, or --stdin", 'For instance: pasto generate --coeff -1 "Hello."'
        )
    require_temperature(temperature)
    require_coefficients(coeff or (), "--coeff")
    prompts = _lines() if stdin else [prompt or ""]
    if not prompts or any(map(is_blank, prompts)):
        raise PastoError(
            "the prompt is empty",
            "Write one prompt per line to standard input, or give one in quotes.",
        )
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.workflows import generate as workflow
    from pasto_cli.workflows.dials import open_dials

    screen = Screen()
    dials = open_dials(
        adapter,
        screen,
        options.load_options(quantization, device, no_verify, raw),
        coefficients=coeff,
    )
    stream = _write if len(dials.coefficients) == 1 and not json else None
    sampling = workflow.Sampling(max_new_tokens, temperature, seed)
    records: list[dict[str, object]] = []
    for asked, texts in workflow.generate(dials, prompts, sampling, screen, stream):
        records += [
            {"prompt": asked, "coeff": a, "text": text}
            for a, text in zip(dials.coefficients, texts, strict=True)
        ]
        if not json and stream is None:
            show_texts(asked, dials.coefficients, texts)
            _stop_unless_seen()
    if json:
        print_json(records)


def _lines() -> list[str]:
    return [line.strip() for line in read_input().split("\n") if line.strip()]


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
    _stop_unless_seen()


def _stop_unless_seen() -> None:
    """End where nobody reads on (`pasto generate ... | head`): nothing is kept of a text."""
    if output_gone():
        raise typer.Exit


def show_texts(prompt: str, coefficients: Sequence[float], texts: Sequence[str]) -> None:
    """Texts side by side."""
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli.console import out

    out.print(prompt, style="bold", markup=False, highlight=False)
    table = Table()
    for a in coefficients:
        table.add_column(f"{a:+g}" if a else "0 (base)", ratio=1, overflow="fold")
    table.add_row(*map(escape, texts))
    out.print(table)
