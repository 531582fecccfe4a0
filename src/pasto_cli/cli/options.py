"""Options that several commands share, declared once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.limits import LARGEST_SEED, MOST
from pasto_cli.base.paths import expanded

if TYPE_CHECKING:
    from pasto_cli.workflows.dials import LoadOptions


def count(value: int | None) -> int | None:
    """Callback of a count: its upper limit, which would only crowd `--help`."""
    return _at_most(value, MOST)


def seed(value: int | None) -> int | None:
    """Callback of a seed: one that every generator takes."""
    return _at_most(value, LARGEST_SEED)


def _at_most(value: int | None, most: int) -> int | None:
    if value is not None and not 0 <= value <= most:
        raise typer.BadParameter(f"{value} is not in the range from 0 to {most}.")
    return value


def expand(path: Path | None) -> Path | None:
    """Callback of every option and argument that is a path: `~` as the shell would have put it.

    It does so for a word that begins with it; `--out=~/runs` arrives as it stands.
    """
    return None if path is None else expanded(path)


Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        "-a",
        help="Run folder, adapter folder or Hub id. Default: the latest run.",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        show_default=False,
        help="Run folder, adapter folder or Hub id; several as -a A:+1 -a B:-0.5. "
        "Default: the latest run.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Take coefficients as those of training, without the calibrated ends."
    ),
]
Coefficient = Annotated[
    list[float] | None,
    typer.Option(
        "--coeff",
        "-c",
        help="Coefficient; repeat it for texts side by side. Default: 1.",
        show_default=False,
    ),
]
Served = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ADAPTER",
        help="RUN, NAME=RUN or NAME=RUN:COEFFICIENT of each, all of one base. Default: the "
        "latest run.",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, callback=count, help="Longest answer, tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; 0.01 to 100.")]
SamplingSeed = Annotated[int, typer.Option(callback=seed, help="Seed of sampling.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.", callback=expand)]
Unscreened = Annotated[
    bool,
    typer.Option("--force", help="Train although no template passes the screen of personas."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        help="Load the base as none, 4bit or 8bit instead of as trained.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, mps, cuda, cuda:N or balanced.", show_default=False),
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Skip fingerprints and reference logits of the adapter.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a recipe key: --set training.epochs=3. Repeatable.",
        show_default=False,
    ),
]


def load_options(
    quantization: str | None, device: str | None, no_verify: bool = False, raw: bool = False
) -> "LoadOptions":
    """What --quantization, --device, --no-verify and --raw say together."""
    from pasto_cli.workflows.dials import LoadOptions  # needs torch, which --help must not load

    return LoadOptions(quantization, device, verify=not no_verify, raw=raw)
