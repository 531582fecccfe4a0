"""`pasto tune`: search over keys of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.shell import pasto
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.workflows.tune.study import Tuned, Wanted


def tune(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="YAML recipe, or the name of one that ships with pasto.", callback=options.expand
        ),
    ],
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Trials of the study in all. Default: the recipe's (tune.trials, 20).",
            show_default=False,
        ),
    ] = None,
    set_: options.Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study that was begun before.")
    ] = False,
    pick: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Print the run of this trial, and nothing else.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="postgresql://USER:PASSWORD@HOST/DATABASE, for several workers. Default: a file.",
            show_default=False,
        ),
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Help with a study that is in --storage.")
    ] = False,
    study: Annotated[
        str | None,
        typer.Option(help="Name of the study. Default: the recipe's.", show_default=False),
    ] = None,
    out: options.Runs = Path("runs"),
    force: options.Unscreened = False,
    json: options.Json = False,
) -> None:
    """Search for settings: many trainings, judged by strength and disturbance, no benchmark.

    The recipe's tune section says which keys, and between which values; trial 1 is the recipe
    itself. What no other trial beats in both numbers is trained again on other seeds. Each trial
    is a run; Ctrl-C and a kill lose at most what the checkpoint of one has not.

    Examples:
      pasto tune quickstart --trials 12

      pasto tune recipe.yaml --resume

      pasto eval $(pasto tune recipe.yaml --pick 7)
    """
    from pasto_cli.core.recipe.load import load_recipe

    resolved = load_recipe(recipe, set_ or [])
    require_optuna()
    from pasto_cli.cli.console import Screen, print_json, print_line
    from pasto_cli.core.models import distributed
    from pasto_cli.workflows.tune import study as workflow
    from pasto_cli.workflows.tune.together import follow

    wanted = workflow.Wanted(resolved, trials, resume, worker, storage, study, out, force)
    if pick is not None:
        found = workflow.pick(wanted, pick)
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            print_line(found.run or "")
        return
    if distributed.rank() > 0:
        follow(Screen())
        return
    tuned = workflow.tune(wanted, Screen())
    if json:
        print_json(tuned.record.model_dump(mode="json"))
    else:
        _show(tuned, recipe, set_ or (), wanted)
    if tuned.interrupted:
        raise typer.Exit(130)


def require_optuna() -> None:
    """See that the search has what it needs.

    Raises:
        PastoError: If it has not.
    """
    try:
        import optuna  # noqa: F401  (whether it is there)
    except ImportError:
        raise PastoError(
            "pasto tune needs Optuna", "Install it: pip install 'pasto-cli[tune]'"
        ) from None


def _show(tuned: "Tuned", recipe: Path, set_: Sequence[str], wanted: "Wanted") -> None:
    """What was found, and what to do with it."""
    from pasto_cli.cli.console import print_line
    from pasto_cli.cli.tables.study import show_study

    show_study(tuned.record)
    if tuned.page is not None:
        print_line(f"page: {tuned.page}")
    if tuned.interrupted:
        print_line(f"go on with: {_again(recipe, set_, wanted, '--resume', all_of_it=True)}")
    elif tuned.record.front:
        number = str(tuned.record.front[0].number)
        print_line(f"the run of a trial: {_again(recipe, set_, wanted, '--pick', number)}")


def _again(
    recipe: Path, set_: Sequence[str], wanted: "Wanted", *more: str, all_of_it: bool = False
) -> str:
    """The command that finds this study again, or goes on with all that it was asked."""
    words = [str(recipe)]
    for name, value in (("--study", wanted.study), ("--out", wanted.out)):
        if value is not None and value != Path("runs"):
            words += [name, str(value)]
    for setting in set_:  # the name of the study may be among them
        words += ["--set", setting]
    if all_of_it and wanted.trials is not None:
        words += ["--trials", str(wanted.trials)]
    if all_of_it and wanted.force:
        words.append("--force")
    # An address holds a password: who typed it knows it.
    return pasto("tune", *words, *more) + (" --storage ..." if wanted.storage else "")
