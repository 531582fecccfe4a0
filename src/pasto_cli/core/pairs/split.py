"""Training, validation and certificate parts of a pair set, which share no suffix."""

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from pasto_cli.core.pairs.pairs import Pair


class Split(NamedTuple):
    """Disjoint pairs: no suffix of one part is a prefix of one in another."""

    train: list[Pair]
    validation: list[Pair]
    certificate: list[Pair]


def split_pairs(
    pairs: Sequence[Pair], *, validation: float, certificate: float, seed: int
) -> Split:
    """Split by groups of suffixes that are prefixes of one another, stratified by source.

    A quarter of the neutral prompts (at least one, where there are two) is kept for the
    certificate: pairs on either side whose prompt belongs to the other side get one of their own.

    Args:
        pairs: All of them.
        validation: Share of the pairs.
        certificate: Share of the pairs.
        seed: Seed of every draw.
    """
    rng = random.Random(seed)
    shares = {"certificate": certificate, "validation": validation}
    parts = _fill_parts(_groups(pairs), shares, rng)
    prompts = sorted({pair.neutral for pair in pairs})
    rng.shuffle(prompts)
    cut = max(1, len(prompts) // 4) if len(prompts) > 1 else 0
    reserved, open_ = prompts[:cut] or prompts, prompts[cut:]
    train = list(chain(*parts["train"]))
    rng.shuffle(train)
    return Split(
        _with_prompts(train, open_),
        _with_prompts(list(chain(*parts["validation"])), open_),
        _with_prompts(list(chain(*parts["certificate"])), reserved),
    )


def _groups(pairs: Sequence[Pair]) -> dict[str, list[list[Pair]]]:
    """Source -> groups of pairs whose suffixes begin with the group's shortest one."""
    groups: dict[str, list[list[Pair]]] = defaultdict(list)
    root = source = ""
    for pair in sorted(pairs, key=lambda p: p.suffix):
        # Sorted, every extension of a suffix follows it directly: one pass finds the groups.
        if root and pair.suffix.startswith(root):
            groups[source][-1].append(pair)
        else:
            root, source = pair.suffix, pair.source
            groups[source].append([pair])
    return groups


def _fill_parts(
    groups: dict[str, list[list[Pair]]], shares: dict[str, float], rng: random.Random
) -> dict[str, list[list[Pair]]]:
    """Name of a part -> its groups: whole ones, shuffled, up to the part's share of each source."""
    parts: dict[str, list[list[Pair]]] = {"train": [], "validation": [], "certificate": []}
    for source in sorted(groups):
        bins = groups[source]
        rng.shuffle(bins)
        total = sum(map(len, bins))
        counts = dict.fromkeys(parts, 0)
        for group in bins:
            # A group goes where at least half of it is within the share; the rest is trained on.
            fits = (
                part
                for part, share in shares.items()
                if counts[part] + len(group) / 2 <= share * total
            )
            part = next(fits, "train")
            parts[part].append(group)
            counts[part] += len(group)
    for part in shares:  # a tiny set still needs a group in each part
        if not parts[part] and len(parts["train"]) > 1:
            parts[part].append(parts["train"].pop())
    return parts


def _with_prompts(pairs: Sequence[Pair], prompts: Sequence[str]) -> list[Pair]:
    """The pairs, with other neutral prompts where theirs are not among those allowed."""
    allowed = set(prompts)
    return [
        pair
        if pair.neutral in allowed
        else pair.model_copy(update={"neutral": prompts[i % len(prompts)]})
        for i, pair in enumerate(pairs)
    ]
