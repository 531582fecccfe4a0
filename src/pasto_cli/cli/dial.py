"""`pasto dial`: one line from a model to a dial."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.shell import pasto
from pasto_cli.base.text import is_blank
from pasto_cli.cli import options
from pasto_cli.cli.tune import require_optuna

if TYPE_CHECKING:
    from pasto_cli.workflows.dial import Made


def dial(
    model: Annotated[
        str, typer.Argument(help="Hub id, local folder or GGUF file of the base model.")
    ],
    positive: Annotated[str, typer.Argument(help="What +1 means, such as honest.")],
    negative: Annotated[str, typer.Argument(help="What -1 means, such as dishonest.")],
    recipe: Annotated[
        Path,
        typer.Option(help="Recipe whose other settings are taken.", callback=options.expand),
    ] = Path("honesty/instruct"),
    set_: options.Set = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of pairs and training; default the recipe's.",
            callback=options.seed,
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="60 pairs, two epochs: a first look, not a result.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the dial is asked at -1, 0 and +1; by default the one of 16 everyday "
            "prompts at which its ends are furthest apart.",
            show_default=False,
        ),
    ] = None,
    out: options.Runs = Path("runs"),
    recipe_out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the recipe to this file, for pasto train.",
            callback=options.expand,
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Search for settings first, in so many trainings (pasto tune).",
            show_default=False,
        ),
    ] = None,
    force: options.Unscreened = False,
    json: options.Json = False,
) -> None:
    """Go from a model and two words to a dial: plan, pairs, training, ends, certificate, texts.

    What is done is a recipe, kept in the run's folder: pasto train on it makes the same dial again.

    Examples:
      pasto dial Qwen/Qwen2.5-0.5B-Instruct honest dishonest

      pasto dial Qwen/Qwen2.5-0.5B-Instruct cheerful gloomy --quick --recipe-out cheerful.yaml
    """
    from pasto_cli.workflows import dial as workflow

    if prompt is not None and is_blank(prompt):
        raise PastoError("the prompt is empty", "Write what the dial is asked, or leave it out.")
    wanted = workflow.Wanted(model, positive, negative, recipe, set_ or (), seed, quick)
    resolved = workflow.dial_recipe(wanted)
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.cli.train import record_of, require_certificates
    from pasto_cli.core.models.distributed import kept_by_the_first, rank

    if tune is not None:
        require_optuna()
        resolved = workflow.with_best_settings(resolved, tune, Screen(), out)
    with kept_by_the_first(out) as root:
        made = workflow.make_dial(
            resolved,
            Screen(),
            root,
            recipe_out=recipe_out if rank() == 0 else None,
            force=force,
            prompt=prompt,
        )
    if json:
        texts = zip(workflow.COEFFICIENTS, made.texts, strict=False)
        record = record_of(made.trained) | {
            "recipe": str(made.trained.folder / "recipe.yaml"),
            "plan": made.plan.model_dump(mode="json") if made.plan else None,
            "prompt": made.prompt,
            "texts": [{"coeff": a, "text": text} for a, text in texts],
        }
        print_json(record)
    else:
        _show(made, resolved.name)
    if made.trained.result.interrupted:
        raise typer.Exit(130)
    require_certificates([made.trained], 1)


def _show(made: "Made", name: str) -> None:
    """The certificate, three texts, and what to do with the dial."""
    from pasto_cli.cli.console import print_line
    from pasto_cli.cli.generate import show_texts
    from pasto_cli.cli.train import show_trained
    from pasto_cli.workflows.dial import COEFFICIENTS

    show_trained(made.trained)
    if not made.texts:
        return
    show_texts(made.prompt, COEFFICIENTS, made.texts)
    run = made.trained.folder
    named = f"{name}={run}"
    print_line(f"again: {pasto('train', run / 'recipe.yaml')}")
    print_line(
        f"now: {pasto('chat', named)}, {pasto('serve', named)}, "
        f"or {pasto('push', f'you/{name}', '-a', run)}"
    )
