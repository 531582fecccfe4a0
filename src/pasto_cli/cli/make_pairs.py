"""`pasto make-pairs`: contrast pairs from two words."""

from collections import Counter
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.core.pairs.pairs import PairSet
    from pasto_cli.core.recipe.schema import PairsSpec


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
            help="Take words, suffixes and model from a recipe instead.", show_default=False
        ),
    ] = None,
    personas: Annotated[
        bool,
        typer.Option("--personas", help='The two are phrases as they stand: "a cheerful, joyful".'),
    ] = False,
    templates: Annotated[
        Path | None,
        typer.Option(
            help="File of persona templates with {persona}, one a line.", show_default=False
        ),
    ] = None,
    suffixes: Annotated[
        Path | None,
        typer.Option(help="File of openings of a reply, one a line.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub dataset to take openings from.", show_default=False)
    ] = None,
    column: Annotated[str, typer.Option(help="Its text column.")] = "text",
    count: Annotated[
        int | None, typer.Option(min=1, help="How many pairs; default 800.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the draw; default 0.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Check and measure the pairs with this model's tokenizer.", show_default=False
        ),
    ] = None,
    set_: options.Set = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("pairs.jsonl"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make contrast pairs from two words.

    Each pair is one opening of a reply under a prompt with the positive persona, one with the
    negative, and one with none.

    Examples:
      pasto make-pairs honest dishonest

      pasto make-pairs --personas "a cheerful, joyful" "a gloomy, miserable" --count 200
    """
    from pasto_cli.cli.console import print_json
    from pasto_cli.core.pairs import pairs as library
    from pasto_cli.core.recipe.load import load_recipe
    from pasto_cli.core.recipe.schema import ModelSpec

    if recipe is not None and (
        positive or negative or personas or templates or suffixes or dataset or model
    ):
        raise PastoError(
            "--recipe takes everything but --count and --seed from the recipe",
            "Use --set to change a key of it.",
        )
    if recipe is None and set_:
        raise PastoError("--set changes a recipe, and none is given", "Add --recipe FILE.")
    if suffixes and dataset:
        raise PastoError(
            "--suffixes and --dataset are two sources of openings", "Give one of them."
        )
    if recipe is not None:
        whole = load_recipe(recipe, set_ or [])
        spec, model_spec = whole.pairs, whole.model
        changes = {k: v for k, v in {"count": count, "seed": seed}.items() if v is not None}
        spec = spec.model_copy(update=changes)
    else:
        if positive is None or negative is None:
            raise PastoError(
                "two words are needed", "For instance: pasto make-pairs honest dishonest"
            )
        spec = _spec(
            (positive, negative), personas, templates, suffixes, dataset, column, count, seed
        )
        model_spec = ModelSpec(source=model) if model else None
    if out.exists() and not force:
        raise PastoError(
            f"{out} exists",
            f"Give --force to replace it, or --out for another file (pasto train can use it: "
            f"pairs.file: {out}).",
        )
    made = library.make_pairs(spec)
    kept, dropped, lengths, unit = _measure(made, model_spec)
    library.write_pairs(kept, out)
    sources = Counter(p.source for p in kept)
    if json:
        print_json(
            {
                "file": str(out),
                "pairs": len(kept),
                "sources": sources,
                "dropped": dropped,
                "length_unit": unit,
                "lengths": lengths,
            }
        )
        return
    _show(kept, sources, dropped, lengths, unit, out)


def _spec(
    words: tuple[str, str],
    personas: bool,
    templates: Path | None,
    suffixes: Path | None,
    dataset: str | None,
    column: str,
    count: int | None,
    seed: int | None,
) -> "PairsSpec":
    from pydantic import ValidationError

    from pasto_cli.base import bundled
    from pasto_cli.core.recipe.schema import HubSuffixes, PairsSpec

    data: dict[str, object] = {"personas" if personas else "words": words}
    if templates:
        data["templates"] = tuple(bundled.read_lines(str(templates), "templates"))
    if suffixes:
        data["suffixes"] = str(suffixes)
    if dataset:
        data["suffixes"] = HubSuffixes(dataset=dataset, column=column)
    data |= {k: v for k, v in {"count": count, "seed": seed}.items() if v is not None}
    try:
        return PairsSpec.model_validate(data)
    except ValidationError as error:
        raise PastoError(
            "\n".join(e["msg"].removeprefix("Value error, ") for e in error.errors()),
            "A template holds {persona} once and no other braces; see pasto make-pairs --help.",
        ) from None


def _measure(
    made: "PairSet", model_spec: object
) -> tuple[list, dict[str, int], dict[str, list[int]], str]:
    """Pairs that the tokenizer takes, why others were dropped, and lengths by source: tokens, or
    words without a model."""
    from pasto_cli.core.recipe.schema import ModelSpec

    lengths: dict[str, list[int]] = {}
    if not isinstance(model_spec, ModelSpec):
        for pair in made.pairs:
            lengths.setdefault(pair.source, []).append(len(pair.suffix.split()))
        return made.pairs, dict(made.dropped), lengths, "words of the opening"
    from pasto_cli.cli.console import Screen
    from pasto_cli.core.models.chat import require_pairs, tokenise_pairs
    from pasto_cli.core.models.loading import load_chat

    screen = Screen()
    with screen.task(f"tokenizer of {model_spec.source}"):
        chat = load_chat(model_spec, screen.note)
    kept, dropped = [], Counter(made.dropped)
    for pair in made.pairs:
        tokens, why = tokenise_pairs([pair], chat)
        dropped += why
        if tokens:
            kept.append(pair)
            lengths.setdefault(pair.source, []).append(len(tokens[0].chosen))
    require_pairs(kept, dropped)
    return kept, dict(dropped), lengths, "tokens of the chosen side"


def _show(
    kept: list,
    sources: Counter,
    dropped: dict[str, int],
    lengths: dict[str, list[int]],
    unit: str,
    out: Path,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pasto_cli.cli import console

    preview = Table(show_lines=True)
    for name in ("chosen (+1)", "rejected (-1)", "neutral", "opening of the reply"):
        preview.add_column(name, overflow="fold")
    for pair in kept[:3]:
        preview.add_row(
            *map(escape, (pair.chosen, pair.rejected, pair.neutral, pair.suffix + " ..."))
        )
    console.out.print(preview)
    quality = Table()
    for name, side in (
        (f"source (lengths in {unit})", "left"),
        ("pairs", "right"),
        ("shortest", "right"),
        ("mean", "right"),
        ("longest", "right"),
    ):
        quality.add_column(name, justify=side)  # type: ignore[arg-type]
    for source, count in sorted(sources.items()):
        x = lengths[source]
        quality.add_row(escape(source), str(count), str(min(x)), f"{mean(x):.1f}", str(max(x)))
    console.out.print(quality)
    for why, count in dropped.items():
        console.out.print(f"dropped {count}: {escape(why)}", highlight=False)
    console.out.print(
        f"{len(kept)} pairs in {out}" + ("" if dropped else "; none dropped"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
