"""Prompts at which a dial shows what it does, of those that it was not trained on."""

import random
from pathlib import Path

from pasto_cli.base import bundled, runs
from pasto_cli.core.models import distributed
from pasto_cli.core.pairs.answers import read_answers
from pasto_cli.workflows.dials import Dial


def everyday_prompts(root: Path, seed: int, count: int) -> list[str]:
    """Everyday prompts that a run did not train on.

    Args:
        root: Folder of the run.
        seed: Of the draw.
        count: How many, where there are so many.
    """
    prompts = bundled.lines("questions.txt") + bundled.lines("sentiment_prompts.txt")
    if (root / runs.ANSWERS).is_file():
        split = read_answers(root / runs.ANSWERS)
        seen = {pair.question for pair in (*split.train, *split.held_out)}
        prompts = [prompt for prompt in prompts if prompt not in seen]
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


def most_telling(dial: Dial, prompts: list[str]) -> str:
    """The prompt at which the ends of a dial are furthest apart.

    Raises:
        PastoError: If the dial overflows the model at an end.
    """
    from pasto_cli.core.evaluation.tell_apart import ends_apart

    apart = ends_apart(dial.lm, dial.steerer, prompts)
    # Another process may round otherwise, and all go on with one prompt.
    best = distributed.all_gather_object(max(range(len(prompts)), key=apart.__getitem__))[0]
    return prompts[best]
