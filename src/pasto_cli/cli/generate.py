"""`pasto generate`: text at a coefficient."""

import sys
from typing import Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The user's message.", show_default=False)
    ] = None,
    coeff: options.Coefficient = None,
    strength: options.Strength = None,
    adapter: options.Adapters = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read prompts from standard input, one a line.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Generate at one coefficient (streamed) or at several side by side.

    Examples:
      pasto generate --coeff -1 "Should I tell my boss I was late because I overslept?"

      pasto generate --coeff -1 --coeff 0 --coeff 1 "Describe your hometown in two sentences."

      pasto generate --strength -50 "The same, half way to the calibrated limit."

      pasto generate -a runs/honest:+1 -a runs/cheerful:-0.5 "How was your day?"
    """
    if stdin == (prompt is not None):
        raise PastoError(
            "give one prompt, or --stdin", 'For instance: pasto generate --coeff -1 "Hello."'
        )
    prompts = _lines() if stdin else [prompt or ""]
    if not prompts or not all(text.strip() for text in prompts):
        raise PastoError(
            "the prompt is empty",
            "Write one prompt a line to standard input, or give one in quotes.",
        )
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.cli.dials import open_dials
    from pasto_cli.core.steering.generation import generate as run

    screen = Screen()
    dial = open_dials(adapter, coeff, strength, [1.0], screen, quantization, device, not no_verify)
    coefficients = dial.coefficients
    stream = _write if len(coefficients) == 1 and not json else None
    records = []
    for text in prompts:
        if stream:
            run(
                dial.lm, dial.steerer, text, coefficients, max_new_tokens, temperature, seed, stream
            )
            continue
        with screen.task(
            f"generating at {', '.join(f'{a:+g}' if a else '0' for a in coefficients)}"
        ):
            answers = run(
                dial.lm, dial.steerer, text, coefficients, max_new_tokens, temperature, seed
            )
        records += [
            {"prompt": text, "coeff": a, "text": answer}
            for a, answer in zip(coefficients, answers, strict=True)
        ]
        if not json:
            _show(text, coefficients, answers)
    if json:
        print_json(records)


def _lines() -> list[str]:
    try:
        return [line.strip() for line in sys.stdin if line.strip()]
    except UnicodeDecodeError:
        raise PastoError("standard input is not UTF-8", "Convert it to UTF-8 first.") from None


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _show(prompt: str, coefficients: list[float], answers: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli.console import out

    out.print(prompt, style="bold", markup=False, highlight=False)
    table = Table()
    for a in coefficients:
        table.add_column(f"{a:+g}" if a else "0 (base)", ratio=1, overflow="fold")
    table.add_row(*map(escape, answers))
    out.print(table)
