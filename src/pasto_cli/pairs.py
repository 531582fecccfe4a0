"""Contrast pairs: the same opening of a reply under a positive and a negative persona, and under none.

A pair is *incomplete*: it ends inside the assistant's turn, before the model has answered (AntiPaSTO, arXiv 2601.07473,
section 3). Pairs hold text, not tokens, so that one file serves every model; `core.chat` tokenises and checks them.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pasto_cli import bundled
from pasto_cli.errors import PastoError
from pasto_cli.files import write_text
from pasto_cli.recipe import HubSuffixes, PairsSpec

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


class PairSet(NamedTuple):
    """Pairs and what was left out while making them."""

    pairs: list[Pair]
    dropped: dict[str, int]
    """Reason -> how many."""

    @property
    def digest(self) -> str:
        """SHA-256 over the pairs in order: names the set in an artifact."""
        return hashlib.sha256("\n".join(p.model_dump_json() for p in self.pairs).encode()).hexdigest()


class Split(NamedTuple):
    """Disjoint pairs: no suffix of one part is a prefix of one in another."""

    train: list[Pair]
    validation: list[Pair]
    certificate: list[Pair]


def with_article(word: str) -> str:
    """`honest` -> `an honest`, `dishonest` -> `a dishonest`; a phrase that has its article keeps it."""
    text = word.strip()
    if re.match(r"(an?|the)\s", text, re.IGNORECASE):
        return text
    sounds_vowel = re.match(r"[aeiou]|hones|honou?r|hour|heir", text, re.IGNORECASE)
    sounds_consonant = re.match(r"eu|ew|one(?![a-z])|once|u[bcfhjkqrst][aeiou]|uni(?!n|m)", text, re.IGNORECASE)
    return f"{'an' if sounds_vowel and not sounds_consonant else 'a'} {text}"


def make_pairs(spec: PairsSpec) -> PairSet:
    """Pairs as a recipe's `pairs` section says: read from its file, or drawn from templates, suffixes and neutral prompts.

    Raises:
        PastoError: For unreadable files, personas that are the same, or fewer than `MIN_PAIRS` pairs.
    """
    if spec.file is not None:
        return read_pairs(spec.file)
    positive, negative = spec.personas or tuple(with_article(w) for w in spec.words or ())
    if positive.strip().lower() == negative.strip().lower():
        raise PastoError(f"both personas are {positive!r}: there is nothing to contrast", "Give two different words.")
    suffixes, dropped = clean_suffixes(load_suffixes(spec.suffixes))
    templates = list(spec.templates) or bundled.lines("templates.txt")
    neutral = load_neutral_prompts(spec.neutral_prompts)
    rng = random.Random(spec.seed)
    pairs = []
    for (source, suffix), template in _draw(suffixes, templates, spec.count, rng):
        pairs.append(
            Pair(
                chosen=template.replace("{persona}", positive),
                rejected=template.replace("{persona}", negative),
                neutral=rng.choice(neutral),
                suffix=suffix,
                source=source,
            )
        )
    _require_enough(pairs, "the suffix source")
    return PairSet(pairs, dropped)


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
    return bundled.lines("neutral_prompts.txt") if origin == "bundled" else bundled.read_lines(origin, "neutral prompts")


def clean_suffixes(suffixes: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Strip outer white space and leave out what would spoil a pair: empty, closed, or seen before."""
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
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    drawn = []
    for lap in range(len(templates)):
        for item in turns:
            if len(drawn) == count:
                return drawn
            # The offset differs by suffix, the lap walks on: no combination comes twice.
            offset = int(hashlib.sha256(item[1].encode()).hexdigest(), 16)
            drawn.append((item, templates[(offset + lap) % len(templates)]))
    return drawn


def _hub_suffixes(origin: HubSuffixes) -> list[tuple[str, str]]:
    import datasets

    try:
        rows = datasets.load_dataset(origin.dataset, origin.config, split=origin.split, revision=origin.revision)
    except Exception as error:  # the library raises anything from OSError to its own types; all mean "not to be had"
        raise PastoError(
            f"dataset {origin.dataset!r} cannot be loaded ({type(error).__name__}: {error})",
            "Check its name, configuration and your connection, or use --suffixes FILE.",
        ) from None
    if origin.column not in rows.column_names:
        raise PastoError(
            f"dataset {origin.dataset!r} has no column {origin.column!r}", f"It has: {', '.join(rows.column_names)}."
        )
    texts = (str(text).split() for text in rows[origin.column])
    return [(origin.dataset, " ".join(words[: origin.words]).rstrip(".!?")) for words in texts]


def read_pairs(path: str | Path) -> PairSet:
    """Read a `pairs.jsonl`.

    Raises:
        PastoError: With the line number of the first bad line, or for fewer than `MIN_PAIRS` pairs.
    """
    pairs = []
    bundled.read_lines(str(path), "pairs")  # the errors of a missing or empty file
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            pairs.append(Pair.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "line"
            raise PastoError(
                f"{path}:{number}: {key}: {first['msg']}", "A line holds chosen, rejected, neutral, suffix and source."
            ) from None
    _require_enough(pairs, str(path))
    return PairSet(pairs, {})


def write_pairs(pairs: Sequence[Pair], path: str | Path) -> None:
    """Write pairs as JSON lines."""
    write_text(Path(path), "".join(json.dumps(p.model_dump(), ensure_ascii=False) + "\n" for p in pairs))


def split_pairs(pairs: Sequence[Pair], validation: float, certificate: float, seed: int) -> Split:
    """Split by groups of suffixes that are prefixes of one another, stratified by source.

    A quarter of the neutral prompts (at least one, where there are two) is kept for the certificate: pairs on either side
    whose prompt belongs to the other side get one of their own.
    """
    rng = random.Random(seed)
    groups: dict[str, list[list[Pair]]] = defaultdict(list)
    root = source = ""
    for pair in sorted(pairs, key=lambda p: p.suffix):
        # Sorted, every extension of a suffix follows it directly: one pass finds the groups.
        if root and pair.suffix.startswith(root):
            groups[source][-1].append(pair)
        else:
            root, source = pair.suffix, pair.source
            groups[source].append([pair])
    parts: dict[str, list[list[Pair]]] = {"train": [], "validation": [], "certificate": []}
    for source in sorted(groups):
        bins = groups[source]
        rng.shuffle(bins)
        total = sum(map(len, bins))
        counts = dict.fromkeys(parts, 0)
        for group in bins:
            fits = (
                part
                for part, share in (("certificate", certificate), ("validation", validation))
                if counts[part] + len(group) / 2 <= share * total
            )
            part = next(fits, "train")
            parts[part].append(group)
            counts[part] += len(group)
    for part in ("certificate", "validation"):  # a tiny set still needs a group in each part
        if not parts[part] and len(parts["train"]) > 1:
            parts[part].append(parts["train"].pop())
    train, held_out, certified = ([pair for group in parts[part] for pair in group] for part in parts)
    prompts = sorted({p.neutral for p in pairs})
    rng.shuffle(prompts)
    cut = max(1, len(prompts) // 4) if len(prompts) > 1 else 0
    reserved, open_ = prompts[:cut] or prompts, prompts[cut:]
    rng.shuffle(train)
    return Split(_with_prompts(train, open_), _with_prompts(held_out, open_), _with_prompts(certified, reserved))


def _with_prompts(pairs: Sequence[Pair], prompts: Sequence[str]) -> list[Pair]:
    allowed = set(prompts)
    return [
        p if p.neutral in allowed else p.model_copy(update={"neutral": prompts[i % len(prompts)]}) for i, p in enumerate(pairs)
    ]


def _require_enough(pairs: Sequence[Pair], origin: str) -> None:
    if len(pairs) < MIN_PAIRS:
        raise PastoError(
            f"{origin} gives {len(pairs)} usable pairs; training needs at least {MIN_PAIRS}",
            "Add suffixes or raise pairs.count (800 is the default).",
        )
