"""`pasto make-pairs`: contrast pairs from two words."""

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import require_file_name
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.core.pairs.pairs import Pair
    from pasto_cli.core.recipe.schema import ModelSpec, PairsSpec
    from pasto_cli.core.records.screen import Screen as TemplateScreen
    from pasto_cli.workflows.make_pairs import Made


def make_pairs(
    positive: Annotated[
        str | None, typer.Argument(help="What +1 means, such as honest.", show_default=False)
    ] = None,
    negative: Annotated[
        str | None, typer.Argument(help="What -1 means, such as dishonest.", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Take words, openings and model from a recipe instead.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    personas: Annotated[
        bool,
        typer.Option("--personas", help='Take both phrases as they stand: "a cheerful, joyful".'),
    ] = False,
    templates: Annotated[
        Path | None,
        typer.Option(
            help="File of persona templates with {persona}, one per line.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    suffixes: Annotated[
        Path | None,
        typer.Option(
            help="File of openings of a reply, one per line.",
            show_default=False,
            callback=options.expand,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub dataset to take openings from.", show_default=False)
    ] = None,
    column: Annotated[str, typer.Option(help="Text column of the dataset.")] = "text",
    count: Annotated[
        int | None,
        typer.Option(
            min=1, callback=options.count, help="How many pairs; default 800.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            callback=options.seed, help="Seed of the draw; default 0.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Check and measure the pairs with this model's tokenizer.", show_default=False
        ),
    ] = None,
    screen: Annotated[
        str | None,
        typer.Option(
            help="Ask this model under every template, and keep those that it answers under.",
            show_default=False,
        ),
    ] = None,
    set_: options.Set = None,
    out: Annotated[Path, typer.Option(help="File to write.", callback=options.expand)] = Path(
        "pairs.jsonl"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make contrast pairs from two words.

    Each pair is one opening of a reply under three prompts: with the positive persona, with the
    negative one, and with none.

    Examples:
      pasto make-pairs honest dishonest

      pasto make-pairs --personas "a cheerful, joyful" "a gloomy, miserable" --count 200

      pasto make-pairs honest dishonest --screen Qwen/Qwen2.5-0.5B-Instruct
    """
    from pasto_cli.cli.console import Screen, print_json
    from pasto_cli.core.recipe.schema import ModelSpec
    from pasto_cli.workflows import make_pairs as workflow

    if suffixes and dataset:
        raise PastoError(
            "--suffixes and --dataset are two sources of openings", "Give one of them."
        )
    if recipe is not None:
        given = (positive, negative, personas, templates, suffixes, dataset, model)
        if any(given):
            raise PastoError(
                "--recipe takes everything but --count and --seed from the recipe",
                "Use --set to change a key of it.",
            )
        spec, model_spec = _from_recipe(recipe, set_ or [], count, seed)
        if screen:
            model_spec = model_spec.model_copy(update={"source": screen})
    else:
        if set_:
            raise PastoError("--set changes a recipe, and none is given", "Add --recipe FILE.")
        if positive is None or negative is None:
            raise PastoError(
                "two words are needed", "For instance: pasto make-pairs honest dishonest"
            )
        words = (positive, negative)
        spec = workflow.pairs_spec(
            workflow.Origin(words, personas, templates, suffixes, dataset, column, count, seed)
        )
        if screen and model:
            raise PastoError("--screen names the model already", "Leave --model out.")
        source = screen or model
        model_spec = ModelSpec(source=source) if source else None
    require_file_name(out)
    if out.exists() and not force:
        raise PastoError(
            f"{out} exists",
            f"Give --force to replace it, or --out for another file (pasto train can use it: "
            f"pairs.file: {out}).",
        )
    screened = None
    if screen and model_spec is not None:
        from pasto_cli.workflows.screen import screen_pairs

        spec, screened = screen_pairs(spec, model_spec, Screen())
    made = workflow.write_new_pairs(spec, model_spec, out, Screen())
    if json:
        print_json(_record(made, screened, out))
        return
    if screened:
        _show_screen(screened)
    _show_first(made.pairs[:3])
    _show_lengths(made)
    _show_end(made, out)


def _record(made: "Made", screened: "TemplateScreen | None", out: Path) -> dict[str, object]:
    found: dict[str, object] = {
        "file": str(out),
        "pairs": len(made.pairs),
        "sources": made.sources,
        "dropped": made.dropped,
        "length_unit": made.unit,
        "lengths": made.lengths,
    }
    return found | ({"screen": screened.model_dump(mode="json")} if screened else {})


def _from_recipe(
    recipe: Path, overrides: list[str], count: int | None, seed: int | None
) -> "tuple[PairsSpec, ModelSpec]":
    from pasto_cli.core.recipe.load import load_recipe

    whole = load_recipe(recipe, overrides)
    changes = {k: v for k, v in {"count": count, "seed": seed}.items() if v is not None}
    return whole.pairs.model_copy(update=changes), whole.model


def _show_screen(screen: "TemplateScreen") -> None:
    """Every template, what the model did under it, and whether it is kept."""
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli.console import out, print_line

    table = Table()
    table.add_column("template", overflow="fold")
    for column in ("separation", "refusal +1 / -1", "echo +1 / -1", "tokens +1 / -1"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="fold")
    for t in screen.templates:
        table.add_row(
            escape(t.template),
            f"{t.separation:.3f}",
            f"{t.chosen.refusal:.0%} / {t.rejected.refusal:.0%}",
            f"{t.chosen.echo:.0%} / {t.rejected.echo:.0%}",
            f"{t.chosen.length:.0f} / {t.rejected.length:.0f}",
            "kept" if t.kept else escape("; ".join(t.problems)),
        )
    out.print(table)
    print_line(
        f"{len(screen.kept)} of {len(screen.templates)} templates kept, on "
        f"{len(screen.prompts)} questions (separation in nats per token)"
    )


def _show_first(pairs: "list[Pair]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli.console import out

    table = Table(show_lines=True)
    for name in ("chosen (+1)", "rejected (-1)", "neutral", "opening of the reply"):
        table.add_column(name, overflow="fold")
    for pair in pairs:
        opening = f"{pair.suffix} ..."
        table.add_row(*map(escape, (pair.chosen, pair.rejected, pair.neutral, opening)))
    out.print(table)


def _show_lengths(made: "Made") -> None:
    """How long the pairs of each source are."""
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli.console import out

    table = Table()
    table.add_column(f"source (lengths in {made.unit})")
    for name in ("pairs", "shortest", "mean", "longest"):
        table.add_column(name, justify="right")
    for source, count in sorted(made.sources.items()):
        x = made.lengths[source]
        table.add_row(escape(source), str(count), str(min(x)), f"{mean(x):.1f}", str(max(x)))
    out.print(table)


def _show_end(made: "Made", file: Path) -> None:
    from pasto_cli.cli.console import print_line

    for why, count in made.dropped.items():
        print_line(f"dropped {count}: {why}")
    print_line(f"{len(made.pairs)} pairs in {file}" + ("" if made.dropped else "; none dropped"))
