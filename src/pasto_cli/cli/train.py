"""`pasto train`: one adapter from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.cli import options
from pasto_cli.errors import PastoError

if TYPE_CHECKING:
    from pasto_cli.core.certificate import Certificate


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False)],
    set_: options.Set = None,
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    json: options.Json = False,
) -> None:
    """Train an adapter and certify it.

    The run's folder holds the resolved recipe, the pairs, history.jsonl and adapter/. Ctrl-C keeps the best weights so far.

    Examples:
      pasto train recipes/quickstart.yaml

      pasto train recipes/quickstart.yaml --set training.epochs=1 --set model.quantization=4bit
    """
    from pasto_cli.recipe_file import load_recipe

    resolved = load_recipe(recipe, set_ or [])
    from pasto_cli import workflows
    from pasto_cli.cli.output import Screen, print_json

    trained = workflows.train_recipe(resolved, Screen(), out)
    certificate = trained.certificate
    if json:
        print_json(
            {
                "run": str(trained.folder),
                "result": trained.result._asdict(),
                "certificate": certificate.model_dump(mode="json") if certificate else None,
            }
        )
    elif certificate:
        _show(certificate, trained.folder, trained.result.angle)
    if trained.result.interrupted:
        raise typer.Exit(130)
    if certificate and not certificate.passed:
        raise PastoError(
            f"the certificate failed: {certificate.reason}",
            f"{trained.folder}/adapter is saved and says so. Train longer (training.epochs), on more pairs (pairs.count), with "
            "stronger words, or look at history.jsonl for a term that never fell.",
        )


def _show(certificate: "Certificate", folder: Path, angle: float) -> None:
    from rich.table import Table

    from pasto_cli.cli.output import out
    from pasto_cli.evaluation.card import figure

    verdict = "passed" if certificate.passed else "FAILED"
    out.print(
        f"Certificate {verdict}: {certificate.num_suffixes} held-out openings under {certificate.num_neutral_prompts} held-out "
        f"neutral prompts, n = {certificate.strength['1'].n}",
        highlight=False,
    )
    table = Table()
    table.add_column("")
    table.add_column("strength in prompt-equivalents [95 %]", justify="right")
    table.add_row("coefficient +1", figure(certificate.strength["1"].model_dump()))
    table.add_row("coefficient -1", figure(certificate.strength["-1"].model_dump()))
    table.add_row("positive persona prompt", f"{certificate.persona_prompts['chosen']:+.2f}")
    table.add_row("negative persona prompt", f"{certificate.persona_prompts['rejected']:+.2f}")
    out.print(table)
    out.print(
        f"1 prompt-equivalent = {certificate.span_nats / 2:.3f} nats a token; largest rotation {angle:.1f} degrees",
        highlight=False,
    )
    out.print(f"adapter: {folder}/adapter", highlight=False, markup=False, soft_wrap=True)
