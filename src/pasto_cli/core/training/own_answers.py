"""Asking the model under each persona; what it said is kept on disk (`kept_answers`).

The cache names the base by the bytes of all its weights: these answers are trained on.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.answers import AnswerPair, Asked
from pasto_cli.core.recipe.answers_spec import AnswersSpec
from pasto_cli.core.steering.generation import Decoding, sampled_answers
from pasto_cli.core.steering.kept_answers import kept_answers


def ask_model(
    lm: LoadedModel,
    asked: Sequence[Asked],
    spec: AnswersSpec,
    progress: Callable[[int], None] = lambda _: None,
) -> list[AnswerPair]:
    """What the clean model says to each question under both personas, in their order.

    Args:
        lm: The clean base model.
        asked: From `core.pairs.answers.draw_asked`.
        spec: Longest answer, temperature, seed.
        progress: Told how many answers each batch gave.
    """
    prompts = [lm.chat.prompt(message) for one in asked for message in one.messages]
    how = Decoding(spec.tokens, spec.temperature, spec.seed)

    def ask() -> list[list[int]]:
        return sampled_answers(lm, prompts, how, progress)

    answers = kept_answers(lm, prompts, how, _digest(lm), ask, progress)
    texts = lm.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [
        AnswerPair(
            question=one.question,
            personas=one.personas,
            sample=one.sample,
            chosen=texts[2 * i],
            rejected=texts[2 * i + 1],
            chosen_tokens=tuple(answers[2 * i]),
            rejected_tokens=tuple(answers[2 * i + 1]),
        )
        for i, one in enumerate(asked)
    ]


def _digest(lm: LoadedModel) -> str:
    """SHA-256 over the bytes of all weights, packed if they are quantised, and the configuration.

    It reads each weight once; answering does so for every token.
    """
    found = hashlib.sha256(repr(lm.model.config.to_dict()).encode())
    for name, tensor in lm.model.state_dict().items():
        if isinstance(tensor, Tensor):
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(content.numpy().data)
    return found.hexdigest()
