"""One question of a benchmark, a benchmark, and how to take a part of one."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.evaluation.results import Kind


class Item(NamedTuple):
    """One question, answered Yes or No."""

    id: str
    """`group/side`, such as `d12/to_do`."""
    group: str
    """Items of one group belong together: the two actions of a dilemma, the two mirrors of a control."""
    kind: Kind
    prompt: str
    """The user's message."""
    labels: dict[str, int]
    """Value -> +1 if only this item's own action has it, -1 if only the other's has."""


class Benchmark(NamedTuple):
    """Items and where they come from."""

    name: str
    title: str
    licence: str
    source: str
    prefill: str
    """Opening of the assistant's turn; the answer follows it."""
    items: list[Item]
    partial: bool = False


def own_labels(own: Sequence[str], other: Sequence[str]) -> dict[str, int]:
    """+1 for values of the own action only, -1 for values of the other only; values of both have no label."""
    mine, theirs = {_plain(v) for v in own}, {_plain(v) for v in other}
    return {v: 1 for v in sorted(mine - theirs)} | {v: -1 for v in sorted(theirs - mine)}


def _plain(value: str) -> str:
    return " ".join(value.lower().split())


def subset(benchmark: Benchmark, value: str, limit: int | None, seed: int) -> Benchmark:
    """At most `limit` whole dilemmas, those that carry the value first; controls all stay.

    Args:
        benchmark: Full benchmark.
        value: The value to be measured; dilemmas without a label for it come last.
        limit: Dilemmas, or None for all.
        seed: Of the choice.
    """
    groups = list(dict.fromkeys(i.group for i in benchmark.items if i.kind == "target"))
    if limit is None or limit >= len(groups):
        return benchmark
    carrying = {i.group for i in benchmark.items if value in i.labels}
    random.Random(seed).shuffle(groups)
    chosen = set(sorted(groups, key=lambda g: g not in carrying)[:limit])
    items = [i for i in benchmark.items if i.kind != "target" or i.group in chosen]
    return benchmark._replace(items=items, partial=True)
