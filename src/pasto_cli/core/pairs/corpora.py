"""Where suffixes and neutral prompts come from: bundled text, files, datasets on the Hub."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.recipe.schema import HubSuffixes


def load_suffixes(origin: str | HubSuffixes) -> list[tuple[str, str]]:
    """(source, suffix) tuples from the bundled corpus, a text file or a Hub dataset."""
    if isinstance(origin, HubSuffixes):
        return _hub_suffixes(origin)
    if origin == "bundled":
        return [
            (f.name.removesuffix(".txt"), s)
            for f in bundled.files("suffixes", ".txt")
            for s in bundled.lines(f"suffixes/{f.name}")
        ]
    return [(Path(origin).stem, line) for line in bundled.read_lines(origin, "suffixes")]


def load_neutral_prompts(origin: str) -> list[str]:
    """Prompts without a persona: bundled, or a user's file."""
    return (
        bundled.lines("neutral_prompts.txt")
        if origin == "bundled"
        else bundled.read_lines(origin, "neutral prompts")
    )


def clean_suffixes(
    suffixes: Iterable[tuple[str, str]],
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Strip outer white space and leave out what would spoil a pair: empty, closed, or seen
    before."""
    kept: dict[str, str] = {}
    dropped: dict[str, int] = defaultdict(int)
    for source, raw in suffixes:
        suffix = raw.strip()
        if not suffix:
            dropped["empty suffix"] += 1
        elif suffix[-1] in ".!?":
            dropped["closed sentence: the reply is already given"] += 1
        elif suffix in kept:
            dropped["duplicate suffix"] += 1
        else:
            kept[suffix] = source
    return [(source, suffix) for suffix, source in kept.items()], dict(dropped)


def _hub_suffixes(origin: HubSuffixes) -> list[tuple[str, str]]:
    import datasets

    try:
        rows = datasets.load_dataset(
            origin.dataset, origin.config, split=origin.split, revision=origin.revision
        )
    # the library raises anything from OSError to its own types; all mean "not to be had"
    except Exception as error:
        raise PastoError(
            f"dataset {origin.dataset!r} cannot be loaded ({type(error).__name__}: {error})",
            "Check its name, configuration and your connection, or use --suffixes FILE.",
        ) from None
    if origin.column not in rows.column_names:
        raise PastoError(
            f"dataset {origin.dataset!r} has no column {origin.column!r}",
            f"It has: {', '.join(rows.column_names)}.",
        )
    texts = (str(text).split() for text in rows[origin.column])
    return [(origin.dataset, " ".join(words[: origin.words]).rstrip(".!?")) for words in texts]
