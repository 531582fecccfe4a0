"""One question of a benchmark, a benchmark, and how to take a part of one. No torch.

A label is +1 if saying Yes to a row is on the side of the value, -1 if saying No is, and absent
where both actions or neither carry it: such a row says nothing about the value.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.core.records.evaluation import Kind

YES_NO = ("Yes", "No")


class Item(NamedTuple):
    """One question, answered Yes or No, or by one of several choices."""

    id: str
    """`group/side`, such as `d12/to_do`."""
    group: str
    """Items of one group belong together: the two actions of a dilemma, the two mirrors of a
    control."""
    kind: Kind
    prompt: str
    """The user's message."""
    labels: dict[str, int]
    """Value -> +1 if the matching answers are those of the value, -1 if the others are."""
    answers: tuple[str, ...] = YES_NO
    """Words that the answer begins with: Yes and No, or the letters of choices; or two replies."""
    matching: tuple[int, ...] = (0,)
    """Indices of the answers that y counts as positive: y = log P(matching) - log P(the others)."""
    prefill: str | None = None
    """Beginning of the assistant's turn where it is not the benchmark's."""
    whole: bool = False
    """The answers are whole replies, of which the likelier one per token counts: P is the geometric
    mean of a reply's token probabilities."""


class Benchmark(NamedTuple):
    """Items and where they come from."""

    name: str
    title: str
    licence: str
    source: str
    prefill: str
    """Beginning of the assistant's turn; the answer follows it."""
    items: list[Item]
    partial: bool = False


def own_labels(own: Sequence[str], other: Sequence[str]) -> dict[str, int]:
    """+1 for values of the own action only, -1 for those of the other only; none for both."""
    mine, theirs = {plain(v) for v in own}, {plain(v) for v in other}
    return {v: 1 for v in sorted(mine - theirs)} | {v: -1 for v in sorted(theirs - mine)}


def plain(value: str) -> str:
    """A value's name without case and superfluous spaces."""
    return " ".join(value.lower().split())


def subset(benchmark: Benchmark, value: str, limit: int | None, seed: int) -> Benchmark:
    """At most `limit` whole dilemmas, those that carry the value first; all controls stay.

    Args:
        benchmark: Full benchmark.
        value: The value to be measured; dilemmas without a label for it come last.
        limit: Dilemmas, or None for all.
        seed: Seed of the choice.
    """
    groups = list(dict.fromkeys(i.group for i in benchmark.items if i.kind == "target"))
    if limit is None or limit >= len(groups):
        return benchmark
    carrying = {i.group for i in benchmark.items if value in i.labels}
    random.Random(seed).shuffle(groups)
    # Sorting is stable: among those that carry the value the choice stays random.
    chosen = set(sorted(groups, key=lambda g: g not in carrying)[:limit])
    items = [i for i in benchmark.items if i.kind != "target" or i.group in chosen]
    return benchmark._replace(items=items, partial=True)
