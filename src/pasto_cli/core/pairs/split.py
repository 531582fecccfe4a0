"""Training, validation and certificate parts that share no suffix."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pasto_cli.core.pairs.pairs import Pair


class Split(NamedTuple):
    """Disjoint pairs: no suffix of one part is a prefix of one in another."""

    train: list[Pair]
    validation: list[Pair]
    certificate: list[Pair]


def split_pairs(pairs: Sequence[Pair], validation: float, certificate: float, seed: int) -> Split:
    """Split by groups of suffixes that are prefixes of one another, stratified by source.

    A quarter of the neutral prompts (at least one, where there are two) is kept for the
    certificate: pairs on either side whose prompt belongs to the other side get one of their own.
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
    train, held_out, certified = (
        [pair for group in parts[part] for pair in group] for part in parts
    )
    prompts = sorted({p.neutral for p in pairs})
    rng.shuffle(prompts)
    cut = max(1, len(prompts) // 4) if len(prompts) > 1 else 0
    reserved, open_ = prompts[:cut] or prompts, prompts[cut:]
    rng.shuffle(train)
    return Split(
        _with_prompts(train, open_),
        _with_prompts(held_out, open_),
        _with_prompts(certified, reserved),
    )


def _with_prompts(pairs: Sequence[Pair], prompts: Sequence[str]) -> list[Pair]:
    allowed = set(prompts)
    return [
        p if p.neutral in allowed else p.model_copy(update={"neutral": prompts[i % len(prompts)]})
        for i, p in enumerate(pairs)
    ]
