"""`pasto make-pairs`: contrast pairs from two words, checked and measured by a tokenizer."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.core.pairs.pairs import Pair, PairSet, make_pairs, write_pairs
from pasto_cli.core.recipe.schema import HubSuffixes, ModelSpec, PairsSpec
from pasto_cli.workflows.progress import Watcher


@dataclass(frozen=True)
class Origin:
    """What pairs are made of, where no recipe says it. None takes a recipe's default."""

    words: tuple[str, str]
    """Positive and negative."""
    as_they_stand: bool = False
    """The two are whole personas: they get no article."""
    templates: Path | None = None
    """File of persona templates."""
    suffixes: Path | None = None
    """File of openings of a reply."""
    dataset: str | None = None
    """Hub dataset of openings."""
    column: str = "text"
    """Text column of that dataset."""
    count: int | None = None
    """How many pairs."""
    seed: int | None = None
    """Seed of the draw."""


class Made(NamedTuple):
    """Pairs that were written, and what they are like."""

    pairs: list[Pair]
    dropped: dict[str, int]
    """Reason -> how many."""
    lengths: dict[str, list[int]]
    """Source -> length of each pair."""
    unit: str
    """Unit of the lengths."""

    @property
    def sources(self) -> Counter[str]:
        """Source -> how many pairs."""
        return Counter(pair.source for pair in self.pairs)


def pairs_spec(origin: Origin) -> PairsSpec:
    """The `pairs` section of a recipe that says the same.

    Raises:
        PastoError: If a file cannot be read, or a template has no place for a persona.
    """
    data: dict[str, object] = {"personas" if origin.as_they_stand else "words": origin.words}
    if origin.templates:
        data["templates"] = tuple(bundled.read_lines(str(origin.templates), "templates"))
    if origin.suffixes:
        data["suffixes"] = str(origin.suffixes)
    if origin.dataset:
        data["suffixes"] = HubSuffixes(dataset=origin.dataset, column=origin.column)
    if origin.count is not None:
        data["count"] = origin.count
    if origin.seed is not None:
        data["seed"] = origin.seed
    try:
        return PairsSpec.model_validate(data)
    except ValidationError as error:
        about_words = any(set(e["loc"]) & {"words", "personas"} for e in error.errors())
        raise PastoError(
            "\n".join(e["msg"].removeprefix("Value error, ") for e in error.errors()),
            "Give two words that differ: pasto make-pairs honest dishonest"
            if about_words
            else "A template holds {persona} once and no other braces; see make-pairs --help.",
        ) from None


def write_new_pairs(spec: PairsSpec, model: ModelSpec | None, out: Path, watch: Watcher) -> Made:
    """Make pairs, leave out what a model's tokenizer spoils, and write the others.

    Args:
        spec: What they are made of.
        model: Its tokenizer checks and measures them; None for words instead of tokens.
        out: File to write.
        watch: Told of progress.

    Raises:
        PastoError: If too few pairs are left, or the file cannot be written.
    """
    found = make_pairs(spec)
    for note in found.notes:
        watch.note(note)
    made = _in_words(found) if model is None else _in_tokens(found, model, watch)
    write_pairs(made.pairs, out)
    return made


def _in_words(found: PairSet) -> Made:
    lengths: dict[str, list[int]] = {}
    for pair in found.pairs:
        lengths.setdefault(pair.source, []).append(len(pair.suffix.split()))
    return Made(found.pairs, dict(found.dropped), lengths, "words of the opening")


def _in_tokens(found: PairSet, model: ModelSpec, watch: Watcher) -> Made:
    # Only here: without a tokenizer the command needs no torch and starts at once.
    from pasto_cli.core.models.chat import TokenPair, require_pairs, tokenise_pairs
    from pasto_cli.core.models.loading import load_chat

    with watch.task(f"tokenizer of {model.source}"):
        chat = load_chat(model, watch.note)
    kept: list[Pair] = []
    tokens: list[TokenPair] = []
    lengths: dict[str, list[int]] = {}
    dropped = Counter[str](found.dropped)
    for pair in found.pairs:
        one, why = tokenise_pairs([pair], chat)
        dropped += why
        if one:
            kept.append(pair)
            tokens += one
            lengths.setdefault(pair.source, []).append(len(one[0].chosen))
    require_pairs(tokens, dropped)
    return Made(kept, dict(dropped), lengths, "tokens of the chosen side")
