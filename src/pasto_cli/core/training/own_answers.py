"""Asking the model under each persona, and keeping what it said on disk.

One JSON file per set of answers in $PASTO_CACHE/answers, token ids only. Its name is a hash of all
that the answers depend on: the prompts in tokens, how they are sampled, the bytes of all weights,
how these are computed with. A run with a full cache has the same answers as one with an empty one.
The folder may be deleted at any time.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pasto_cli.base.cache import cached_file, keep
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.answers import AnswerPair, Asked
from pasto_cli.core.recipe.schema import AnswersSpec
from pasto_cli.core.steering.generation import Decoding, sampled_answers

_TOKENS = TypeAdapter(list[list[int]])


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
    path = cached_file("answers", f"{_key(lm, prompts, how)}.json")
    answers = None if path is None else _read(path, len(prompts))
    if answers is None:
        answers = sampled_answers(lm, prompts, how, progress)
        text = json.dumps(answers)
        keep(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    else:
        progress(len(prompts))
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


def _key(lm: LoadedModel, prompts: list[list[int]], how: Decoding) -> str:
    """Name of the file of a set of answers."""
    facts = {
        "prompts": prompts,
        "decoding": how._asdict(),
        "weights": _digest(lm),
        "spec": lm.spec.model_dump(mode="json", exclude={"source", "revision"}),
        "dtype": str(lm.dtype),
        "device": lm.device.type,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


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


def _read(path: Path, count: int) -> list[list[int]] | None:
    """The answers of a file, if it is whole and holds as many as there are prompts."""
    try:
        answers = _TOKENS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return answers if len(answers) == count else None
