"""Contrast pairs: one opening of a reply under a positive persona, a negative one, and none.

A pair is *incomplete*: it ends inside the assistant's turn, before the model has answered
(AntiPaSTO, arXiv 2601.07473, section 3). Pairs hold text, not tokens, so that one file serves every
model; `core.models.chat` tokenises and checks them.
"""

import hashlib
import json
import random
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import write_text
from pasto_cli.base.format import substitute
from pasto_cli.base.strict_json import parse_json_object
from pasto_cli.base.text import is_blank
from pasto_cli.core.pairs.articles import takes_article, with_article
from pasto_cli.core.pairs.corpora import clean_suffixes, load_neutral_prompts, load_suffixes
from pasto_cli.core.recipe.schema import PairsSpec

MIN_PAIRS = 8
"""Fewer pairs cannot be split into training, validation and certificate."""


class Pair(BaseModel):
    """One contrast pair; the three messages are the user's turn, `suffix` opens the assistant's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chosen: str
    rejected: str
    neutral: str
    suffix: str
    source: str = "file"

    @field_validator("chosen", "rejected", "neutral", "suffix")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if is_blank(value):
            raise ValueError("is empty; write a text")
        return value


class PairSet(NamedTuple):
    """Pairs and what was left out while making them."""

    pairs: list[Pair]
    dropped: dict[str, int]
    """Reason -> how many."""
    notes: tuple[str, ...] = ()
    """What is worth knowing about them."""

    @property
    def digest(self) -> str:
        """SHA-256 over the pairs in order: names the set in an artifact."""
        lines = "\n".join(pair.model_dump_json() for pair in self.pairs)
        return hashlib.sha256(lines.encode()).hexdigest()


def personas_of(spec: PairsSpec) -> tuple[str, str]:
    """Both personas as they stand in a template: positive, negative.

    Raises:
        PastoError: If they are the same.
    """
    positive, negative = spec.personas or tuple(with_article(w) for w in spec.words or ())
    if _plain(positive) == _plain(negative):
        raise PastoError(
            f"both personas are {positive!r}: there is nothing to contrast",
            "Give two different words.",
        )
    return positive, negative


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


def make_pairs(spec: PairsSpec) -> PairSet:
    """Pairs as a recipe says: from its file, or drawn from templates, suffixes and prompts.

    Raises:
        PastoError: For unreadable files, personas that are the same, or fewer than `MIN_PAIRS`
            pairs.
    """
    if spec.file is not None:
        return read_pairs(spec.file)
    positive, negative = personas_of(spec)
    suffixes, dropped = clean_suffixes(load_suffixes(spec.suffixes))
    templates = list(dict.fromkeys(spec.templates)) or bundled.lines("templates.txt")
    neutral = load_neutral_prompts(spec.neutral_prompts)
    rng = random.Random(spec.seed)
    pairs = [
        Pair(
            chosen=substitute(template, persona=positive),
            rejected=substitute(template, persona=negative),
            neutral=rng.choice(neutral),
            suffix=suffix,
            source=source,
        )
        for (source, suffix), template in _draw(suffixes, templates, spec.count, rng)
    ]
    _require_enough(pairs, "the suffix source")
    return PairSet(pairs, dropped, tuple(_notes(spec, len(pairs), len(suffixes), len(templates))))


def _notes(spec: PairsSpec, made: int, suffixes: int, templates: int) -> Iterator[str]:
    """What somebody who asked for these pairs should know."""
    if made < spec.count:
        yield (
            f"{made} pairs instead of {spec.count}: there are {suffixes} openings under "
            f"{templates} templates, and no combination is taken twice"
        )
    for word in spec.words or ():
        if not takes_article(word):
            yield (
                f"{word!r} takes no English article; write personas as they stand in a template "
                f"of their language (make-pairs --personas, or pairs.personas)"
            )


def _draw(
    suffixes: Sequence[tuple[str, str]], templates: Sequence[str], count: int, rng: random.Random
) -> list[tuple[tuple[str, str], str]]:
    """`count` different (suffix, template) combinations.

    Sources take turns, and each suffix is used once before any is used twice.
    """
    by_source: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in suffixes:
        by_source[item[0]].append(item)
    for items in by_source.values():
        rng.shuffle(items)
    queues = list(by_source.values())
    longest = max(map(len, queues), default=0)
    turns = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    drawn: list[tuple[tuple[str, str], str]] = []
    for lap in range(len(templates)):
        for item in turns:
            if len(drawn) == count:
                return drawn
            # The offset differs by suffix, the lap walks on: no combination comes twice.
            offset = int(hashlib.sha256(item[1].encode()).hexdigest(), 16)
            drawn.append((item, templates[(offset + lap) % len(templates)]))
    return drawn


def read_pairs(path: str | Path) -> PairSet:
    """Read a `pairs.jsonl`.

    Raises:
        PastoError: With the line number of the first bad line, or for fewer than `MIN_PAIRS` pairs.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(bundled.read_lines(str(path), "pairs", blank=True), 1):
        if is_blank(line):
            continue
        try:
            pairs.append(Pair.model_validate(parse_json_object(line)))
        except ValueError as error:
            why = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise PastoError(
                f"{path}:{number}: {why}",
                "A line holds chosen, rejected, neutral, suffix and source.",
            ) from None
    _require_enough(pairs, str(path))
    return PairSet(pairs, {})


def write_pairs(pairs: Sequence[Pair], path: str | Path) -> None:
    """Write pairs as JSON lines."""
    lines = (json.dumps(pair.model_dump(), ensure_ascii=False) + "\n" for pair in pairs)
    write_text(Path(path), "".join(lines))


def _require_enough(pairs: Sequence[Pair], origin: str) -> None:
    if len(pairs) < MIN_PAIRS:
        raise PastoError(
            f"{origin} gives {len(pairs)} usable pairs; training needs at least {MIN_PAIRS}",
            "Add suffixes or raise pairs.count (800 is the default).",
        )
