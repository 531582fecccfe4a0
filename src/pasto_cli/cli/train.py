"""`pasto train`: one adapter from a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.shell import pasto
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.workflows.train import Trained


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="YAML recipe, or the name of one that ships with pasto.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    set_: options.Set = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Train this many adapters, with training.seed counted up from the recipe's.",
        ),
    ] = 1,
    out: options.Runs = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: go on with a run that was killed or interrupted.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    force: options.Unscreened = False,
    json: options.Json = False,
) -> None:
    """Train an adapter, find its ends and certify it.

    Before training the model is asked under the recipe's templates (at most twelve), and it is said
    where it does not answer as both personas; pairs.screen: keep leaves those out.

    The run's folder holds the resolved recipe, the pairs, history.jsonl and adapter/. Ctrl-C keeps
    the best weights so far; a run that was interrupted or killed goes on with --resume and ends
    with the same adapter, on a CPU bit for bit.

    Examples:
      pasto train quickstart

      pasto train recipe.yaml --set training.epochs=1 --set model.quantization=4bit

      pasto train recipe.yaml --seeds 3

      pasto train --resume runs/20261122-101500-quickstart
    """
    if resume and (recipe or set_ or seeds > 1):
        raise PastoError("--resume takes the recipe from the run", "Give the run's folder alone.")
    if not recipe and not resume:
        raise typer.BadParameter("Missing argument: a recipe, or --resume with a run.")
    from pasto_cli.core.recipe.load import load_recipe

    resolved = load_recipe(recipe, set_ or []) if recipe else None  # before torch is loaded
    from pasto_cli.base.runs import followed
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.core.models.distributed import copied_by_the_others, kept_by_the_first
    from pasto_cli.workflows import train as workflow

    screen = Screen()
    found: list[Trained] = []
    if resume:
        with copied_by_the_others(followed(resume)) as run:
            found.append(workflow.resume_run(run, screen))
            if not json:
                show_trained(found[-1])
    with kept_by_the_first(out) as root:
        for one in workflow.with_seeds(resolved, seeds) if resolved else ():
            if seeds > 1:
                screen.note(f"training seed {one.training.seed} ({len(found) + 1} of {seeds})")
            found.append(workflow.train_recipe(one, screen, root, force=force))
            if not json:
                show_trained(found[-1])
            if found[-1].result.interrupted:
                break
    if json:
        records = [record_of(trained) for trained in found]
        print_json(records if seeds > 1 else records[0])
    elif seeds > 1:
        _show_seeds(found)
    if found[-1].result.interrupted:
        raise typer.Exit(130)
    require_certificates(found, seeds)


def require_certificates(found: "list[Trained]", seeds: int) -> None:
    """End with exit code 1 where a certificate failed."""
    failed = [
        (trained.folder, trained.certificate.reason)
        for trained in found
        if trained.certificate and not trained.certificate.passed
    ]
    if not failed:
        return
    folder, reason = failed[0]
    count = f" ({len(failed)} of {seeds} seeds failed)" if seeds > 1 else ""
    raise PastoError(
        f"the certificate failed: {reason}{count}",
        f"{folder}/adapter is saved and says so. Train longer (training.epochs), on more pairs "
        f"(pairs.count), with stronger words, or look at history.jsonl for a term that never fell.",
    )


def record_of(trained: "Trained") -> dict[str, Any]:
    """What --json prints of a training."""
    certificate, calibration = trained.certificate, trained.calibration
    return {
        "run": str(trained.folder),
        "result": trained.result._asdict(),
        "certificate": certificate.model_dump(mode="json") if certificate else None,
        "calibration": calibration.model_dump(mode="json") if calibration else None,
    }


def _show_seeds(found: "list[Trained]") -> None:
    """What certificates say over the seeds, and the command that measures them."""
    from pasto_cli.base.statistics import spread
    from pasto_cli.cli.console import print_line
    from pasto_cli.cli.tables import show_spread

    certificates = [trained.certificate for trained in found if trained.certificate]
    if len(certificates) > 1:
        ends = (("+1", "1"), ("-1", "-1"))
        figures = {
            f"strength at {end}": [c.strength[key] for c in certificates] for end, key in ends
        }
        # One recipe: either all of them were asked both ways or none was.
        both_ways = [c.opposites for c in certificates if c.opposites is not None]
        for end, key in ends if both_ways else ():
            figures[f"asked both ways, nats at {end}"] = [one[key] for one in both_ways]
        spreads = {name: spread([x.value for x in each]) for name, each in figures.items()}
        show_spread(spreads, len(certificates))
    measure = pasto("eval", *(trained.folder for trained in found))
    if len(found) > 1:
        print_line(f"measure each, and all turned at once: {measure} --together")
    else:  # interrupted in the first
        print_line(f"measure it: {measure}")


def show_trained(trained: "Trained") -> None:
    """The certificate; nothing for a training that was interrupted."""
    from pasto_cli.cli.console import print_line
    from pasto_cli.cli.tables import show_certificate
    from pasto_cli.core.report.card import anchor_lines, ends_line

    certificate = trained.certificate
    if certificate is None:
        return
    show_certificate(certificate)
    angle = trained.result.angle
    print_line(
        f"1 prompt-equivalent = {certificate.span_nats / 2:.3f} nats per token"
        + ("" if angle is None else f"; largest rotation {angle:.1f} degrees")
    )
    for line in anchor_lines(certificate).values():
        print_line(line)
    if trained.calibration is not None:
        print_line(ends_line(trained.calibration))
    print_line(f"adapter: {trained.folder}/adapter")
