"""Where suffixes and neutral prompts come from: bundled text, files, datasets on the Hub."""

import importlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.text import is_blank
from pasto_cli.core.pairs.sentences import is_closed, opened
from pasto_cli.core.recipe.schema import HubSuffixes


def load_suffixes(origin: str | HubSuffixes) -> list[tuple[str, str]]:
    """(source, suffix) tuples from the bundled corpus, a text file or a Hub dataset."""
    if isinstance(origin, HubSuffixes):
        return _hub_suffixes(origin)
    if origin != "bundled":
        return [(Path(origin).stem, line) for line in bundled.read_lines(origin, "suffixes")]
    return [
        (file.name.removesuffix(".txt"), line)
        for file in bundled.files("suffixes", ".txt")
        for line in bundled.lines(f"suffixes/{file.name}")
    ]


def load_neutral_prompts(origin: str) -> list[str]:
    """Prompts without a persona: bundled, or a user's file."""
    if origin == "bundled":
        return bundled.lines("neutral_prompts.txt")
    return bundled.read_lines(origin, "neutral prompts")


def clean_suffixes(
    suffixes: Iterable[tuple[str, str]],
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Suffixes without outer white space, and why others are left out: reason -> how many."""
    kept: dict[str, str] = {}
    dropped: dict[str, int] = defaultdict(int)
    for source, raw in suffixes:
        suffix = raw.strip()
        if is_blank(suffix):
            dropped["empty suffix"] += 1
        elif is_closed(suffix):
            dropped["closed sentence: the reply is already given"] += 1
        elif suffix in kept:
            dropped["duplicate suffix"] += 1
        else:
            kept[suffix] = source
    return [(source, suffix) for suffix, source in kept.items()], dict(dropped)


def _hub_suffixes(origin: HubSuffixes) -> list[tuple[str, str]]:
    datasets: Any = importlib.import_module("datasets")  # large, and without types
    try:
        rows = datasets.load_dataset(
            origin.dataset, origin.config, split=origin.split, revision=origin.revision
        )
    # The library raises anything from OSError to types of its own; all mean "not to be had".
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
    # A closed sentence would leave the reply nothing to go on with: see `clean_suffixes`.
    return [(origin.dataset, opened(" ".join(words[: origin.words]))) for words in texts]
