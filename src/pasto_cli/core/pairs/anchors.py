"""Anchors: prompts on which a dial should change nothing.

Facts, arithmetic, code, formats, translations, trivia: what has the same right answer whoever
speaks. Training holds the steered model to the base's own answers on some of them; the others are
held out, and the certificate says how far the dial moves those. No anchor may come from a
benchmark, or its controls would be trained on.

An anchor may begin the reply for the base ("Verdict:", a tab before it in a file): what a dial does
to Yes against No differs between a reply's first token and one that follows such a beginning.

An anchor may also be a question that is asked both ways ("Should I keep the coins?", "Should I take
the coins back?"; another tab, then the second prompt). A dial may well change what is right there,
but not both answers to Yes: only what the two share is held.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import bundled
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.core.pairs.split_files import read_split

MIN_ANCHORS = 8
"""Fewer cannot be split into trained and held-out ones that say anything."""
COLUMNS = 3
"""Of a line: prompt, opening of the reply, opposite question."""
OVERLAP_WORDS = 6
"""An anchor that shares this many words in a row with a benchmark's prompt is taken from it."""


class Anchor(NamedTuple):
    """One prompt."""

    prompt: str
    source: str
    """Kind of the bundled corpus, or the file that it stands in."""
    opening: str = ""
    """How the reply begins; what is held follows it."""
    opposite: str = ""
    """The same question asked the other way round; what the answers to both share is held."""

    @property
    def line(self) -> str:
        """As it stands in a file: prompt, opening, opposite, with tabs, as far as it has them."""
        return f"{self.prompt}\t{self.opening}\t{self.opposite}".rstrip("\t")

    @classmethod
    def of_line(cls, line: str, source: str) -> "Anchor":
        """An anchor from a line of a file.

        Raises:
            PastoError: If it has more than three columns.
        """
        columns = line.split("\t")
        if len(columns) > COLUMNS:
            raise PastoError(
                f"{source}: {line!r} has {len(columns)} columns, and an anchor at most {COLUMNS}",
                "Write the prompt, a tab, how the reply begins, a tab, the opposite question.",
            )
        prompt, opening, opposite = (*columns, "", "")[:COLUMNS]
        return cls(prompt.strip(), source, opening.strip(), opposite.strip())


class AnchorSplit(NamedTuple):
    """Disjoint anchors."""

    train: list[Anchor]
    held_out: list[Anchor]

    @property
    def digest(self) -> str:
        """SHA-256 over the lines of both parts in order: names the set in an artifact."""
        lines = [a.line for a in self.train] + ["---"] + [a.line for a in self.held_out]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_anchors(origin: str, opposites: bool = True) -> list[Anchor]:
    """Anchors of the bundled corpus, or of a text file with one prompt per line.

    Args:
        origin: `bundled`, or a file.
        opposites: Whether questions that are asked both ways are wanted too.

    Raises:
        PastoError: If the file cannot be read, holds fewer than `MIN_ANCHORS` different prompts, or
            an opening without a prompt.
    """
    if origin == "bundled":
        found = [
            Anchor.of_line(line, file.name.removesuffix(".txt"))
            for file in bundled.files("anchors", ".txt")
            for line in bundled.lines(f"anchors/{file.name}")
        ]
    else:
        lines = bundled.read_lines(origin, "anchors")
        found = [Anchor.of_line(line, Path(origin).stem) for line in lines]
    if lacking := next((anchor for anchor in found if not anchor.prompt), None):
        raise PastoError(
            f"{origin}: {lacking.opening or lacking.opposite!r} has no prompt before it",
            "Write the prompt, a tab, then how the reply begins; or the prompt alone.",
        )
    wanted = [anchor for anchor in found if opposites or not anchor.opposite]
    unique = list({anchor.line: anchor for anchor in wanted}.values())
    if len(unique) < MIN_ANCHORS:
        raise PastoError(
            f"{origin} holds {len(unique)} different anchors, at least {MIN_ANCHORS} are needed",
            "Add prompts, one per line, or write losses.anchor.prompts: bundled."
            if wanted == found
            else "Its questions asked both ways count where losses.anchor.opposites is above 0.",
        )
    return unique


def split_anchors(anchors: Sequence[Anchor], held_out: float, seed: int) -> AnchorSplit:
    """A share of each source is held out, at least one where there are two.

    Questions that are asked both ways are a source of their own.

    Args:
        anchors: From `load_anchors`.
        held_out: Share between 0 and 1.
        seed: Seed of the choice.
    """
    rng = random.Random(seed)
    by_source: dict[tuple[str, bool], list[Anchor]] = defaultdict(list)
    for anchor in anchors:
        by_source[anchor.source, bool(anchor.opposite)].append(anchor)
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
    """Write a split as JSON lines: prompt, source, opening, opposite, part.

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

    def parse(record: dict[str, Any]) -> Anchor:
        # Runs of before have neither openings nor opposites.
        more = (str(record.get(name, "")) for name in ("opening", "opposite"))
        return Anchor(str(record["prompt"]), str(record["source"]), *more)

    return AnchorSplit(*read_split(path, parse))


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
    asked = [text for a in anchors for text in (a.prompt, a.opposite) if text]
    if taken := [text for text in asked if not there.isdisjoint(_windows(text))]:
        raise PastoError(
            f"{len(taken)} {what} overlap with the benchmark {benchmark}, such as {taken[0]!r}",
            "Take them out of their file: a benchmark that was trained on measures nothing.",
        )


def _windows(text: str) -> list[tuple[str, ...]]:
    """Every run of `OVERLAP_WORDS` words; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    last = max(1, len(words) - OVERLAP_WORDS + 1)
    return [tuple(words[i : i + OVERLAP_WORDS]) for i in range(last)]
