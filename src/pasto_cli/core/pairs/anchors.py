"""Anchors: prompts on which a dial should change nothing.

Facts, arithmetic, code, formats, translations, trivia: what has the same right answer whoever
speaks. Training holds the steered model to the base's own answers on some of them; the others are
held out, and the certificate says how far the dial moves those. No anchor may come from a
benchmark, or its controls would be trained on.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.pairs.split_files import read_split

MIN_ANCHORS = 8
"""Fewer cannot be split into trained and held-out ones that say anything."""
OVERLAP_WORDS = 6
"""An anchor that shares this many words in a row with a benchmark's prompt is taken from it."""


class Anchor(NamedTuple):
    """One prompt."""

    prompt: str
    source: str
    """Kind of the bundled corpus, or the file that it stands in."""


class AnchorSplit(NamedTuple):
    """Disjoint anchors."""

    train: list[Anchor]
    held_out: list[Anchor]

    @property
    def digest(self) -> str:
        """SHA-256 over the prompts of both parts in order: names the set in an artifact."""
        lines = [a.prompt for a in self.train] + ["---"] + [a.prompt for a in self.held_out]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_anchors(origin: str) -> list[Anchor]:
    """Anchors of the bundled corpus, or of a text file with one prompt per line.

    Raises:
        PastoError: If the file cannot be read, or holds fewer than `MIN_ANCHORS` different prompts.
    """
    if origin == "bundled":
        found = [
            Anchor(prompt, file.name.removesuffix(".txt"))
            for file in bundled.files("anchors", ".txt")
            for prompt in bundled.lines(f"anchors/{file.name}")
        ]
    else:
        prompts = bundled.read_lines(origin, "anchors")
        found = [Anchor(prompt.strip(), Path(origin).stem) for prompt in prompts]
    unique = list({anchor.prompt: anchor for anchor in found}.values())
    if len(unique) < MIN_ANCHORS:
        raise PastoError(
            f"{origin} holds {len(unique)} different anchors, at least {MIN_ANCHORS} are needed",
            "Add prompts, one per line, or write losses.anchor.prompts: bundled.",
        )
    return unique


def split_anchors(anchors: Sequence[Anchor], held_out: float, seed: int) -> AnchorSplit:
    """A share of each source is held out, at least one where there are two.

    Args:
        anchors: From `load_anchors`.
        held_out: Share between 0 and 1.
        seed: Seed of the choice.
    """
    rng = random.Random(seed)
    by_source: dict[str, list[Anchor]] = defaultdict(list)
    for anchor in anchors:
        by_source[anchor.source].append(anchor)
    train: list[Anchor] = []
    kept: list[Anchor] = []
    for source in sorted(by_source):
        some = by_source[source]
        rng.shuffle(some)
        # At least one on either side: with none to train on, the term would be off unseen.
        cut = min(max(1, round(held_out * len(some))), len(some) - 1)
        kept += some[:cut]
        train += some[cut:]
    return AnchorSplit(train, kept)


def write_anchors(split: AnchorSplit, path: Path) -> None:
    """Write a split as JSON lines: prompt, source, part.

    Raises:
        PastoError: If it cannot be written.
    """
    lines = [
        json.dumps({**anchor._asdict(), "part": part}, ensure_ascii=False)
        for part, anchors in split._asdict().items()
        for anchor in anchors
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_anchors(path: Path) -> AnchorSplit:
    """Read what `write_anchors` wrote.

    Raises:
        PastoError: If the file is missing or damaged.
    """
    return AnchorSplit(
        *read_split(path, lambda record: Anchor(str(record["prompt"]), str(record["source"])))
    )


def require_no_overlap(
    anchors: Iterable[Anchor], prompts: Iterable[str], benchmark: str, what: str = "anchors"
) -> None:
    """Refuse anchors, or other prompts to train on, that were taken from a benchmark.

    Args:
        anchors: What will be trained on.
        prompts: What the benchmark asks, without the instruction that all of its prompts share.
        benchmark: Its name, for the message.
        what: What is trained on, for the message.

    Raises:
        PastoError: With how many, the first one, and what to do.
    """
    there = {window for prompt in prompts for window in _windows(prompt)}
    if taken := [a.prompt for a in anchors if not there.isdisjoint(_windows(a.prompt))]:
        raise PastoError(
            f"{len(taken)} {what} overlap with the benchmark {benchmark}, such as {taken[0]!r}",
            "Take them out of their file: a benchmark that was trained on measures nothing.",
        )


def _windows(text: str) -> list[tuple[str, ...]]:
    """Every run of `OVERLAP_WORDS` words; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    last = max(1, len(words) - OVERLAP_WORDS + 1)
    return [tuple(words[i : i + OVERLAP_WORDS]) for i in range(last)]
