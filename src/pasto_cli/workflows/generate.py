"""`pasto generate`: answers of a set of dials to prompts."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pasto_cli.core.steering import generation
from pasto_cli.workflows.dials import DialSet
from pasto_cli.workflows.progress import Watcher


class Sampling(NamedTuple):
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    seed: int


class Answers(NamedTuple):
    """What a prompt is answered with."""

    prompt: str
    texts: list[str]
    """One for each coefficient, in their order."""


def generate(
    dials: DialSet,
    prompts: Sequence[str],
    sampling: Sampling,
    watch: Watcher,
    stream: Callable[[str], None] | None = None,
) -> Iterator[Answers]:
    """Answer prompts one by one, at every coefficient of the dials.

    Args:
        dials: One dial, or several that turn together.
        prompts: The user's messages.
        sampling: How tokens are chosen.
        watch: Told of progress, unless texts are streamed.
        stream: Receives pieces of text as they come; for one coefficient.
    """
    coefficients = list(dials.coefficients)

    def answer(prompt: str) -> list[str]:
        return generation.generate(
            dials.lm,
            dials.steerer,
            prompt,
            coefficients,
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.seed,
            stream,
        )

    label = f"generating at {', '.join(f'{a:+g}' if a else '0' for a in coefficients)}"
    for prompt in prompts:
        if stream is not None:  # a spinner would stand in the middle of the text
            texts = answer(prompt)
        else:
            with watch.task(label):
                texts = answer(prompt)
        yield Answers(prompt, texts)
